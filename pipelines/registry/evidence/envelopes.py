"""in-toto statements in DSSE envelopes.

Statement: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
Envelope: https://github.com/secure-systems-lab/dsse/blob/master/envelope.md
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import CryptoSigner

from pipelines.base.artifacts import write_text
from pipelines.base.errors import GateError
from pipelines.registry.evidence.keys import Trust

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE = "signature"
PUT_BACK = "restore the stored files, or run `enigma register`: it makes another version of them"

Json = dict[str, Any]


def statement(subject: Mapping[str, str], kind: str, predicate: Mapping[str, Any]) -> Json:
    """Return a statement.

    Args:
        subject: SHA-256 of each file that it is about, by name.
        kind: URI of the predicate's type.
        predicate: What is stated.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subject.items())
        ],
        "predicateType": kind,
        "predicate": dict(predicate),
    }


def seal(content: Json, key: CryptoSigner) -> Json:
    """Return a statement in an envelope that a key has signed."""
    payload = json.dumps(content, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(key)
    return dict(envelope.to_dict())


def write_sealed(path: Path, content: Json, key: CryptoSigner) -> None:
    """Write a statement in a signed envelope."""
    write_text(path, json.dumps(seal(content, key), indent=2) + "\n")


def unseal(text: str, trust: Trust, kind: str, called: str, *, fix: str = PUT_BACK) -> Json:
    """Check an envelope and return its statement.

    Args:
        text: The envelope as JSON.
        trust: The keys that count.
        kind: The predicate's type that is expected.
        called: The envelope's name, for messages.
        fix: What helps if it is damaged.

    Raises:
        GateError: `signature`, if it is no envelope of a trusted key, or states something else.
    """
    try:
        envelope = Envelope.from_dict(json.loads(text))
        signers = list(envelope.signatures)
    except (ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
        raise GateError(
            SIGNATURE, f"{called}: expected a DSSE envelope, got: {error!r}", fix
        ) from None
    known = [trust.keys[name] for name in signers if name in trust.keys]
    if not known:
        raise GateError(
            SIGNATURE,
            f"{called}: expected a signature by one of the trusted keys {trust}, got one by "
            f"{', '.join(signers) or 'nobody'}",
            "if the key's owner gave you this id through another channel, trust its public key: "
            "`signing.trusted_keys` in params.yaml, or `enigma verify --key FILE`",
        )
    try:
        envelope.verify(known, 1)
        content = json.loads(envelope.payload)
    except (VerificationError, ValueError) as error:
        raise GateError(
            SIGNATURE, f"{called}: the signature does not fit the content ({error})", fix
        ) from None
    got = (envelope.payload_type, content.get("_type"), content.get("predicateType"))
    if got != (PAYLOAD_TYPE, STATEMENT_TYPE, kind):
        raise GateError(SIGNATURE, f"{called}: expected a statement of {kind}, got {got}", fix)
    return dict(content)

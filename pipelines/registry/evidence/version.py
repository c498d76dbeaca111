"""The evidence of a version: one signed statement about its files, one per stage, one signature.

artifacts/evidence/
    version.dsse.json   every file of the version by SHA-256; gates, parameters, commit
    stage.NAME.dsse.json    in-toto link of a stage: materials, products, command, parameters
    model.sig           OpenSSF Model Signing of artifacts/model
    model.sigstore.json the same by Sigstore, if `signing.sigstore` asks for it
    key.pub             public key of the signer; whether it is trusted is up to the reader
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from securesystemslib.signer import CryptoSigner

from pipelines.base.artifacts import sha256_file, write_text
from pipelines.base.errors import GateError, UserError
from pipelines.registry.content import COMPILED, EVIDENCE, origins_of
from pipelines.registry.evidence.envelopes import (
    PUT_BACK,
    SIGNATURE,
    Json,
    statement,
    unseal,
    write_sealed,
)
from pipelines.registry.evidence.keys import Trust, key_path, public_pem, signing_params
from pipelines.registry.gates import Gate

FOLDER = f"artifacts/{EVIDENCE}"
VERSION_FILE = f"{FOLDER}/version.dsse.json"
MODEL_SIGNATURE = f"{FOLDER}/model.sig"
KEY_FILE = f"{FOLDER}/key.pub"
VERSION_KIND = "urn:enigma-zh:attestation:version:v1"
# https://github.com/in-toto/attestation/blob/main/spec/predicates/link.md
LINK_KIND = "https://in-toto.io/attestation/link/v0.3"
# MLflow writes it beside what it downloads.
WRITTEN_BY_A_DOWNLOAD = "registered_model_meta"


def sign_version(
    version: Path, facts: Mapping[str, Any], links: Mapping[str, Json], key: CryptoSigner
) -> Path:
    """Write the evidence of a version into its directory.

    Args:
        version: Its files, complete except for the evidence.
        facts: What is stated about it: gates, parameters, commit.
        links: Statements of the stages by name.
        key: Signs all of it.

    Returns:
        The directory of the evidence.
    """
    import model_signing

    folder = version / FOLDER
    folder.mkdir()
    write_text(version / KEY_FILE, public_pem(key.public_key))
    for name, link in links.items():
        write_sealed(folder / f"stage.{name}.dsse.json", link, key)
    signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=key_path())
    signing.sign(version / "artifacts" / "model", version / MODEL_SIGNATURE)
    if signing_params().sigstore:
        sign_with_sigstore(version / "artifacts" / "model", folder / "model.sigstore.json")
    subject = {name: sha256_file(path) for name, path in _files(version).items()}
    write_sealed(version / VERSION_FILE, statement(subject, VERSION_KIND, facts), key)
    return folder


def sign_with_sigstore(model: Path, signature: Path) -> None:
    """Sign a directory by the user's identity, and enter it in Sigstore's public log.

    Args:
        model: The directory.
        signature: The file to write.

    Raises:
        UserError: If Sigstore cannot be reached, or grants no certificate.
    """
    import model_signing

    try:
        model_signing.signing.Config().use_sigstore_signer().sign(model, signature)
    except Exception as error:  # noqa: BLE001 - of its HTTP, TUF and identity libraries
        raise UserError(
            f"expected Sigstore to sign {model.name}, got: {error or type(error).__name__}",
            "sign where there is a network and a browser or a workload identity, or set "
            "`signing.sigstore: false` in params.yaml: the key alone signs",
        ) from None


def evidence_gates(
    version: Path, trust: Trust, *, name: str, tags: Mapping[str, str]
) -> list[Gate]:
    """Return the gates on a version's evidence that are checked whenever it is used.

    Args:
        version: Its files.
        trust: The keys that count.
        name: `enigma-lm` or `enigma-flow`.
        tags: As MLflow has them, which anyone may edit; empty without MLflow.

    Returns:
        `signature`, and if it holds `signed_files` and `signed_facts`.
    """
    try:
        stated = read_statement(version, trust)
    except GateError as error:
        problem = error.args[1]
        return [Gate(SIGNATURE, False, problem, f"signed by one of {trust}", error.fix)]
    expected = {entry["name"]: entry["digest"]["sha256"] for entry in stated["subject"]}
    got = {file: sha256_file(path) for file, path in _files(version).items()}
    differ = sorted(
        file
        for file in expected | got
        if expected.get(file) != got.get(file) and not _is_dropped_guard(file, got)
    )
    facts = stated["predicate"]
    others = [
        f"{tag}: signed {facts['tags'][tag]}, stored {value}"
        for tag, value in tags.items()
        if facts["tags"].get(tag, value) != value
    ]
    if facts["model"] != name:
        others.append(f"model: signed {facts['model']}, stored {name}")
    return [
        Gate(SIGNATURE, True, f"signed by {signer_of(version)[:12]}", f"one of {trust}"),
        Gate(
            "signed_files",
            not differ,
            "; ".join(_difference(file, expected, got) for file in differ[:3])
            or f"{len(got)} files, each with the hash that was signed",
            "every file as signed, and no other",
            PUT_BACK,
        ),
        Gate(
            "signed_facts",
            not others,
            "; ".join(others) or f"{len(facts['tags'])} tags as signed",
            "tags as signed",
            "restore the tags of the version in MLflow, or run `enigma register` again",
        ),
    ]


def full_evidence_gates(version: Path, trust: Trust, *, needs_stages: bool = True) -> list[Gate]:
    """Return the gates that also read the stages' statements and the model's own signature.

    The caller has found the `signature` of the version to hold.

    Args:
        version: Its files.
        trust: The keys that count.
        needs_stages: Refuse a version that states no stage, as earlier releases could make one.
    """
    return [_model_signature_gate(version), _stages_gate(version, trust, needed=needs_stages)]


def read_statement(version: Path, trust: Trust) -> Json:
    """Return the signed statement about a version.

    Raises:
        GateError: `signature`, if it has none of a trusted key.
    """
    if not is_signed(version):
        raise GateError(
            SIGNATURE,
            "the version is unsigned",
            "if someone else published it, ask them for a signed one; if it is yours, run `enigma "
            "register` again, which signs it; if it is older than signatures and you know it, "
            "`enigma promote --trust-unsigned` accepts it and says so in the ledger",
        )
    text = (version / VERSION_FILE).read_text(encoding="utf-8")
    return unseal(text, trust, VERSION_KIND, "version.dsse.json")


def is_signed(version: Path) -> bool:
    """Whether a version carries a statement about itself, trusted or not."""
    return (version / VERSION_FILE).is_file()


def signer_of(version: Path) -> str:
    """Return the id of the key that signed a version, which `read_statement` has found to hold."""
    envelope = json.loads((version / VERSION_FILE).read_text(encoding="utf-8"))
    return str(envelope["signatures"][0]["keyid"])


def _files(version: Path) -> dict[str, Path]:
    files = {
        path.relative_to(version).as_posix(): path
        for path in version.rglob("*")
        if path.is_file() or path.is_symlink()
    }
    return {
        name: path
        for name, path in files.items()
        if name not in {VERSION_FILE, WRITTEN_BY_A_DOWNLOAD}
    }


def _is_dropped_guard(name: str, got: Mapping[str, str]) -> bool:
    """Whether a copy lacks a file that only keeps compiled code out; tools drop such names."""
    return PurePosixPath(name).name == COMPILED and name not in got


def _difference(name: str, expected: Mapping[str, str], got: Mapping[str, str]) -> str:
    if name not in expected:
        return f"{name}: not signed"
    return f"{name}: signed sha256 {expected[name][:12]}, got {got.get(name, 'no file')[:12]}"


def _gate(name: str, check: Callable[[], str], bound: str) -> Gate:
    """Return a gate that holds unless the check raises."""
    try:
        return Gate(name, True, check(), bound, PUT_BACK)
    except GateError as error:
        return Gate(name, False, error.args[1], bound, error.fix)


def _model_signature_gate(version: Path) -> Gate:
    """Check OpenSSF Model Signing's signature of the model's directory."""

    def check() -> str:
        import model_signing

        verifying = model_signing.verifying.Config()
        try:
            # The signature of the version holds: its key is trusted.
            verifying.use_elliptic_key_verifier(public_key=version / KEY_FILE)
            verifying.verify(version / "artifacts" / "model", version / MODEL_SIGNATURE)
        except Exception as error:  # noqa: BLE001 - it raises what its parsers do
            raise GateError("model_signature", str(error) or repr(error), PUT_BACK) from None
        return "artifacts/model as signed"

    return _gate("model_signature", check, "OpenSSF Model Signing verifies")


def _stages_gate(version: Path, trust: Trust, *, needed: bool) -> Gate:
    """Check that each stage read what another one made, down to what the version carries."""
    links = {}
    for path in sorted((version / FOLDER).glob("stage.*.dsse.json")):
        try:
            text = path.read_text(encoding="utf-8")
            links[path.name] = unseal(text, trust, LINK_KIND, path.name)
        except GateError as error:
            return Gate("stages", False, error.args[1], "signed statements", error.fix)
    made = {entry["name"]: entry["digest"] for link in links.values() for entry in link["subject"]}
    broken = [
        f"{link['predicate']['name']} read {entry['name']} {entry['digest']}, made was "
        f"{made[entry['name']]}"
        for link in links.values()
        for entry in link["predicate"]["materials"]
        if entry["digest"]["md5"] != made.get(entry["name"], {}).get("md5", entry["digest"]["md5"])
    ]
    if links:
        broken += _not_made(read_statement(version, trust), made)
    return Gate(
        "stages",
        not broken and (len(links) > 0 or not needed),
        "; ".join(broken) or f"{len(links)} stages, each with what the one before made",
        "stages whose materials are products of the stage before",
        PUT_BACK,
    )


def _not_made(stated: Json, made: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Name the files of a version that are not what a stage made, by the hashes that are signed."""
    signed = {
        entry["name"].removeprefix("artifacts/"): entry["digest"]["sha256"]
        for entry in stated["subject"]
        if entry["name"].startswith("artifacts/")
    }
    facts = stated["predicate"]
    places = origins_of(signed, facts["model"], facts["tags"]["profile"])
    return [
        f"{file}: a stage made sha256 {made.get(place, {}).get('sha256')} of {place}, "
        f"the version has {signed[file]}"
        for file, place in places.items()
        if made.get(place, {}).get("sha256") != signed[file]
    ]

"""The key that signs, and the keys that are trusted.

A key is ECDSA on P-256, as PEM. Its id is the SHA-256 of its public key's PEM, as OpenSSF
Model Signing has it (https://github.com/sigstore/model-transparency).
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from platformdirs import user_config_path
from securesystemslib.signer import CryptoSigner, SSlibKey

from pipelines.base.errors import UserError
from pipelines.params import SigningParams, load_params

DEFAULT_KEY = "signing_key.pem"


@dataclass(frozen=True)
class Trust:
    """The keys whose signatures count.

    Args:
        keys: By their ids.
    """

    keys: dict[str, SSlibKey]

    def __str__(self) -> str:
        """The ids, shortened."""
        return ", ".join(key[:12] for key in self.keys) or "(none)"


def signing_params() -> SigningParams:
    """Read the section `signing` of `params.yaml`.

    Raises:
        UserError: If there is none.
    """
    found = load_params().signing
    if found is None:
        raise UserError(
            "params.yaml: expected the section `signing`, found none",
            "add `signing: {key: null, trusted_keys: [], sigstore: false}` at the top level",
        )
    return found


def key_path(params: SigningParams | None = None) -> Path:
    """Return the path of this user's private key, which need not exist.

    Args:
        params: Those of `params.yaml`, if they have been read.
    """
    named = (params or signing_params()).key
    return Path(named).expanduser() if named else user_config_path("enigma") / DEFAULT_KEY


def own_key(params: SigningParams | None = None) -> CryptoSigner:
    """Return this user's key; the first use makes it, readable by its owner only.

    Args:
        params: Those of `params.yaml`, if they have been read.

    Raises:
        UserError: If it is no file of such a key, or others may read it.
    """
    path = key_path(params)
    if not path.exists():
        _make(path)
    if not path.is_file():
        raise UserError(
            f"{path}: expected a private key, got "
            f"{'a directory' if path.is_dir() else 'no regular file'}",
            "name a file: `signing.key` in params.yaml; where there is none yet, a key is made",
        )
    if path.stat().st_mode & 0o077:
        raise UserError(
            f"{path}: expected a private key that only its owner can read, got mode "
            f"{path.stat().st_mode & 0o777:04o}",
            f"run `chmod 600 {path}`; if others may have read it, delete it: a new one is made",
        )
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, error) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise _no_key(path, type(private).__name__)
    return CryptoSigner(private, _public(private.public_key()))


def trust(files: Iterable[Path] | None = None) -> Trust:
    """Return the trusted keys.

    Args:
        files: Public keys as PEM; None for those of `params.yaml` and this user's own.

    Raises:
        UserError: If a file is no such key.
    """
    keys = []
    if files is None:
        params = signing_params()
        if key_path(params).exists():
            keys.append(own_key(params).public_key)
        files = [Path(name).expanduser() for name in params.trusted_keys]
    keys += [_read_public(path) for path in files]
    return Trust({key.keyid: key for key in keys})


def public_pem(key: SSlibKey) -> str:
    """Return a public key as PEM."""
    return str(key.keyval["public"])


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"expected a directory for the signing key in {path.parent}, got: {error.strerror}",
            "name a file in a directory of yours: `signing.key` in params.yaml",
        ) from None
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)
        # Of two processes that make the first key, one wins, and both use its key.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _read_public(path: Path) -> SSlibKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _no_public_key(path, error) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _no_public_key(path, type(key).__name__)
    return _public(key)


def _no_public_key(path: Path, got: object) -> UserError:
    return UserError(
        f"{path}: expected a public key on the curve P-256 as PEM, got: {got}",
        "name the file that the key's owner gave you; of a private key the owner writes it with "
        "`openssl pkey -pubout -in FILE`",
    )


def _public(key: ec.EllipticCurvePublicKey) -> SSlibKey:
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return SSlibKey.from_crypto(key, keyid=hashlib.sha256(pem).hexdigest())


def _no_key(path: Path, got: object) -> UserError:
    return UserError(
        f"{path}: expected a key on the curve P-256 as PEM, got: {got}",
        "make one with `openssl ecparam -genkey -name prime256v1 -noout | openssl pkcs8 -topk8 "
        "-nocrypt`, or delete the file of your own key: the next command makes another",
    )

"""Who made a bundle: signatures in the OpenSSF model-signing format, by keys on elliptic curves.

A signature is a file of the bundle that covers every other one, the manifest with them. No network is used: whoever
checks it brings the public key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecc.bundle.folder import SIGNATURE, Bundle
from sparsecc.errors import InputError, MissingPackageError, SystemFailureError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.files import draft_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_signing import hashing

PASSWORD = "SPARSECC_KEY_PASSWORD"
"""Environment variable that holds the password of an encrypted private key."""
LARGEST = 16 << 20
"""Bytes of a signature file: it lists every file with its hash."""


def sign(request: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Sign the bundle with the private key (PEM, on P-256, P-384 or P-521); replaces an older signature.

    GoalError where the bundle is not what its manifest says, InputError for a key that does not serve.
    """
    signing = _library().signing
    folder, key = Path(request["bundle"]).absolute(), Path(request["key"])
    Bundle.open(folder).require_intact()
    emit({"stage": "sign", "share": 0.1})
    password = os.environ.get(PASSWORD)
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=key, password=password.encode() if password else None
        )
        with draft_in(folder.parent) as (draft, _):
            config.set_hashing_config(_hashing()).sign(folder, draft)
            os.replace(draft, folder / SIGNATURE)
    except OSError as e:
        raise _refused(e, key, folder) from e
    except _refusals() as e:
        why = one_line(str(e), 120)
        raise InputError(
            f"{quoted(str(key))} is no private key that signs: {why}; make one on P-256, set {PASSWORD} where "
            "it is encrypted"
        ) from e
    return {"schema": "sparsecc.signature/1", "bundle": str(folder), "signature": SIGNATURE}


def signature_check(bundle: Bundle, key: str | None) -> dict[str, Any]:
    """Whether the bundle's signature is that of the public key over these very files; None as verdict where
    there is a signature and no key to check it with."""
    path = bundle.folder / SIGNATURE
    if key is None:
        return {"check": "signature", "ok": None, "detail": "signed; give --key to check by whom"}
    if path.is_symlink() or not path.is_file():
        return {"check": "signature", "ok": False, "detail": f"the bundle has no {SIGNATURE}"}
    if path.stat().st_size > LARGEST:
        return {"check": "signature", "ok": False, "detail": f"{SIGNATURE} is too large to be one"}
    verifier, cryptographic = _verifier(Path(key)), _cryptographic()
    try:
        verifier.set_hashing_config(_hashing()).verify(bundle.folder, path)
    except cryptographic:
        return {"check": "signature", "ok": False, "detail": "is not by this key, or was changed"}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as e:
        return {"check": "signature", "ok": False, "detail": one_line(str(e) or type(e).__name__, 160)}
    return {"check": "signature", "ok": True, "detail": f"every file is signed by {quoted(Path(key).name)}"}


def _verifier(key: Path) -> Any:
    try:
        return _library().verifying.Config().use_elliptic_key_verifier(public_key=key)
    except OSError as e:
        raise InputError(f"cannot read the key {quoted(str(key))}: {one_line(e.strerror or str(e))}") from e
    except _refusals() as e:
        raise InputError(
            f"{quoted(str(key))} is no public key on P-256, P-384 or P-521: {one_line(str(e), 120)}"
        ) from e


def _hashing() -> hashing.Config:
    """Every file of the bundle but the signature; links are refused."""
    config: hashing.Config = _library().hashing.Config()
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library() -> Any:
    try:
        import model_signing
    except ImportError as e:
        raise MissingPackageError("signatures need the extra: pip install 'sparsecc[sign]'") from e
    return model_signing


def _cryptographic() -> tuple[type[Exception], ...]:
    """What the cryptography below raises, none of which is a ValueError."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    return InvalidSignature, UnsupportedAlgorithm


def _refusals() -> tuple[type[Exception], ...]:
    """What a file that is no such key raises."""
    return (ValueError, TypeError, AttributeError, *_cryptographic())


def _refused(error: OSError, key: Path, folder: Path) -> InputError | SystemFailureError:
    why = one_line(error.strerror or str(error))
    if not os.access(key, os.R_OK) or key.is_dir():
        return InputError(f"cannot read the key {quoted(str(key))}: {why}; check the path")
    return SystemFailureError(f"cannot write the signature in {one_line(str(folder), 120)}: {why}")

"""Signed bundles: the right key and the very files, or it does not hold."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import sparsecc
from sparsecc.api import sign
from sparsecc.backends.nvidia.plans import read_vouched
from sparsecc.bundle.folder import SIGNATURE, Bundle, manifest_of, write_json
from sparsecc.bundle.signing import PASSWORD, signature_check
from sparsecc.bundle.signing import sign as sign_here
from sparsecc.cli import main
from sparsecc.errors import GoalError, InputError, SystemFailureError, UnavailableError
from sparsecc.tasks.profile import accept_signed_bundle

pytest.importorskip("model_signing", reason="needs the extra: pip install 'sparsecc[sign]'")
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, rsa

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits_lstm.onnx"


def write_pair(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, password: bytes | None = None
) -> None:
    hidden = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, hidden)
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle with the keys of its maker and of someone else."""
    folder = tmp_path_factory.mktemp("signed")
    sparsecc.compile(MODEL, ratio=0.3, measure=False, output=folder / "out")
    write_pair(folder, "maker", ec.generate_private_key(ec.SECP256R1()))
    write_pair(folder, "other", ec.generate_private_key(ec.SECP256R1()))
    assert main(["sign", str(folder / "out"), "--key", str(folder / "maker.pem"), "-q"]) == 0
    return folder


@pytest.fixture
def bundle(place: Path, tmp_path: Path) -> Bundle:
    """A copy under another name: that is not signed."""
    shutil.copytree(place / "out", tmp_path / "copy")
    return Bundle.open(tmp_path / "copy")


def verdict(bundle: Bundle, key: Path | None) -> object:
    return signature_check(bundle, str(key) if key else None)["ok"]


def test_the_command_line_signs_and_verifies(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(place / "out")
    assert (
        main(["verify", out, "--key", str(place / "maker.pub"), "--json"]) == 4
    )  # numerics were not asked for
    checks = {c["check"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["signature"]["ok"] is True
    assert checks["manifest"]["ok"] is True
    assert main(["verify", out, "--key", str(place / "other.pub")]) == 1
    assert "signature failed" in capsys.readouterr().err
    assert main(["verify", out, "--json"]) == 4
    checks = {c["check"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["signature"]["ok"] is None


def test_a_signature_vouches_for_an_engine(bundle: Bundle, place: Path) -> None:
    """Of a key that the user names, over the very bytes; the manifest alone does not."""
    engine = bundle.folder / "model.engine"
    engine.write_bytes(b"an engine of the maker's")
    (bundle.folder / SIGNATURE).unlink()
    write_json(bundle.folder / "manifest.json", manifest_of(bundle.folder, {}))
    sign(bundle.folder, place / "maker.pem")
    with pytest.raises(InputError, match="with --key"):
        read_vouched(engine)
    with pytest.raises(GoalError, match="signature failed"):
        accept_signed_bundle(bundle, str(place / "other.pub"))
    accept_signed_bundle(bundle, str(place / "maker.pub"))
    assert read_vouched(engine) == b"an engine of the maker's"
    engine.write_bytes(b"an engine of a stranger")
    with pytest.raises(InputError, match="with --key"):
        read_vouched(engine)


def test_a_copy_is_as_good(bundle: Bundle, place: Path) -> None:
    assert verdict(bundle, place / "maker.pub") is True
    assert verdict(bundle, place / "other.pub") is False
    assert verdict(bundle, None) is None
    assert bundle.verify_manifest() == []


def test_a_change_with_a_manifest_that_agrees_is_found(bundle: Bundle, place: Path) -> None:
    path = bundle.folder / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    signature = (bundle.folder / SIGNATURE).read_bytes()
    (bundle.folder / SIGNATURE).unlink()
    write_json(bundle.folder / "manifest.json", manifest_of(bundle.folder, {}))
    (bundle.folder / SIGNATURE).write_bytes(signature)
    assert bundle.verify_manifest() == []
    assert verdict(bundle, place / "maker.pub") is False


def test_added_missing_and_linked_files_are_found(bundle: Bundle, place: Path) -> None:
    (bundle.folder / "more.txt").write_text("")
    assert verdict(bundle, place / "maker.pub") is False
    (bundle.folder / "more.txt").unlink()
    (bundle.folder / "report.html").rename(bundle.folder.parent / "report.html")
    assert verdict(bundle, place / "maker.pub") is False
    (bundle.folder / "report.html").symlink_to(bundle.folder.parent / "report.html")
    assert verdict(bundle, place / "maker.pub") is False


def test_damaged_signatures_never_hold_and_never_raise(bundle: Bundle, place: Path) -> None:
    path = bundle.folder / SIGNATURE
    sound = path.read_bytes()
    damaged = [sound[:cut] for cut in range(0, len(sound), 97)]
    damaged += [sound[:i] + bytes([sound[i] ^ 5]) + sound[i + 1 :] for i in range(0, len(sound), 41)]
    damaged += [b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"verificationMaterial": 1}', b"\xff"]
    facts = json.loads(sound)
    for name in (*facts, *facts["dsseEnvelope"]):
        values: tuple[object, ...] = (None, 3, "x", [], {})
        for value in values:
            damaged.append(json.dumps({**facts, name: value}).encode())
            damaged.append(
                json.dumps({**facts, "dsseEnvelope": {**facts["dsseEnvelope"], name: value}}).encode()
            )
    held = 0
    for data in damaged:
        path.write_bytes(data)
        held += verdict(bundle, place / "maker.pub") is True and signed(data) != signed(sound)
    assert held == 0
    path.unlink()
    assert verdict(bundle, place / "maker.pub") is False
    path.symlink_to(place / "out" / SIGNATURE)
    assert verdict(bundle, place / "maker.pub") is False


def signed(data: bytes) -> object:
    """What of a signature file is signed: padding, order and hints may differ."""
    return json.loads(data)["dsseEnvelope"]["payload"]


def test_a_changed_bundle_is_not_signed(bundle: Bundle, place: Path) -> None:
    (bundle.folder / "plan.json").write_text("{}")
    with pytest.raises(GoalError, match="changed"):
        sign(bundle.folder, place / "maker.pem")


def test_keys_that_do_not_serve_are_said_so(bundle: Bundle, place: Path, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    data = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    (tmp_path / "rsa.pem").write_bytes(data)
    before = (bundle.folder / SIGNATURE).read_bytes()
    for wrong in (tmp_path / "rsa.pem", place / "maker.pub", MODEL, tmp_path / "none", tmp_path):
        request = {"bundle": str(bundle.folder), "key": str(wrong)}
        with pytest.raises(InputError, match="key"):
            sign_here(request, lambda event: None)
        with pytest.raises(InputError, match="key"):
            signature_check(bundle, str(wrong if wrong.suffix != ".pub" else tmp_path / "rsa.pem"))
    assert (bundle.folder / SIGNATURE).read_bytes() == before
    assert [path.name for path in bundle.folder.parent.iterdir() if "signature-" in path.name] == []


def test_encrypted_keys_take_their_password_from_the_environment(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, "hidden", ec.generate_private_key(ec.SECP384R1()), b"open sesame")
    request = {"bundle": str(bundle.folder), "key": str(tmp_path / "hidden.pem")}
    for wrong in ("", "wrong"):
        monkeypatch.setenv(PASSWORD, wrong)
        with pytest.raises(InputError, match=PASSWORD):
            sign_here(request, lambda event: None)
    monkeypatch.setenv(PASSWORD, "open sesame")
    sign_here(request, lambda event: None)
    assert verdict(bundle, tmp_path / "hidden.pub") is True


def test_a_disk_that_refuses_keeps_the_old_signature(
    bundle: Bundle, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle.folder / SIGNATURE).read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SystemFailureError, match="No space left"):
        sign_here({"bundle": str(bundle.folder), "key": str(place / "maker.pem")}, lambda event: None)
    assert (bundle.folder / SIGNATURE).read_bytes() == before


def test_without_the_library_it_is_said_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UnavailableError, match=r"sparsecc\[sign\]"):
        sign_here({"bundle": str(bundle.folder), "key": "k"}, lambda event: None)

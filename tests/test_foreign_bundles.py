"""Bundles from strangers: every command opens them through the front door, and what runs code is never loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import yaml

import sparsecc
from sparsecc.data.plan_file import read_plan
from sparsecc.errors import GoalError, InputError
from tests.foreign_files import MODEL, errors_of, seal

pytest_plugins = ("tests.foreign_fixtures",)


COMMANDS = {
    "verify": [],
    "compare": ["{out}"],
    "profile": [],
    "profile --target tensorrt": [],
    "profile --target tensorrt --device local": [],
    "gate": ["--baseline", "{out}", "--max-regression", "90%"],
    "build": [],
    "inspect": [],
    "compile": ["-o", "{out}/../new"],
    "search": ["--ratios", "0.3", "--rounds", "0", "--no-measure", "-o", "{out}/../front"],
    "reduce": ["--check", "false", "-o", "{out}/../reduced.onnx"],
    "sign": ["--key", "{out}/../own.pem"],
}
ON_THE_MODEL = ("inspect", "compile", "search", "reduce")
"""Commands that take a model, no bundle."""


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_springs_a_trap_of_a_bundle(
    command: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An engine that is a library, plug-ins and caches in build.json, code beside it all: a line, or nothing."""
    monkeypatch.chdir(bundle)
    library = bundle / "x.so"
    for name in ("model.engine", "model_ctx.onnx", "timing.cache"):
        shutil.copyfile(library if library.exists() else bundle / "x.pyc", bundle / name)
    (bundle / "model.engine.mac").write_text("0" * 64)
    options = {
        "plugins": str(bundle),
        "timing_cache": str(bundle / "timing.cache"),
        "device": "ssh://nobody.invalid",
    }
    settings = {"schema": "sparsecc.tensorrt-build/1", "options": options}
    (bundle / "build.json").write_text(json.dumps(settings))
    report = json.loads((bundle / "report.json").read_text())
    report["target"]["name"] = "tensorrt"
    (bundle / "report.json").write_text(json.dumps(report))
    seal(bundle)
    words = command.split()
    path = bundle / "model.onnx" if words[0] in ON_THE_MODEL else bundle
    if command == "sign":
        write_private_key(tmp_path / "own.pem")
    more = [text.format(out=bundle) for text in COMMANDS[command]]
    code, lines = errors_of(capsys, words[0], path, *words[1:], *more)
    assert code in (0, 1, 2, 3, 4), lines
    assert len(lines) <= 1, lines


def write_private_key(path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


def small_model(folder: Path, location: str = "") -> Path:
    """y = x W, its weights in the model or where `location` says."""
    graph = onnx.parser.parse_graph("m (float[2, 4] x) => (float[2, 8] y) { y = MatMul(x, w) }")
    weights = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    tensor = onnx.numpy_helper.from_array(weights, "w")
    if location:
        (folder / "w.bin").write_bytes(weights.tobytes())
        onnx.external_data_helper.set_external_data(tensor, location=location, length=128)
        tensor.ClearField("raw_data")
    graph.initializer.append(tensor)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def test_the_original_is_recognised_with_its_external_data(tmp_path: Path) -> None:
    model = small_model(tmp_path, "w.bin")
    out = tmp_path / "out"
    made = sparsecc.compile(model, ratio=0.0, measure=False, output=out)
    digest = hashlib.sha256((tmp_path / "w.bin").read_bytes()).hexdigest()
    assert made.plan["model"]["data"] == {"w.bin": digest}
    assert sparsecc.verify(out, model=model)["ok"]
    (tmp_path / "w.bin").write_bytes(bytes(128))
    with pytest.raises(GoalError, match="is not the model that was compiled"):
        sparsecc.verify(out, model=model)


LOCATIONS = ["../w.bin", "/etc/hostname", "sub/../../w.bin", "link.bin"]


@pytest.mark.parametrize(
    "command", ["verify", "compare", "profile", "gate", "inspect", "compile", "search", "reduce"]
)
def test_no_command_opens_a_file_outside_the_folder(
    command: str, honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle's manifest agrees with its hostile model: the front door stands before every runtime."""
    out = tmp_path / "out"
    shutil.copytree(honest, out)
    more: dict[str, list[object]] = {
        "compare": [out],
        "gate": ["--baseline", out, "--max-regression", "5%"],
        "compile": ["-o", tmp_path / "new"],
        "search": ["--ratios", "0.3", "-o", tmp_path / "front"],
        "reduce": ["--check", "false", "-o", tmp_path / "reduced.onnx"],
    }
    path = out / "model.onnx" if command in ON_THE_MODEL else out
    for location in LOCATIONS:
        shutil.copyfile(small_model(tmp_path, location), out / "model.onnx")
        seal(out)
        if location == "link.bin":
            (out / "link.bin").symlink_to(tmp_path / "w.bin")
        code, lines = errors_of(capsys, command, path, *more.get(command, []))
        assert code in (1, 2), (location, lines)
        assert len(lines) == 1, (location, lines)
        assert "external data" in lines[0] or "'link.bin' is not in the manifest" in lines[0]


def test_verify_stops_at_a_failed_manifest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not what it says is not opened: no model, no plan, no recipe."""
    from sparsecc.tasks import verify as task

    (bundle / "model.onnx").write_bytes(b"not what was hashed")
    for name in ("private_copy", "open_session", "load_ir", "read_plan", "reproduced", "identity_of"):
        monkeypatch.setattr(task, name, lambda *a, name=name: pytest.fail(f"{name} was reached"))
    request = {"bundle": str(bundle), "model": str(MODEL), "reproduce": True}
    checked = task.verify(request, lambda event: None)
    assert [(one["check"], one["ok"]) for one in checked["checks"]] == [("manifest", False)]
    assert not checked["ok"]


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "report.json"])
def test_pipes_and_links_in_a_bundle_are_refused_at_once(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises((InputError, GoalError)):
        sparsecc.verify(bundle, model=MODEL)


def test_files_in_ort_format_pass_the_front_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sparsecc.compile(MODEL, ratio=0.3, emit="ort", measure=False, output=out)
    good = (out / "model.ort").read_bytes()
    assert sparsecc.verify(out)["ok"]
    for bad in (
        good[:6],
        b"\xff\xff\xff\xff" + good[4:],
        good[:200],
        b"ftrt" + good[4:],
        b"\x7fELF" + bytes(99),
    ):
        (out / "model.ort").write_bytes(bad)
        seal(out)
        for command in (["verify", out], ["compare", out, out]):
            code, lines = errors_of(capsys, *command)
            assert (code, len(lines)) == (2, 1), (bad[:8], lines)
    (out / "model.ort").unlink()
    (out / "model.ort").symlink_to(tmp_path / "elsewhere.ort")
    assert errors_of(capsys, "verify", out)[0] == 1


def test_engines_inside_models_are_refused(tmp_path: Path) -> None:
    path = small_model(tmp_path)
    model = onnx.load(path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "EPContext", "com.microsoft"
    onnx.save(model, path)
    with pytest.raises(InputError, match="holds an engine"):
        sparsecc.inspect(path)


HOSTILE_ADDRESSES = [
    "ssh://-oProxyCommand=touch",
    "ssh://a b",
    "adb:;touch canary",
    "ssh://x@-h",
    "file:///x.so",
    "py:x:f",
]


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
def test_a_device_book_holds_addresses_alone(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sparsecc").mkdir()
    (tmp_path / "sparsecc" / "devices.yaml").write_text(yaml.safe_dump({"board": address}))
    monkeypatch.chdir(tmp_path)
    code, lines = errors_of(capsys, "profile", MODEL, "--device", "board")
    assert (code, len(lines)) == (2, 1), lines
    assert not (tmp_path / "canary").exists()


OLD = Path(__file__).parent / "golden" / "first_version"


def test_a_bundle_plan_and_recipe_of_the_first_version_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by the code of 0.1.0 before hashes covered external data; the files stay as they are."""
    model, bundle = OLD / "net.onnx", OLD / "bundle"
    checks = {one["check"]: one for one in sparsecc.verify(bundle, model=model)["checks"]}
    assert {name for name, one in checks.items() if one["ok"]} == {
        "manifest",
        "loads",
        "original",
        "numerics",
    }
    assert "recorded no hash of its external data" in checks["original"]["detail"]
    given = ["--recipe", bundle / "recipe.yaml", "-o", tmp_path / "out", "-q"]
    assert errors_of(capsys, "compile", model, *given) == (0, [])
    plan, old = (json.loads((folder / "plan.json").read_text()) for folder in (tmp_path / "out", bundle))
    assert read_plan(old)["tensors"] == plan["tensors"]

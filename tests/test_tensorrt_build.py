"""`sparsecc build`: bundles of --emit onnx are finished over real SSH, with a stand-in trtexec there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from sparsecc import api
from sparsecc.bundle.folder import Bundle, manifest_of, write_json
from sparsecc.errors import GoalError, InputError, UnavailableError
from sparsecc.report.compile_page import CompilePage
from tests.sshd import Server
from tests.trtexec_stand_in import home_for

BUILD = {"workspace": "1GiB", "optimization_level": "3", "tf32": "false"}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Path:
    """A bundle that waits for its engine."""
    out = tmp_path_factory.mktemp("emitted") / "out"
    api.compile(
        models_dir / "digits_resnet.onnx",
        target="tensorrt",
        ratio=0.3,
        emit="onnx",
        recover="none",
        build=BUILD,
        output=out,
    )
    return out


@pytest.fixture
def bundle(emitted: Path, tmp_path: Path) -> Path:
    """A copy of it to work on."""
    return Path(shutil.copytree(emitted, tmp_path / "out"))


def test_builder_options_reach_the_scripts(emitted: Path) -> None:
    settings = json.loads((emitted / "build.json").read_text())["options"]
    assert settings == {"workspace": 1 << 30, "optimization_level": 3, "tf32": False}
    assert "--builderOptimizationLevel=3" in (emitted / "build.sh").read_text()


def test_it_finishes_on_a_device(bundle: Path, board: Server, tmp_path: Path) -> None:
    _, environment = home_for(board, tmp_path / "home")
    before = Bundle.open(bundle).manifest
    done = subprocess.run(
        [sys.executable, "-m", "sparsecc", "build", str(bundle), "--device", board.spec, "--json"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert built["artefact"] == "model.engine"
    finished = Bundle.open(bundle)
    finished.require_intact()
    after = finished.manifest
    added = {"model.engine", "model.engine.mac", "model.layers.json", "build.log"}
    assert set(after["files"]) - set(before["files"]) == added
    assert after["input"] == before["input"]
    assert after["files"]["model.onnx"] == before["files"]["model.onnx"]
    assert finished.report["build"]["version"] == built["facts"]["version"]
    assert finished.report["after"]["engine_bytes"] == built["bytes"]
    assert finished.report["after"]["bytes"] == (bundle / "model.onnx").stat().st_size
    assert [p.name for p in bundle.parent.iterdir() if p.name.startswith(".out")] == []
    CompilePage.of(finished.report, finished.plan, "", "")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_gpu_the_bundle_stays_as_it_was(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(UnavailableError, match="--device ssh://"):
        api.build(bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    Bundle.open(bundle).require_intact()
    assert [p.name for p in bundle.parent.iterdir()] == ["out"]


def test_what_cannot_be_finished_says_so(bundle: Path, tmp_path: Path) -> None:
    (bundle / "build.json").write_text("{}")
    with pytest.raises(GoalError, match=r"'build\.json' has changed"):
        api.build(bundle)
    with pytest.raises(InputError, match="is not a folder"):
        api.build(tmp_path / "nothing")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_profiling_says_what_it_lacks(bundle: Path, board: Server) -> None:
    """An engine, a GPU, or a key that vouches for the engine: then nothing is sent to the board."""
    with pytest.raises(InputError, match=r"holds no model\.engine: give the folder of a compile"):
        api.profile(bundle, target="tensorrt")
    (bundle / "model.engine").write_bytes(b"plan from elsewhere")
    with pytest.raises(InputError, match=r"was not built for this user at"):
        api.profile(bundle, target="tensorrt", device=board.spec)
    assert not [path for path in board.folder.iterdir() if path.name.startswith("tmp.")]


def test_a_build_file_names_no_plugin_cache_or_device(
    bundle: Path, board: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest agrees with it; what it may not say is said in a line each, and a plug-in is never loaded."""
    settings = json.loads((bundle / "build.json").read_text())
    hostile = {"plugins": str(tmp_path), "timing_cache": "/etc/passwd", "device": "ssh://nobody.invalid"}
    settings["options"] |= {**hostile, "emit": "onnx"}
    (bundle / "build.json").write_text(json.dumps(settings))
    (tmp_path / "trap.so").write_bytes(b"never sent to the board")
    write_json(bundle / "manifest.json", manifest_of(bundle, {}))
    _, environment = home_for(board, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-m", "sparsecc", "build", str(bundle), "--device", board.spec, "--json"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["facts"]
    assert len(facts["left_out"]) == 3  # the device was given again
    assert all(line.startswith("build.json: 'build ") for line in facts["left_out"])
    assert not any("plugin" in part.lower() or "timingCache" in part for part in facts["command"])


def test_a_bundle_whose_model_is_unsound_is_not_built(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"ftrt" + bytes(64))
    write_json(bundle / "manifest.json", manifest_of(bundle, {}))
    with pytest.raises(InputError, match="a TensorRT engine"):
        api.build(bundle)


def test_a_bundle_of_another_target_has_nothing_to_build(tmp_path: Path, models_dir: Path) -> None:
    model, out = models_dir / "digits_resnet.onnx", tmp_path / "out"
    api.compile(model, ratio=0.0, measure=False, output=out)
    with pytest.raises(InputError, match="nothing is left to build for target onnxruntime"):
        api.build(out)


def test_out_to_graphsurgeon_and_back(bundle: Path, tmp_path: Path) -> None:
    graph = Bundle.open(bundle).to_graphsurgeon()
    relus = [node for node in graph.nodes if node.op == "Relu"]
    assert relus
    for node in relus:
        node.op = "Sigmoid"
    made = api.compile(graph, ratio=0.0, measure=False, output=tmp_path / "edited")
    assert made.bundle is not None
    kinds = {node.op_type for node in onnx.load(made.bundle / "model.onnx").graph.node}
    assert "Sigmoid" in kinds
    assert "Relu" not in kinds
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(GoalError, match="has changed"):
        Bundle.open(bundle).to_graphsurgeon()

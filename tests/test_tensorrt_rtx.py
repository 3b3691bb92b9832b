"""TensorRT-RTX for real: its parser and builder run on the CPU, so TensorRT-bound graphs can be built."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.backends.nvidia.api import RTX, Steps
from sparsecc.backends.nvidia.build import build_plan, check_support
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.backends.nvidia.rtx_engine import TensorrtRtx
from sparsecc.errors import InputError, UnavailableError, WorkerError
from tests.tensorrt_graphs import FAILING, GRAPHS, REFUSED, conv_residual, dynamic

pytestmark = pytest.mark.rtx


def _ignore(what: str, share: float) -> None:
    del what, share


def _build(folder: Path, model: object, **options: object) -> dict[str, object]:
    import onnx

    assert isinstance(model, onnx.ModelProto)
    onnx.save(model, folder / "model.onnx")
    return build_plan(
        RTX, folder / "model.onnx", folder / "model.engine", BuildOptions.from_mapping(options), _ignore
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_builds(name: str, tmp_path: Path) -> None:
    artefact = TensorrtRtx().build(ir.from_proto(GRAPHS[name]()), tmp_path, {}, _ignore)
    assert artefact.main == "model.engine"
    assert artefact.files == ("model.onnx", "model.engine", "model.engine.mac")
    assert (tmp_path / "model.engine").stat().st_size == artefact.facts["plan_bytes"] > 10_000
    assert artefact.facts["network_layers"] > 0


@pytest.mark.parametrize("operator", REFUSED)
def test_odd_operator_is_refused_with_its_node(operator: str, tmp_path: Path) -> None:
    model, reason = REFUSED[operator]
    with pytest.raises(InputError) as caught:
        _build(tmp_path, model)
    message = str(caught.value)
    assert f"node 'my_{operator}' ({operator}): " in message
    assert reason in message
    assert "\n" not in message
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.parametrize("case", FAILING)
def test_failed_builds_name_the_node_too(case: str, tmp_path: Path) -> None:
    """What the parser takes and the builder refuses: its layers are traced back to nodes of the model."""
    model, profiles, words = FAILING[case]
    with pytest.raises(InputError) as caught:
        _build(tmp_path, model, profiles=profiles)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.engine").exists()


def test_support_query_names_the_node_and_passes_good_models(tmp_path: Path) -> None:
    import onnx

    onnx.save(REFUSED["Det"][0], tmp_path / "bad.onnx")
    onnx.save(conv_residual(), tmp_path / "good.onnx")
    assert [r.node for r in check_support(RTX, tmp_path / "bad.onnx")] == ["my_Det"]
    assert check_support(RTX, tmp_path / "good.onnx") == []


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x00garbage")
    with pytest.raises(InputError, match="is it a complete ONNX model"):
        build_plan(RTX, tmp_path / "model.onnx", tmp_path / "model.engine", BuildOptions(), _ignore)


def test_profiles_given_and_chosen(tmp_path: Path) -> None:
    chosen = _build(tmp_path, dynamic())
    assert chosen["profiles"] == {"x": [[1, 3, 16, 16], [1, 3, 16, 16], [8, 3, 16, 16]]}
    given = _build(tmp_path, dynamic(), profiles={"x": "2x3x16x16|4x3x16x16|6x3x16x16"})
    assert given["profiles"] == {"x": [[2, 3, 16, 16], [4, 3, 16, 16], [6, 3, 16, 16]]}
    assert _build(tmp_path, conv_residual())["profiles"] == {}


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"x": "1x3x17x16|1x3x17x16|1x3x17x16"}, "does not fit its shape"),
        ({"x": "1x3|1x3|1x3"}, "does not fit its shape"),
        ({"z": "1|1|1"}, "no input 'z' in the model: its inputs are 'x'"),
    ],
)
def test_profiles_that_do_not_fit(profiles: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        _build(tmp_path, dynamic(), profiles=profiles)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"sparse_weights": True}, ["SPARSE_WEIGHTS"]),
        ({"weight_streaming": True}, ["WEIGHT_STREAMING"]),
        ({"optimization_level": 0, "workspace": "64MiB", "tf32": False}, []),
        ({"tactic_sources": "jit_convolutions"}, []),
        ({"hardware_compatible": "ampere+"}, []),
    ],
)
def test_options_build(options: dict[str, object], flags: list[str], tmp_path: Path) -> None:
    assert _build(tmp_path, conv_residual(), **options)["flags"] == flags


def test_compute_capabilities_are_selectable(tmp_path: Path) -> None:
    facts = _build(tmp_path, conv_residual(), compute_capabilities="8.6,sm120")
    assert facts["compute_capabilities"] == ["SM86", "SM120"]
    one = _build(tmp_path, conv_residual(), compute_capabilities="8.6")
    assert one["plan_sha256"] != facts["plan_sha256"]
    with pytest.raises(InputError, match=r"does not build for SM35 .*: it knows CURRENT, SM75"):
        _build(tmp_path, conv_residual(), compute_capabilities="3.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version_compatible": True}, "no version-compatible plans"),
        ({"tactic_sources": "CUBLAS_FOR_EVER"}, "no tactic source 'CUBLAS_FOR_EVER'"),
    ],
)
def test_options_that_rtx_lacks(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        _build(tmp_path, conv_residual(), **options)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="'current' asks for a GPU here"):
        _build(tmp_path, conv_residual(), compute_capabilities="current")
    with pytest.raises(InputError, match="kernels of refittable plans are compiled on a GPU"):
        _build(tmp_path, conv_residual(), refit=True)


def test_plugins_folder_must_hold_plugins(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    with pytest.raises(InputError, match=r"holds no \.so"):
        _build(tmp_path, conv_residual(), plugins=str(tmp_path / "plugins"))
    (tmp_path / "plugins" / "broken.so").write_bytes(b"no library")
    with pytest.raises(InputError, match="does not load: build it for this version"):
        _build(tmp_path, conv_residual(), plugins=str(tmp_path / "plugins"))


def test_progress_goes_up_to_the_end(tmp_path: Path) -> None:
    import onnx

    onnx.save(conv_residual(), tmp_path / "model.onnx")
    seen: list[float] = []
    build_plan(
        RTX,
        tmp_path / "model.onnx",
        tmp_path / "model.engine",
        BuildOptions(),
        lambda what, share: seen.append(share),
    )
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen[-2] > 0.5


def test_a_reader_who_left_cancels_the_build(tmp_path: Path) -> None:
    import onnx

    def gone(what: str, share: float) -> None:
        if share > 0.1:
            raise BrokenPipeError

    onnx.save(conv_residual(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="the build was cancelled"):
        build_plan(RTX, tmp_path / "model.onnx", tmp_path / "model.engine", BuildOptions(), gone)
    assert not (tmp_path / "model.engine").exists()


def test_ctrl_c_stops_the_build_cleanly(tmp_path: Path) -> None:
    import onnx

    onnx.save(conv_residual(), tmp_path / "model.onnx")
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from sparsecc.backends.nvidia.api import RTX
        from sparsecc.backends.nvidia.build import build_plan
        from sparsecc.backends.nvidia.options import BuildOptions

        def press(what, share):
            if share > 0.2:
                os.kill(os.getpid(), signal.SIGINT)

        folder = Path(sys.argv[1])
        try:
            build_plan(RTX, folder / "model.onnx", folder / "model.engine", BuildOptions(), press)
        except KeyboardInterrupt:
            sys.exit(42)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
    )
    assert done.returncode == 42, done.stderr
    assert not (tmp_path / "model.engine").exists()
    assert signal.getsignal(signal.SIGINT) is not None


def test_running_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"plan")
    with pytest.raises(InputError, match=r"was not built for this user"):
        TensorrtRtx().load(tmp_path / "model.engine")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_plan_just_built_is_trusted_and_needs_a_gpu_to_run(tmp_path: Path) -> None:
    backend = TensorrtRtx()
    backend.build(ir.from_proto(conv_residual()), tmp_path, {}, _ignore)
    with pytest.raises(UnavailableError, match="no CUDA driver here"):
        backend.load(tmp_path / "model.engine")
    numerics = backend.numerics_file(tmp_path / "model.engine")
    feeds = {"x": np.ones((1, 3, 16, 16), np.float32)}
    assert backend.load(numerics).run(feeds)["y"].shape == (1, 32, 16, 16)
    (tmp_path / "model.engine").write_bytes(b"another plan")
    with pytest.raises(InputError, match=r"was not built for this user"):
        backend.load(tmp_path / "model.engine")


def test_a_crash_in_native_code_stays_in_the_worker(tmp_path: Path) -> None:
    """A plugin that aborts as it loads: the worst that a build can do to its process."""
    import onnx

    from sparsecc import worker

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for a plugin that crashes")
    (tmp_path / "plugins").mkdir()
    source = tmp_path / "crash.c"
    source.write_text(
        "#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }\n"
    )
    library = tmp_path / "plugins" / "crash.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    onnx.save(conv_residual(), tmp_path / "model.onnx")
    request = {"onnx": str(tmp_path / "model.onnx"), "plan": str(tmp_path / "model.engine")}
    task = "sparsecc.backends.nvidia.build:build_task"
    with pytest.raises(WorkerError) as caught:
        worker.run(
            task,
            request | {"options": {"plugins": str(tmp_path / "plugins")}, "target": "tensorrt-rtx"},
            write=[tmp_path],
        )
    assert "\n" not in str(caught.value)
    facts = worker.run(task, request | {"options": {}, "target": "tensorrt-rtx"}, write=[tmp_path])
    assert facts["plan_bytes"] == (tmp_path / "model.engine").stat().st_size


def test_rtx_builds_only_here(tmp_path: Path) -> None:
    model = ir.from_proto(conv_residual())
    with pytest.raises(InputError, match="built here in Python"):
        TensorrtRtx().build(model, tmp_path, {"device": "ssh://board"}, _ignore)
    with pytest.raises(InputError, match="emit is for --target tensorrt"):
        TensorrtRtx().build(model, tmp_path, {"emit": "onnx"}, _ignore)


def test_nested_phases_make_one_share() -> None:
    steps = Steps()
    steps.start("all", 2)
    steps.start("part", 4)
    assert [steps.step("part", i) for i in range(4)] == [0.125, 0.25, 0.375, 0.5]
    steps.finish("part")
    assert steps.step("all", 0) == 0.5
    steps.start("part", 4)
    assert steps.step("part", 1) == 0.75
    assert steps.step("part", 0) == 0.75

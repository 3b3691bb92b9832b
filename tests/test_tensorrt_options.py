"""What TensorRT is asked for and what it answers, where no library of its is needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecc.backends.nvidia import api as tensorrt_api
from sparsecc.backends.nvidia import build as tensorrt_build
from sparsecc.backends.nvidia import cache as tensorrt_cache
from sparsecc.backends.nvidia.api import TENSORRT, availability, load
from sparsecc.backends.nvidia.device import NoGpuError
from sparsecc.backends.nvidia.engine import TensorrtEngine
from sparsecc.backends.nvidia.errors import build_failure, node_in, parse_refusal, plain, summary
from sparsecc.backends.nvidia.options import (
    BuildOptions,
    Profile,
    as_mapping,
    parse_profile,
    parse_size,
)
from sparsecc.backends.nvidia.plans import read_vouched, vouch
from sparsecc.errors import InputError, SystemFailureError, UnavailableError
from sparsecc.passes.prepare_tensorrt import prepare
from sparsecc.system.user_key import code_of, is_code, key_path
from tests.tensorrt_graphs import conv_residual

NO_GPU = not Path("/dev/nvidia0").exists()


def _ignore(what: str, share: float) -> None:
    del what, share


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("512M", 512 << 20), ("64 MB", 64 << 20), ("100", 100), (7, 7)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspac": 1}, "did you mean 'workspace'"),
        ({"workspace": "much"}, "give a size such as 4GiB"),
        ({"workspace": 0}, "give a size such as 4GiB"),
        ({"optimization_level": 6}, "goes from 0 to 5"),
        ({"optimization_level": True}, "goes from 0 to 5"),
        ({"emit": "plan"}, "is one of engine, onnx"),
        ({"builder": "make"}, "is one of auto, api, trtexec"),
        ({"hardware_compatible": "all"}, "is one of none, ampere"),
        ({"compute_capabilities": "fast"}, "write it as 8.6"),
        ({"refit": "yes"}, "'refit' must be true or false"),
        ({"plugins": "/no/such/folder"}, "does not exist"),
        ({"tactic_sources": 3}, "give names joined by commas"),
        ({"profiles": "x"}, "must map input names"),
        ({"profiles": {"x": "1x3|2x3"}}, "has 2 shapes"),
        ({"profiles": {"x": "1x3|2x3|2"}}, "mixes ranks"),
        ({"profiles": {"x": "4x3|2x3|8x3"}}, "min <= opt <= max"),
        ({"profiles": {"x": "1xa"}}, "write it as 1x3x224x224"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        BuildOptions.from_mapping(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given_as", ["8.6", "86", "sm86", "SM_86", 8.6])
def test_capabilities_are_understood(given_as: object) -> None:
    assert BuildOptions.from_mapping({"compute_capabilities": given_as}).compute_capabilities == ("SM86",)


_SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(_SIZES, st.integers(0, 3), st.integers(0, 3))
def test_options_survive_their_json(sizes: list[int], grow: int, more: int) -> None:
    low = tuple(sizes)
    profile = Profile(low, tuple(s + grow for s in low), tuple(s + grow + more for s in low))
    options = BuildOptions(
        workspace=1 << 30, profiles={"x": profile}, refit=True, compute_capabilities=("SM86",)
    )
    assert BuildOptions.from_mapping(json.loads(json.dumps(as_mapping(options)))) == options


def test_one_shape_is_all_three() -> None:
    assert parse_profile("x", "2x3") == Profile((2, 3), (2, 3), (2, 3))


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network must have at least one "
            "output. In validate at /_src/optimizer/api/network.cpp:3810)",
            "Network must have at least one output",
        ),
        ("Assertion failed: axis < rank: The axis is out of range.", "The axis is out of range"),
        ("Invalid Node - n\nShape Error\n[checkMacros.cpp::catchCudaError::250] cudaError 35", "Shape Error"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        (
            "Error Code 4: API Usage Error (ITopKLayer best: best: K exceeds the maximum value allowed (3840). In "
            "processCheck at /_src/a.cpp:1066 In analyzeShapes at /_src/b.cpp:2825)",
            "K exceeds the maximum value allowed (3840)",
        ),
    ],
)
def test_the_fact_of_a_message(said: str, fact: str) -> None:
    assert plain(said) == fact


def test_summary_counts_the_others() -> None:
    refusals = [parse_refusal("false", f"n{i}", op) for i, op in enumerate(("Det", "Unique", "Unique"))]
    assert summary(refusals).endswith("; 2 more of Unique")
    assert summary(refusals[:1]).startswith("node 'n0' (Det): ")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("Error Code 7: BuildCanceled (Build canceled by user)", "start it again"),
        (
            "Network has dynamic or shape inputs, but no optimization profile has been defined",
            "--input name:min",
        ),
        ("Unable to load library: libnvinfer_lean.so.1", "tensorrt-lean"),
        ("Could not find any implementation for node Conv_0", "workspace"),
        ("CUDA initialization failure with error: cudaError 35", "--target tensorrt-rtx"),
        ("something new", "--debug"),
    ],
)
def test_failed_builds_say_what_to_do(line: str, remedy: str) -> None:
    assert remedy in build_failure(["noise", line] if remedy != "--debug" else [line], {}).remedy


NODES = {"conv": "Conv", "conv_1": "Conv", "/block.0/up": "Resize", "relu": "Relu", "head": "Gemm"}


@pytest.mark.parametrize(
    ("line", "node"),
    [
        (
            "Error Code 10: Internal Error (Could not find any implementation for node conv_1 + relu.)",
            "conv_1",
        ),
        ("Could not find any implementation for node {ForeignNode[(Unnamed Layer* 4)...head]}.", "head"),
        ("Could not find any implementation for node relu_tactic due to insufficient memory", "relu"),
        (
            "Error Code 4: API Usage Error (IShuffleLayer /block.0/up: reshape changes volume. Bad",
            "/block.0/up",
        ),
        ("36: deconv: b-(bf16[1]), stream = 0 // /block.0/up\n   | n_groups: 1", "/block.0/up"),
        ("__mye512conv_alpha-1F:(f32[][]so[]", "conv"),
        ("Could not find any implementation for node conv_12.", ""),
        ("the conv went wrong", ""),
    ],
)
def test_layers_in_errors_are_traced_to_nodes(line: str, node: str) -> None:
    assert node_in(line, NODES) == node


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_without_a_gpu_the_three_ways_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        TensorrtEngine().build(ir.from_proto(conv_residual()), tmp_path, {}, _ignore)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    for way in ("--target tensorrt-rtx", "--device ssh://user@host", "--emit onnx"):
        assert way in message
    assert list(tmp_path.iterdir()) == []


def test_installed_but_no_gpu_is_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> list[object]:
        raise NoGpuError("the CUDA driver is not installed")

    monkeypatch.setattr(tensorrt_api, "_module_name", lambda flavour: "tensorrt")
    monkeypatch.setattr(tensorrt_api, "gpus", no_gpu)
    found = availability(TENSORRT)
    assert not found.ok
    assert found.reason == "TensorRT builds only beside a GPU and the CUDA driver is not installed"


def test_broken_installation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "_module_name", lambda flavour: "tensorrt_that_is_not_there")
    monkeypatch.setattr(tensorrt_api, "gpus", lambda: [object()])
    with pytest.raises(UnavailableError, match=r"does not load .*: reinstall"):
        load(TENSORRT)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """An engine that a process of this user built, in a bundle whose manifest agrees."""
    (tmp_path / "model.onnx").write_bytes(b"weights")
    path = tmp_path / "model.engine"
    path.write_bytes(b"plan of ours")
    assert vouch(path) == "model.engine.mac"
    entry = {"sha256": hashlib.sha256(b"plan of ours").hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"model.engine": entry}}))
    return path


def test_plans_of_this_user_are_read(plan: Path, tmp_path: Path) -> None:
    assert read_vouched(plan) == b"plan of ours"
    elsewhere = shutil.copytree(plan.parent, tmp_path.parent / "moved")
    assert read_vouched(elsewhere / plan.name) == b"plan of ours"


def test_what_a_board_built_is_loaded_there_alone(plan: Path) -> None:
    vouch(plan, "ssh://board")
    assert read_vouched(plan, "ssh://board") == b"plan of ours"
    for place in ("local", "ssh://other"):
        with pytest.raises(InputError, match="was not built for this user at"):
            read_vouched(plan, place)


def test_no_plan_that_only_a_manifest_vouches_for_reaches_tensorrt(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever changes: the plan, its weights, the code, or who asks."""
    monkeypatch.setattr("sparsecc.backends.nvidia.run.load", lambda *a: pytest.fail("it was loaded"))

    def is_refused() -> None:
        with pytest.raises(InputError, match="an engine runs code when it is loaded"):
            TensorrtEngine().load(plan)

    for path in (plan, plan.with_name("model.onnx"), plan.with_name("model.engine.mac")):
        good = path.read_bytes()
        for position in range(len(good)):
            path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            is_refused()
        path.write_bytes(good)
    read_vouched(plan)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(plan.parent / "someone"))
    is_refused()
    vouch(plan)
    read_vouched(plan)
    plan.with_name("model.engine.mac").unlink()
    is_refused()


def test_the_key_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert not is_code("", "engine", b"x")
    assert not key_path().exists()
    code = code_of("engine", b"x")
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    assert is_code(code, "engine", b"x")
    assert not is_code(code, "another purpose", b"x")
    assert not is_code(code, "engine", b"y")
    key_path().chmod(0o640)
    with pytest.raises(SystemFailureError, match="is not private to this user"):
        code_of("engine", b"x")
    key_path().unlink()
    key_path().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemFailureError, match="cannot read or make the key"):
        code_of("engine", b"x")


def test_cache_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = os.umask(0)
    try:
        folder = tensorrt_cache.private_folder()
        tensorrt_cache.write_own(folder / "timing", b"timings")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "timing").stat().st_mode) == 0o600
    assert tensorrt_cache.read_own(folder / "timing") == b"timings"


def test_foreign_or_changed_caches_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "timing"
    assert tensorrt_cache.read_own(path) == b""
    path.write_bytes(b"from somebody")
    assert tensorrt_cache.read_own(path) == b""
    tensorrt_cache.write_own(path, b"timings")
    path.write_bytes(b"timingz")
    assert tensorrt_cache.read_own(path) == b""
    tensorrt_cache.write_own(path, b"timings")
    (tmp_path / "link").symlink_to(path)
    shutil.copy(tmp_path / "timing.mac", tmp_path / "link.mac")
    assert tensorrt_cache.read_own(tmp_path / "link") == b""


def test_a_folder_that_a_runtime_loads_holds_what_this_user_signed(tmp_path: Path) -> None:
    """ONNX Runtime's TensorRT provider loads every engine in its cache by name: others' are removed before."""
    (tmp_path / "ours.engine").write_bytes(b"built here")
    tensorrt_cache.sign_all(tmp_path)
    (tmp_path / "planted.engine").write_bytes(b"evil")
    (tmp_path / "planted.engine.mac").write_bytes((tmp_path / "ours.engine.mac").read_bytes())
    tensorrt_cache.keep_only_own(tmp_path)
    assert {path.name for path in tmp_path.glob("*.engine")} == {"ours.engine"}


def test_caches_differ_by_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = set()
    for version, gpu in (("10.13.3", "NVIDIA A"), ("11.4.1", "NVIDIA A"), ("11.4.1", "NVIDIA B / x")):
        monkeypatch.setattr(tensorrt_cache, "_gpu_name", lambda gpu=gpu: gpu)
        path = tensorrt_cache.TimingCacheFile.open(TENSORRT, version, None).path
        assert path is not None
        assert path.parent == tensorrt_cache.private_folder()
        names.add(path.name)
    assert len(names) == 3
    assert tensorrt_cache.TimingCacheFile.open(tensorrt_api.RTX, "1", None).path is None


def _idle_model() -> ir.Model:
    return ir.from_onnx_text(
        """<ir_version: 7, opset_import: ["" : 13]>
        g (float[2,3] x, float[3] w) => (float[2,3] y, float[2,3] z) <float[3] w = {1.0, 2.0, 3.0}> {
            a = Identity(x)
            b = Cast<to = 1>(a)
            c = Dropout(b)
            d = Add(c, w)
            y = Identity(d)
            z = Relu(d)
        }"""
    )


def test_preparing_changes_no_output_and_names_all_nodes() -> None:
    model = _idle_model()
    model.graph.node(3).name = "taken"
    model.graph.node(5).name = "taken"
    before = ir.to_proto(_idle_model()).SerializeToString()
    facts = prepare(model)
    assert facts == {"inputs_that_were_weights": 1, "idle_nodes_dropped": 3, "nodes_named": 2}
    assert [node.op_type for node in model.graph] == ["Add", "Identity", "Relu"]
    names = [node.name for node in model.graph]
    assert len(set(names)) == 3
    assert names[0] == "taken"
    assert [value.name for value in model.graph.inputs] == ["x"]
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    outputs = []
    for data in (before, ir.to_proto(model).SerializeToString()):
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, feeds))
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_preparing_twice_changes_nothing_more() -> None:
    model = _idle_model()
    prepare(model)
    first = ir.to_proto(model).SerializeToString(deterministic=True)
    assert prepare(model) == {"inputs_that_were_weights": 0, "idle_nodes_dropped": 0, "nodes_named": 0}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == first


def test_every_network_is_strongly_typed() -> None:
    """Of the builders at hand RTX knows nothing else, so what is asked of TensorRT 10 is looked at itself."""
    asked: list[int] = []

    class Asked:
        def create_network(self, flags: int) -> object:
            asked.append(flags)
            return object()

    flags = SimpleNamespace(STRONGLY_TYPED=3)
    api: Any = SimpleNamespace(
        NetworkDefinitionCreationFlag=flags, OnnxParser=lambda network, logger: object()
    )
    builder: Any = Asked()
    tensorrt_build._new_parser(api, builder, object())
    assert asked == [1 << 3]

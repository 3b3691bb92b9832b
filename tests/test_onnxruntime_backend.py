"""The ONNX Runtime backend on real sessions: what it writes, how it refuses, and its kernel census."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsecc.backends import backend_named, backend_names
from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
from sparsecc.errors import InputError
from sparsecc.runtime.kernel_census import census, float_reason

RNG = np.random.default_rng(0)


def silent(what: str, share: float) -> None:
    """No progress is shown."""


def saved(
    folder: Path, nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, np.ndarray]
) -> Path:
    """A model of those nodes; its output is the last node's."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "input.onnx")
    return folder / "input.onnx"


def convnet(folder: Path, inner: int = 16, group: int = 1) -> Path:
    """Two convolutions, `inner` channels between them; the second has `group` groups."""
    weights = {
        "w1": RNG.standard_normal((inner, 16, 3, 3)).astype(np.float32),
        "w2": RNG.standard_normal((inner if group > 1 else 16, inner // group, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", doc_string="made at /home/someone"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="second", group=group),
    ]
    return saved(folder, nodes, {"x": ["N", 16, 9, 9]}, weights)


def built(source: Path, folder: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    folder.mkdir()
    artefact = OnnxRuntimeCpu().build(ir.load(source), folder, options, silent)
    assert sorted(path.name for path in folder.iterdir()) == sorted(artefact.files)
    return folder / artefact.main, artefact.facts


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all"])
def test_what_is_built_computes_the_same(tmp_path: Path, level: str) -> None:
    source = convnet(tmp_path)
    path, facts = built(source, tmp_path / "out", level=level)
    feeds = {"x": RNG.standard_normal((2, 16, 9, 9)).astype(np.float32)}
    expected = OnnxRuntimeCpu().load(source, level="none").run(feeds)["y"]
    assert facts["level"] == level
    np.testing.assert_allclose(OnnxRuntimeCpu().load(path).run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)


def test_extended_fuses_and_holds_no_layout_of_this_processor(tmp_path: Path) -> None:
    path, _ = built(convnet(tmp_path), tmp_path / "out")
    model = ir.load(path)
    assert {node.op_type for node in model.graph} == {"FusedConv", "Conv"}
    assert set(model.opset_imports) == {"", "com.microsoft"}


def test_plain_onnx_keeps_every_node(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    backend_named("onnx").build(ir.load(convnet(tmp_path)), tmp_path / "out", {}, silent)
    assert [node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph] == [
        "Conv",
        "Relu",
        "Conv",
    ]


def test_nothing_tells_where_it_was_made_and_the_input_stays_as_it_was(tmp_path: Path) -> None:
    source = convnet(tmp_path)
    model = ir.load(source)
    model.graph.metadata_props["path"] = model.graph[0].metadata_props["path"] = "/home/someone"
    (tmp_path / "out").mkdir()
    OnnxRuntimeCpu().build(model, tmp_path / "out", {"level": "none"}, silent)
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b"someone" not in content
    assert str(tmp_path).encode() not in content
    assert model.graph.metadata_props == {"path": "/home/someone"}
    assert model.graph[0].doc_string == "made at /home/someone"


BUILD = """
import sys, pathlib, onnx_ir as ir
from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
OnnxRuntimeCpu().build(ir.load(sys.argv[1]), pathlib.Path(sys.argv[2]), {}, lambda what, share: None)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path, root: Path) -> None:
    source = convnet(tmp_path)
    digests = set()
    for seed in ("1", "2"):
        out = tmp_path / f"somewhere{seed * int(seed)}"
        out.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", BUILD, str(source), str(out)], check=True, env=environment)
        digests.add(hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("level", ["none", "extended"])
def test_large_weights_lie_beside_the_model(tmp_path: Path, level: str) -> None:
    source = convnet(tmp_path, inner=64)
    path, _ = built(source, tmp_path / "out", external_above=1000, level=level)
    assert path.stat().st_size < 5000 < (tmp_path / "out" / "model.onnx.data").stat().st_size
    feeds = {"x": np.ones((1, 16, 9, 9), np.float32)}
    expected = OnnxRuntimeCpu().load(source, level="none").run(feeds)["y"]
    np.testing.assert_allclose(OnnxRuntimeCpu().load(path).run(feeds)["y"], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("level", "kernel", "blocked"), [("extended", "FusedConv", 0), ("all", "nchwc", 2)])
def test_the_ort_format_comes_with_its_operators(
    tmp_path: Path, level: str, kernel: str, blocked: int
) -> None:
    """It runs as it was written, so the blocked layout is there only when it was asked for."""
    if blocked and "x86" not in platform.machine():
        pytest.skip("the layout of x64")
    source = convnet(tmp_path)
    path, _ = built(source, tmp_path / "out", ort_format=True, level=level)
    assert path.name == "model.ort"
    config = (tmp_path / "out" / "required_operators_and_types.config").read_text()
    assert kernel in config
    assert str(tmp_path) not in config
    feeds = {"x": np.ones((1, 16, 9, 9), np.float32)}
    expected = OnnxRuntimeCpu().load(source, level="none").run(feeds)["y"]
    np.testing.assert_allclose(OnnxRuntimeCpu().load(path).run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)
    assert census(path)["blocked_convs"] == blocked


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"level": "most"}, "unknown level"),
        ({"fast": True}, "unknown build option"),
        ({"platform": "x"}, "platform"),
    ],
)
def test_unknown_build_options_are_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        built(convnet(tmp_path), tmp_path / "out", **options)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_refused_model_leaves_nothing_and_one_line(tmp_path: Path) -> None:
    source = saved(tmp_path, [helper.make_node("Frobnicate", ["x"], ["y"])], {"x": [2]}, {})
    with pytest.raises(InputError) as caught:
        built(source, tmp_path / "out")
    message = str(caught.value)
    assert "Frobnicate" in message
    for noise in ("\n", "[ONNXRuntimeError]", "onnxruntime::", ".cc:", str(tmp_path)):
        assert noise not in message
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_inputs_are_one_line(tmp_path: Path) -> None:
    runner = OnnxRuntimeCpu().load(convnet(tmp_path))
    for feeds in (
        {},
        {"z": np.ones(1)},
        {"x": np.ones((1, 3, 9, 9), np.float32)},
        {"x": np.ones((1, 16, 9, 9))},
    ):
        with pytest.raises(InputError, match="cannot run it on these inputs") as caught:
            runner.run(feeds)
        assert "\n" not in str(caught.value)


def test_missing_files_and_wrong_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        OnnxRuntimeCpu().load(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="threads"):
        OnnxRuntimeCpu().load(convnet(tmp_path), threads=0)


def test_bytes_are_loaded_like_files(tmp_path: Path) -> None:
    path = convnet(tmp_path)
    feeds = {"x": np.ones((1, 16, 9, 9), np.float32)}
    runs = [OnnxRuntimeCpu().load(source).run(feeds)["y"] for source in (path, path.read_bytes())]
    np.testing.assert_array_equal(runs[0], runs[1])


def test_bfloat16_goes_in_and_comes_out() -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 17]> m (bfloat16[3] x) => (bfloat16[3] y) { y = Identity (x) }'
    )
    content = ir.to_proto(ir.from_onnx_text(text)).SerializeToString()
    values = np.array([1.5, -2, 0.25], ml_dtypes.bfloat16)
    result = OnnxRuntimeCpu().load(content).run({"x": values})["y"]
    assert result.dtype == ml_dtypes.bfloat16
    assert (result == values).all()


def test_backends_are_found_by_name() -> None:
    assert {"onnx", "onnxruntime"} <= set(backend_names())
    assert backend_named("onnxruntime").availability().ok
    with pytest.raises(InputError, match="unknown backend 'x'"):
        backend_named("x")


X64 = pytest.mark.skipif("x86" not in platform.machine(), reason="the layout of x64")


@X64
@pytest.mark.parametrize(
    ("inner", "group"), [(16, 1), (18, 1), (20, 1), (45, 1), (48, 1), (12, 12), (18, 18)]
)
@pytest.mark.parametrize("groups_of", [0, 8, 16])
def test_misaligned_convolutions_are_those_outside_the_blocked_layout(
    tmp_path: Path, inner: int, group: int, groups_of: int
) -> None:
    if groups_of:
        inner, group = 4 * groups_of, 4
    told = census(convnet(tmp_path, inner, group))
    outside = [conv for conv in told["misaligned"] if conv["effect"] == "outside"]
    assert told["blocked_convs"] == 2 - len(outside)


def quantized(
    folder: Path, activation: type, *, output: bool = True, bias: bool = False, fixed: bool = True
) -> Path:
    """A convolution between Q/DQ pairs, with one rule of the fusion broken or none."""
    zero = activation(128) if activation is np.uint8 else activation(0)
    weights = {
        "s": np.float32(0.1), "z": np.array(zero), "ws": np.float32(0.02), "wz": np.int8(0),
        "w": RNG.integers(-99, 99, (16, 16, 3, 3)).astype(np.int8),
    }  # fmt: skip
    source = ["DequantizeLinear", ["w", "ws", "wz"]] if fixed else ["Identity", ["v"]]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node(str(source[0]), list(source[1]), ["wd"]),
        helper.make_node("Conv", ["xd", "wd", *(["b"] if bias else [])], ["c"], name="conv"),
    ]
    if output:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]))
    inputs: dict[str, list[Any]] = {"x": [1, 16, 9, 9]} | ({} if fixed else {"v": [16, 16, 3, 3]})
    inputs |= {"b": [16]} if bias else {}
    return saved(folder, nodes, inputs, {name: np.asarray(value) for name, value in weights.items()})


def test_an_integer_convolution_is_counted(tmp_path: Path) -> None:
    told = census(quantized(tmp_path, np.uint8))
    assert told["integer"] == {"QLinearConv": 1}
    assert told["in_float"] == []


@X64
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"output": False}, "output is not quantized"),
        ({"bias": True}, "bias is not constant"),
        ({"fixed": False}, "weight is not constant"),
    ],
)
def test_a_convolution_left_in_float_says_which_rule_failed(
    tmp_path: Path, broken: dict[str, bool], reason: str
) -> None:
    told = census(quantized(tmp_path, np.uint8, **broken))
    assert told["integer"] == {}
    assert [entry["reason"].startswith(reason) for entry in told["in_float"]] == [True], told["in_float"]


@X64
def test_int8_activations_are_blamed_on_x64(tmp_path: Path) -> None:
    model = ir.load(quantized(tmp_path, np.int8))
    conv = next(node for node in model.graph if node.op_type == "Conv")
    assert float_reason(conv, "x86_64") == "activation is int8: use uint8 on x64"
    assert "int8" not in float_reason(conv, "aarch64")


def test_a_float_model_has_no_layers_left_in_float(tmp_path: Path) -> None:
    told = census(convnet(tmp_path))
    assert told["in_float"] == []
    assert told["float"] == {"Conv": 2}

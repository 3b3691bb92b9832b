"""Small ONNX graphs that TensorRT builds, and odd ones that it must refuse, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Value = tuple[str, int, Sequence[int | str]]


def _weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in shapes.items()}


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: dict[str, np.ndarray] | None = None,
    domain: str = "",
) -> onnx.ModelProto:
    ins, outs = ([helper.make_tensor_value_info(*v) for v in values] for values in (inputs, outputs))
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    imports = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    graph = helper.make_graph(list(nodes), "g", ins, outs, tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def conv_residual(batch: int | str = 1) -> onnx.ModelProto:
    """Two convolutions and the skip around the second."""
    node = helper.make_node
    return _model(
        [
            node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1] * 4),
            node("Relu", ["a"], ["b"], "relu"),
            node("Conv", ["b", "w2"], ["c"], "conv2", pads=[1] * 4),
            node("Add", ["b", "c"], ["y"], "add"),
        ],
        [("x", TensorProto.FLOAT, (batch, 3, 16, 16))],
        [("y", TensorProto.FLOAT, (batch, 32, 16, 16))],
        _weights(1, w1=(32, 3, 3, 3), w2=(32, 32, 3, 3)),
    )


def depthwise() -> onnx.ModelProto:
    """A depthwise convolution between two pointwise ones."""
    node = helper.make_node
    return _model(
        [
            node("Conv", ["x", "w1"], ["a"], "expand"),
            node("Clip", ["a", "low", "high"], ["b"], "relu6"),
            node("Conv", ["b", "w2"], ["c"], "depthwise", group=32, pads=[1] * 4),
            node("Conv", ["c", "w3"], ["y"], "project"),
        ],
        [("x", TensorProto.FLOAT, (1, 16, 16, 16))],
        [("y", TensorProto.FLOAT, (1, 16, 16, 16))],
        _weights(2, w1=(32, 16, 1, 1), w2=(32, 1, 3, 3), w3=(16, 32, 1, 1))
        | {"low": np.float32(0).reshape(()), "high": np.float32(6).reshape(())},
    )


def attention() -> onnx.ModelProto:
    """Four heads of sixteen over thirty-two tokens."""
    node, heads = helper.make_node, np.array([1, 32, 4, 16], np.int64)
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("MatMul", ["x", f"w{name}"], [f"{name}1"], f"{name}_projection"))
        nodes.append(node("Reshape", [f"{name}1", "heads"], [f"{name}2"], f"{name}_split"))
        nodes.append(node("Transpose", [f"{name}2"], [f"{name}3"], f"{name}_turn", perm=order))
    nodes += [
        node("MatMul", ["q3", "k3"], ["s"], "scores"),
        node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        node("MatMul", ["p", "v3"], ["o1"], "mix"),
        node("Transpose", ["o1"], ["o2"], "turn_back", perm=[0, 2, 1, 3]),
        node("Reshape", ["o2", "flat"], ["o3"], "join"),
        node("MatMul", ["o3", "wo"], ["y"], "output"),
    ]
    return _model(
        nodes,
        [("x", TensorProto.FLOAT, (1, 32, 64))],
        [("y", TensorProto.FLOAT, (1, 32, 64))],
        _weights(3, wq=(64, 64), wk=(64, 64), wv=(64, 64), wo=(64, 64))
        | {"heads": heads, "flat": np.array([1, 32, 64], np.int64)},
    )


def layernorm() -> onnx.ModelProto:
    """LayerNormalization, a Gemm, and GELU written with Erf."""
    node = helper.make_node
    return _model(
        [
            node("LayerNormalization", ["x", "scale", "bias"], ["a"], "norm", axis=-1),
            node("Gemm", ["a", "w", "b"], ["c"], "gemm", transB=1),
            node("Div", ["c", "root"], ["d"], "div"),
            node("Erf", ["d"], ["e"], "erf"),
            node("Add", ["e", "one"], ["f"], "plus"),
            node("Mul", ["c", "f"], ["y"], "gelu"),
        ],
        [("x", TensorProto.FLOAT, (8, 32))],
        [("y", TensorProto.FLOAT, (8, 64))],
        _weights(4, scale=(32,), bias=(32,), w=(64, 32), b=(64,))
        | {"root": np.float32(2**0.5).reshape(()), "one": np.float32(1).reshape(())},
    )


def dynamic() -> onnx.ModelProto:
    """The residual block with a free batch."""
    return conv_residual("batch")


def quantized() -> onnx.ModelProto:
    """A convolution in int8 by QuantizeLinear and DequantizeLinear, in the form that TensorRT wants."""
    node = helper.make_node
    weight = _weights(5, w=(32, 16, 3, 3))["w"]
    scales = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    return _model(
        [
            node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], "quantize_x"),
            node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], "dequantize_x"),
            node("QuantizeLinear", ["w", "sw", "zw"], ["wq"], "quantize_w", axis=0),
            node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], "dequantize_w", axis=0),
            node("Conv", ["xd", "wd"], ["y"], "conv", pads=[1] * 4),
        ],
        [("x", TensorProto.FLOAT, (1, 16, 16, 16))],
        [("y", TensorProto.FLOAT, (1, 32, 16, 16))],
        {
            "w": weight,
            "sx": np.float32(0.02).reshape(()),
            "zx": np.int8(0).reshape(()),
            "sw": scales,
            "zw": np.zeros(32, np.int8),
        },
    )


def half() -> onnx.ModelProto:
    """A matrix product in fp16 between casts."""
    node = helper.make_node
    return _model(
        [
            node("Cast", ["x"], ["a"], "down", to=TensorProto.FLOAT16),
            node("MatMul", ["a", "w"], ["b"], "product"),
            node("Cast", ["b"], ["y"], "up", to=TensorProto.FLOAT),
        ],
        [("x", TensorProto.FLOAT, (8, 64))],
        [("y", TensorProto.FLOAT, (8, 64))],
        {"w": _weights(6, w=(64, 64))["w"].astype(np.float16)},
    )


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (conv_residual, depthwise, attention, layernorm, dynamic, quantized, half)
}


def _one(op: str, inputs: Sequence[Value], output: Value, domain: str = "") -> onnx.ModelProto:
    node = helper.make_node(op, [i[0] for i in inputs], [output[0]], f"my_{op}", domain=domain)
    return _model([node], inputs, [output], domain=domain)


_X: Value = ("x", TensorProto.FLOAT, (2, 3))
_Y: Value = ("y", TensorProto.FLOAT, (2, 3))
REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "Det": (
        _one("Det", [("x", TensorProto.FLOAT, (3, 3))], ("y", TensorProto.FLOAT, ())),
        "does not support this operator",
    ),
    "Unique": (_one("Unique", [_X], ("y", TensorProto.FLOAT, ("n",))), "does not support this operator"),
    "Bernoulli": (_one("Bernoulli", [_X], _Y), "does not support this operator"),
    "MyOp": (_one("MyOp", [_X], _Y, domain="com.acme"), "no plugin of that name is loaded"),
    "DynamicQuantizeLinear": (
        _model(
            [
                helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "my_DynamicQuantizeLinear"),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "after"),
            ],
            [_X],
            [_Y],
        ),
        "quantize with --target tensorrt",
    ),
    "Add": (
        _one("Add", [_X, ("z", TensorProto.FLOAT16, (2, 3))], _Y),
        "a strongly typed network converts nothing by itself",
    ),
    "QuantizeLinear": (
        _model(
            [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], "my_QuantizeLinear")],
            [_X],
            [("y", TensorProto.UINT8, (2, 3))],
            {"s": np.float32(0.1).reshape(()), "z": np.uint8(3).reshape(())},
        ),
        "TensorRT quantizes symmetrically only",
    ),
    "Reshape": (
        _model(
            [helper.make_node("Reshape", ["x", "to"], ["y"], "my_Reshape")],
            [_X],
            [("y", TensorProto.FLOAT, (7,))],
            {"to": np.array([7], np.int64)},
        ),
        "does not hold as many elements",
    ),
}


def _bf16_upsampling() -> onnx.ModelProto:
    node, bf16 = helper.make_node, TensorProto.BFLOAT16
    model = _model(
        [
            node("Cast", ["x"], ["a"], "down", to=bf16),
            node("Cast", ["w"], ["wb"], "down_weight", to=bf16),
            node("ConvTranspose", ["a", "wb"], ["b"], "decoder/up", strides=[2, 2]),
            node("Cast", ["b"], ["y"], "back", to=TensorProto.FLOAT),
        ],
        [("x", TensorProto.FLOAT, (1, 8, 8, 8))],
        [("y", TensorProto.FLOAT, (1, 8, 16, 16))],
        _weights(7, w=(8, 8, 2, 2)),
    )
    model.opset_import[0].version, model.ir_version = 22, 10
    return model


def _with_constant(op: str, name: str, shape: Sequence[int | str], array: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["r"], "first"), helper.make_node(op, ["r", "c"], ["y"], name)]
    outputs: list[Value] = [("y", TensorProto.FLOAT, tuple(f"d{i}" for i in range(len(shape))))]
    return _model(nodes, [("x", TensorProto.FLOAT, shape)], outputs, {"c": array})


FAILING: dict[str, tuple[onnx.ModelProto, dict[str, str], str]] = {
    "reshape": (
        _with_constant("Reshape", "to_squares", ("n", 6), np.array([4, 4], np.int64)),
        {"x": "2x6"},
        "node 'to_squares' (Reshape): its shapes do not fit together at the sizes that it is built for "
        "(reshape changes volume. Reshaping [2,6] to [4,4]): give others with --input",
    ),
    "matmul": (
        _with_constant("MatMul", "block/product", (2, "n"), np.ones((6, 3), np.float32)),
        {"x": "2x5"},
        "node 'block/product' (MatMul): its shapes do not fit together",
    ),
    "topk": (
        _model(
            [helper.make_node("TopK", ["x", "k"], ["y", "i"], "best")],
            [("x", TensorProto.FLOAT, (1, 8000))],
            [("y", TensorProto.FLOAT, (1, 5000))],
            {"k": np.array([5000], np.int64)},
        ),
        {},
        "node 'best' (TopK): it asks for more than TensorRT has kernels for (K exceeds the maximum value allowed "
        "(3840)): make it smaller",
    ),
    "type": (
        _bf16_upsampling(),
        {},
        "node 'decoder/up' (ConvTranspose): there is no kernel for it in this type: keep it in float32 with "
        "--quantize-option exclude=decoder/up",
    ),
}
"""Graphs that the parser takes and the builder refuses: model, profiles, and what the message must say."""

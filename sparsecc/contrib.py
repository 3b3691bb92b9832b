"""What operators outside the default domain look like to shape inference.

onnx has no schema for ONNX Runtime's own operators. Most have the shape of a standard operator, so each is
inferred as its stand-in.
"""

from __future__ import annotations

import onnx

SAME_AS_FIRST = frozenset(
    """BiasGelu FastGelu QuickGelu Gelu BiasSplitGelu SkipLayerNormalization SkipSimplifiedLayerNormalization
    SimplifiedLayerNormalization BiasAdd BiasSoftmax GroupNorm SkipGroupNorm RotaryEmbedding Inverse NhwcMaxPool
    Trilu FusedElementwise MoE QMoE QLinearLeakyRelu QLinearSigmoid QLinearSoftmax""".split()
)
"""Their first output has the shape and type of their first input."""

STANDARD = {
    "FusedConv": "Conv", "FusedMatMul": "MatMul", "TransposeMatMul": "MatMul", "FusedGemm": "Gemm",
    "QLinearAdd": "Add", "QLinearMul": "Mul",
}  # fmt: skip
"""Inferred as the standard operator of that name, with the attributes it knows."""

_CONTRIB = "com.microsoft"


def inference_stand_in(proto: onnx.NodeProto, version: int) -> onnx.NodeProto:
    """The node to infer in place of `proto`: itself when onnx knows it, a standard operator otherwise."""
    if proto.domain in ("", "ai.onnx", "ai.onnx.ml") and proto.op_type != "SimplifiedLayerNormalization":
        return proto
    if proto.op_type in SAME_AS_FIRST:
        return onnx.helper.make_node("Identity", proto.input[:1], proto.output[:1])
    if proto.op_type in STANDARD:
        return _as_standard(proto, STANDARD[proto.op_type], version)
    return proto


def _as_standard(proto: onnx.NodeProto, name: str, version: int) -> onnx.NodeProto:
    known = onnx.defs.get_schema(name, version).attributes
    inputs = [proto.input[0], proto.input[3]] if proto.op_type.startswith("QLinear") else list(proto.input)
    if name == "Conv":
        inputs = inputs[:3]
    node = onnx.helper.make_node(name, inputs, proto.output[:1], name=proto.name)
    node.attribute.extend(a for a in proto.attribute if a.name in known)
    return node

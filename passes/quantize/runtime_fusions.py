"""Float parts beside integers as ONNX Runtime's kernels for processors run fastest: what it must not fuse is written
so that it does not, and what it should so that it does. No number is another than before.

Of an Add and a LayerNormalization it makes SkipLayerNormalization, whose kernel goes number by number: 0.50 ms for
128 rows of 768 where both alone take 0.08 (ONNX Runtime 1.31, x64). A Sum of two is the kernel of Add, and is not
fused. SkipSimplifiedLayerNormalization, of RMS norms, it does not make, nor is that slow (0.13 ms where both alone
take 0.12). Of GELU it knows (x (1 + erf)) / 2, and not x ((1 + erf) / 2), as torch's exporter writes it: 0.26 instead
of 0.56 ms for 128 rows of 3072.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from sparsecc.loading.skip_norms import split_skip_norms


def suit_kernels(model: ir.Model) -> int:
    """Write both so, in place, in bodies too; how many there were."""
    split_skip_norms(model)
    count = 0
    for node in list(model.graph.all_nodes()):
        if _is_plain(node, "Add") and not _constants(node) and _is_normalised(node.outputs[0]):
            node.op_type = "Sum"
            count += 1
        elif _is_plain(node, "Erf"):
            count += _halve_last(node)
    return count


def _is_plain(node: ir.Node | None, operator: str) -> bool:
    return node is not None and node.op_type == operator and not node.domain


def _constants(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and value.const_value is not None]


def _is_normalised(value: ir.Value) -> bool:
    """Whether a layer normalization reads it, or its mean and a difference from that, as older exporters write one."""
    readers = {use.node.op_type for use in value.uses() if use.idx == 0}
    return "LayerNormalization" in readers or {"ReduceMean", "Sub"} <= readers


def _halve_last(erf: ir.Node) -> int:
    """Let the product with the constant of a GELU be its last; whether it was not."""
    halved = _only(_only(erf, "Add"), "Mul")
    whole = _only(halved, "Mul")
    if halved is None or whole is None or erf.inputs[0] is None:
        return 0
    scaled, half = erf.inputs[0].producer(), _constants(halved)
    factor = next((value for value in whole.inputs if value is not halved.outputs[0]), None)
    if scaled is None or factor not in scaled.inputs or len(half) != 1 or half[0].const_value is None:
        return 0
    number = half[0].const_value.numpy()
    if number.size != 1 or math.frexp(float(number.reshape(()).item()))[0] != 0.5 or factor is None:
        return 0  # another factor than a power of two would round
    sum_ = next(value for value in halved.inputs if value is not half[0])
    for node, operands in ((halved, (factor, sum_)), (whole, (halved.outputs[0], half[0]))):
        for place, value in enumerate(operands):
            node.replace_input_with(place, value)
    return 1


def _only(node: ir.Node | None, operator: str) -> ir.Node | None:
    """The node of that operator that alone reads the result of another."""
    if node is None or node.outputs[0].is_graph_output():
        return None
    readers = list(node.outputs[0].uses())
    reader = readers[0].node if len(readers) == 1 else None
    return reader if _is_plain(reader, operator) else None

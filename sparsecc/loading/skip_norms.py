"""Norms that runtimes have fused with the sum before them, as a sum and a norm: so layers end in an Add again."""

from __future__ import annotations

import onnx_ir as ir

FUSED = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}
"""ONNX Runtime's operators that add and normalise, and what they normalise by."""
JOINED = {plain: fused for fused, plain in FUSED.items()}


def split_skip_norms(model: ir.Model) -> int:
    """Replace every such operator by what it stands for, in place; how many there were.

    (data, skip, scale[, bias of the norm][, bias of the sum]) -> (norm, -, -, sum). Those whose mean or deviation is
    read stay, and so do those of a batch of skips that is broadcast over the data.
    """
    found = [node for node in model.graph if node.op_type in FUSED and _can_be_split(node)]
    for node in found:
        _split(model.graph, node)
    return len(found)


def join_skip_norms(model: ir.Model) -> int:
    """Fuse again, in place, what `split_skip_norms` split and nothing has come between; how many there were."""
    nodes = {node.name: node for node in model.graph}
    found = [
        (name.removesuffix(".norm"), node) for name, node in nodes.items() if name and name.endswith(".norm")
    ]
    number = 0
    for name, norm in found:
        total, addition = nodes.get(f"{name}.sum"), nodes.get(f"{name}.bias")
        last = addition or total
        if (
            total is None
            or last is None
            or norm.inputs[0] is not last.outputs[0]
            or norm.op_type not in JOINED
        ):
            continue
        if addition is not None and (
            addition.inputs[0] is not total.outputs[0] or len(total.outputs[0].uses()) > 1
        ):
            continue
        _join(model, norm, total, addition)
        number += 1
    return number


def _join(model: ir.Model, norm: ir.Node, total: ir.Node, addition: ir.Node | None) -> None:
    graph, last = model.graph, addition or total
    operands = [*total.inputs, *norm.inputs[1:]]
    if addition is not None:
        fused_at = 4 if JOINED[norm.op_type] == "SkipLayerNormalization" else 3
        operands += [None] * (fused_at - len(operands)) + [addition.inputs[1]]
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    made = ir.node(
        JOINED[norm.op_type],
        operands,
        name=(norm.name or "").removesuffix(".norm"),
        domain="com.microsoft",
        attributes={"epsilon": epsilon},
        num_outputs=4,
    )
    model.opset_imports.setdefault("com.microsoft", 1)
    graph.insert_before(norm, made)
    _take_over(graph, norm.outputs[0], made.outputs[0])
    others = [use for use in last.outputs[0].uses() if use.node is not norm]
    if others or last.outputs[0].is_graph_output():
        _take_over(graph, last.outputs[0], made.outputs[3])
    for place in (1, 2):
        made.outputs[place].name = ""
    for place in (0, 3):
        made.outputs[place].name = made.outputs[place].name or f"{made.name}.output_{place}"
    graph.remove([norm, *([addition] if addition is not None else []), total], safe=True)


def _can_be_split(node: ir.Node) -> bool:
    return node.domain == "com.microsoft" and not any(
        output.uses() or output.is_graph_output() for output in node.outputs[1:3]
    )


def _split(graph: ir.Graph, node: ir.Node) -> None:
    plain, name = FUSED[node.op_type], node.name or ""
    inputs = [*node.inputs, *[None] * (5 - len(node.inputs))]
    has_shift = plain == "LayerNormalization"
    shift = inputs[3] if has_shift else None
    addend = inputs[4] if has_shift else inputs[3]
    total = _made(graph, node, "Add", inputs[:2], f"{name}.sum")
    if addend is not None:
        total = _made(graph, node, "Add", [total, addend], f"{name}.bias")
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    operands = [total, inputs[2], *([shift] if shift is not None else [])]
    normed = _made(graph, node, plain, operands, f"{name}.norm", attributes)
    for old, new in zip((0, 3), (normed, total), strict=True):
        if old < len(node.outputs):
            _take_over(graph, node.outputs[old], new)
    graph.remove(node, safe=True)


def _made(
    graph: ir.Graph,
    before: ir.Node,
    operator: str,
    inputs: list[ir.Value | None],
    name: str,
    attributes: dict[str, int | float] | None = None,
) -> ir.Value:
    made = ir.node(operator, inputs, name=name, attributes=attributes)
    graph.insert_before(before, made)
    made.outputs[0].name = f"{name}/output"
    made.outputs[0].type = before.outputs[0].type
    return made.outputs[0]


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Whoever read a value reads the new one, which takes its name where that is an output's."""
    new.type, new.shape = old.type, old.shape
    if old.is_graph_output():
        new.name, old.name = old.name, f"{old.name}.fused"
    old.replace_all_uses_with(new, replace_graph_outputs=True)

"""An older version of the ONNX operators, node by node.

Most of what came later only takes more types or has one attribute more: a node that its operator took then stays. The
others go through onnx's converter, one at a time, as that has no way back for many operators whose types alone grew.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import defs

_OVER_THE_LAST_AXIS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
"""Before version 13 these took all axes from theirs on as one: the same where it is the last."""
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_WAS_ATTRIBUTE = {
    "Split": (13, "split"),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum"), (13, "axes")),
    **{f"Reduce{name}": (18, "axes") for name in _REDUCTIONS},
}
"""Since when the second input of an operator is one, and the attribute that it was before."""
_MEANT_ANOTHER = {"GridSample": 20, "BatchNormalization": 14, "Upsample": 10, "Resize": 11}
"""Operators that read the same words otherwise before that version."""


def lower_opset(model: ir.Model, current: int, version: int) -> None:
    """Rewrite the nodes of the default domain for an older version, in place. ValueError names what has no form there;
    the model is of no use then."""
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        now, then = (_schema(node.op_type, v) for v in (current, version))
        if now is None or (then is not None and then.since_version == now.since_version):
            continue
        if then is None:
            raise ValueError(f"{node.op_type} came with version {_first(node.op_type)}")
        since, attribute = _WAS_ATTRIBUTE.get(node.op_type, (0, ""))
        if version < since <= current and len(node.inputs) > 1:
            _to_attribute(node, attribute)
        if node.op_type in _OVER_THE_LAST_AXIS and version < 13 <= current:
            _over_last(node)
        elif version < _MEANT_ANOTHER.get(node.op_type, 0) <= current or not _took(node, now, then):
            _replace(node, current, version)
    model.opset_imports[""] = version


def _schema(operator: str, version: int) -> defs.OpSchema | None:
    try:
        found: defs.OpSchema = defs.get_schema(operator, version)
    except defs.SchemaError:
        return None
    return found


def _first(operator: str) -> int:
    return min(s.since_version for s in defs.get_all_schemas_with_history() if s.name == operator)


def _to_attribute(node: ir.Node, name: str) -> None:
    """Turn the second input into an attribute. ValueError where it is no constant."""
    value = node.inputs[1]
    if value is not None:
        if value.const_value is None or not value.is_initializer():
            raise ValueError(f"{node.op_type} at {node.name} computes its {name}, which was fixed then")
        node.attributes[name] = ir.AttrInt64s(name, value.const_value.numpy().ravel().tolist())
    node.resize_inputs(1)


def _over_last(node: ir.Node) -> None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = node.attributes.get_int("axis", -1)
    if axis != -1 and (shape is None or axis != len(shape) - 1):
        raise ValueError(f"{node.op_type} over an axis that is not the last came with version 13")
    node.attributes["axis"] = ir.AttrInt64("axis", axis)


def _took(node: ir.Node, now: defs.OpSchema, then: defs.OpSchema) -> bool:
    """Whether the operator took the node as it stands; attributes that say what was always so are taken off."""
    inputs = len(node.inputs)
    if not then.min_input <= inputs <= then.max_input or len(node.outputs) > then.max_output:
        return False
    if any(a.required and name not in node.attributes for name, a in then.attributes.items()):
        return False
    if not all(_takes(then, i, value) for i, value in enumerate(node.inputs)):
        return False
    for name in [name for name in node.attributes if name not in then.attributes]:
        default = now.attributes[name].default_value
        if default.type == 0 or onnx.helper.get_attribute_value(default) != _plain(node.attributes[name]):
            return False
        del node.attributes[name]
    return all(
        onnx.helper.get_attribute_value(a.default_value) == onnx.helper.get_attribute_value(old)
        for name, a in now.attributes.items()
        if name not in node.attributes
        and name in then.attributes
        and a.default_value.type
        and (old := then.attributes[name].default_value).type
    )


def _takes(schema: defs.OpSchema, position: int, value: ir.Value | None) -> bool:
    if value is None or value.dtype is None:
        return True
    formal = schema.inputs[min(position, len(schema.inputs) - 1)]
    kind = value.dtype.name.lower().replace("float32", "float")
    return f"tensor({kind})" in formal.types


def _plain(attribute: ir.Attr) -> object:
    value = attribute.value
    return value.encode() if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _replace(node: ir.Node, current: int, version: int) -> None:
    """Put what onnx's converter makes of a node alone in its place."""
    from onnx import version_converter

    proto, names = ir.to_proto(node), [v.name for v in node.inputs if v is not None]
    assert isinstance(proto, onnx.NodeProto)
    known = {v.name: v for v in node.inputs if v is not None}
    constants = {n: v.const_value for n, v in known.items() if v.const_value is not None}
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [_info(v) for n, v in known.items() if n not in constants],
        [_info(v) for v in node.outputs],
        [ir.to_proto(tensor) for tensor in constants.values()],
    )
    opset = [onnx.helper.make_opsetid("", current)]
    alone = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    try:
        converted = version_converter.convert_version(alone, version)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as e:
        raise ValueError(f"{node.op_type} at {node.name} has no form there that onnx knows") from e
    found = ir.from_proto(converted).graph
    if len(found) != 1 or any(v.name not in names for v in found[0].inputs if v is not None):
        raise ValueError(f"{node.op_type} at {node.name} is several operators there")
    inputs = [None if v is None else known[v.name] for v in found[0].inputs]
    new = ir.node(
        found[0].op_type, inputs, dict(found[0].attributes), num_outputs=len(node.outputs), name=node.name
    )
    for old, made in zip(node.outputs, new.outputs, strict=True):
        made.shape, made.type, name = old.shape, old.type, old.name
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        old.name, made.name = None, name
    holder = node.graph
    assert isinstance(holder, ir.Graph)
    holder.insert_before(node, new)
    holder.remove(node, safe=True)


def _info(value: ir.Value) -> onnx.ValueInfoProto:
    """A value with what is known of it: floats where its type is not."""
    kind = value.dtype.value if value.dtype is not None else onnx.TensorProto.FLOAT
    shape = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
    return onnx.helper.make_tensor_value_info(value.name or "", kind, shape)

"""Output shapes of operators that onnx does not infer.

onnx has no schema for ONNX Runtime's own operators. How the outputs of such an operator look is a column of its row
in the table of rules; whoever infers shapes hands the column in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

Shape = list[int]
Types = Mapping[str, onnx.TypeProto]


@dataclass
class Call:
    """One node whose outputs are asked for: the shapes of its operands, and its attributes."""

    proto: onnx.NodeProto
    shapes: list[Shape | None]
    attributes: dict[str, Any]

    def __getitem__(self, operand: int) -> Shape:
        shape = self.shapes[operand] if operand < len(self.shapes) else None
        if shape is None:
            raise IndexError(f"operand {operand} of {self.proto.op_type} has no known shape")
        return shape

    def has(self, operand: int) -> bool:
        return operand < len(self.shapes) and self.shapes[operand] is not None

    def int_(self, name: str, default: int = 0) -> int:
        return int(self.attributes.get(name, default))


@dataclass(frozen=True)
class OutputShapes:
    """The outputs of one operator: what `of` says, or those of the `standard` operator of that name.

    They have the element type of operand `dtype`, but for those in `own` (output -> element type). The standard
    operator gets these `operands`, all where none are named, and the attributes that it knows.
    """

    of: Callable[[Call], Sequence[Shape]] | None = None
    dtype: int = 0
    own: Mapping[int, int] = field(default_factory=dict)
    standard: str = ""
    operands: tuple[int, ...] = ()

    def types(self, proto: onnx.NodeProto, known: Types) -> dict[str, onnx.TypeProto]:
        """The types of the outputs by `of`. IndexError where an operand it needs has no known shape."""
        assert self.of is not None
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        call = Call(proto, [_dims(known.get(name)) for name in proto.input], attributes)
        operand = proto.input[self.dtype] if self.dtype < len(proto.input) else proto.input[0]
        dtype = known[operand].tensor_type.elem_type if operand in known else onnx.TensorProto.FLOAT
        outputs = enumerate(zip(proto.output, self.of(call), strict=False))
        return {
            name: onnx.helper.make_tensor_type_proto(self.own.get(number, dtype), shape)
            for number, (name, shape) in outputs
            if name
        }

    def stand_in(self, proto: onnx.NodeProto, version: int) -> onnx.NodeProto:
        """The standard operator to infer in place of a node."""
        schema = onnx.defs.get_schema(self.standard, version)
        inputs = [proto.input[i] for i in self.operands] or list(proto.input)[: schema.max_input]
        node = onnx.helper.make_node(self.standard, inputs, proto.output, name=proto.name)
        node.attribute.extend(a for a in proto.attribute if a.name in schema.attributes)
        return node


ShapeTable = Callable[[str, str], "OutputShapes | None"]
"""(domain, operator) -> how its outputs look, where onnx does not infer them."""


def _dims(kind: onnx.TypeProto | None) -> Shape | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return [d.dim_value for d in kind.tensor_type.shape.dim]

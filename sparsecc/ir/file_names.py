"""What the user's file calls a weight that normalisation stored otherwise: turned around, or computed of others.

Plans, patterns, masks and messages speak of the file's own tensors and axes; this is where both are kept together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

_KEY = "sparsecc.file"
"""Key of `value.meta` under which the origin of an initializer stands."""


@dataclass(frozen=True)
class Origin:
    """The constants of the file that an initializer was made of. Of one that was only turned around, `order` gives for
    each of its axes the axis of the file's tensor; it is () where the initializer was computed."""

    tensors: tuple[str, ...]
    order: tuple[int, ...] = ()


def remember(value: ir.Value, tensors: Sequence[str], order: Sequence[int] = ()) -> None:
    """Note what an initializer that normalisation made was made of."""
    value.meta[_KEY] = Origin(tuple(tensors), tuple(order))


def origin_of(value: ir.Value) -> Origin | None:
    """None where the file has the tensor itself."""
    found: Origin | None = value.meta.get(_KEY)
    return found


def in_file(value: ir.Value, axis: int) -> tuple[str, int]:
    """(tensor, axis) as the file has them; of a computed tensor its own."""
    origin = origin_of(value)
    if origin is None or not origin.order:
        return value.name or "", axis
    return origin.tensors[0], origin.order[axis]


def turned(model: ir.Model) -> dict[str, ir.Value]:
    """The initializers that were turned around, by the file's names."""
    values = model.graph.initializers.values()
    origins = [(origin_of(value), value) for value in values]
    return {origin.tensors[0]: value for origin, value in origins if origin is not None and origin.order}

"""The types and small values of a model at one assignment of sizes to its dynamic dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.axes.sizes import DIVIDED, OPAQUE, STEP

LARGEST = 1 << 27
"""Sizes at which some value would have more elements than this are not tried."""


NO_MEASURE = -math.inf
"""How far off the sizes of a node are where that is not known; most likely they are too small."""


class Misfit(NamedTuple):
    """How far off the sizes of a node are, by the first of its demands that is not met: log(size / size it must be),
    or NO_MEASURE, and which demand that is."""

    off: float
    demand: int


UNKNOWN = Misfit(NO_MEASURE, 0)


class UnknownShapes(dict[ir.Value, str]):
    """Values whose shape could not be inferred, with the reason."""


@dataclass
class Probe:
    """What the walk of this number found; `guessed` says whether it met a size that nobody can know.

    `misfits` are the nodes whose inputs do not fit each other, in order.
    """

    number: int = 0
    types: dict[ir.Value, onnx.TypeProto] = field(default_factory=dict)
    data: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    failures: UnknownShapes = field(default_factory=UnknownShapes)
    misfits: dict[ir.Node, Misfit] = field(default_factory=dict)
    guessed: bool = False
    _next: int = 0

    def opaque(self) -> int:
        """A size of its own."""
        self.guessed = True
        self._next += 1
        return OPAQUE + STEP * (2 * self._next + self.number)

    def forget(self, value: ir.Value) -> None:
        """Nothing is known of a value any more."""
        for known in (self.types, self.data, self.failures):
            known.pop(value, None)

    def set_type(self, value: ir.Value, kind: onnx.TypeProto | None) -> None:
        """All that is known of a value is its type, or nothing."""
        self.forget(value)
        if kind is not None:
            self.types[value] = kind

    @property
    def is_small(self) -> bool:
        """Whether every value is small enough to run the model at these sizes just to try them."""
        least = OPAQUE // DIVIDED if self.guessed else OPAQUE
        shapes = (dims_of(kind) for kind in self.types.values())
        known = (dims for dims in shapes if dims is not None and max(dims, default=0) < least)
        return all(math.prod(dims) <= LARGEST for dims in known)


def tensor_type(dtype: ir.DataType | None, shape: Sequence[int]) -> onnx.TypeProto:
    """A tensor of this shape; float where the element type is unknown."""
    made: onnx.TypeProto = onnx.helper.make_tensor_type_proto(dtype.value if dtype else 1, list(shape))
    return made


def dims_of(kind: onnx.TypeProto | None) -> list[int] | None:
    """The sizes of a tensor; None where they are unknown or it is no tensor."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    return [d.dim_value for d in kind.tensor_type.shape.dim]

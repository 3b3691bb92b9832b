"""Dynamic dimensions of a model's inputs: which they are, what they are called, and sizes to try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

import onnx_ir as ir


def is_fixed(dim: int | ir.SymbolicDim) -> TypeGuard[int]:
    """Whether a declared dimension is a size; some exporters write -1 for a dynamic one."""
    return isinstance(dim, int) and dim >= 0


DEFAULT_DIM = 2
"""The size of a dynamic dimension that nobody gave a size."""


_SIDES = (32, 64, 224, 96, 128, 256, 320, 512)


_LENGTHS = (8, 16, 32, 128, 512, 1024, 16000)


def input_values(model: ir.Model) -> list[ir.Value]:
    """The graph inputs that must be fed: those that are no initializers."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


@dataclass(frozen=True)
class Kinds:
    """The keys of a model's dynamic dimensions, by what they are likely to be: samples, sides of images, lengths."""

    batch: frozenset[str]
    sides: frozenset[str]
    lengths: frozenset[str]

    @classmethod
    def of(cls, values: Iterable[ir.Value]) -> Kinds:
        """Recurrent states of [layers, ?, width] have the batch in the middle."""
        batch: set[str] = set()
        sides: set[str] = set()
        lengths: set[str] = set()
        for value in values:
            dims = list(value.shape or ())
            for axis, dim in enumerate(dims):
                if is_fixed(dim):
                    continue
                key = dim_key(value, axis)
                spatial = len(dims) >= 4 and axis >= 1
                is_state = len(dims) == 3 and axis == 1 and is_fixed(dims[0]) and is_fixed(dims[2])
                if axis == 0 or _looks_like_batch(key) or (is_state and ":" in key):
                    batch.add(key)
                else:
                    (sides if spatial else lengths).add(key)
        return cls(frozenset(batch), frozenset(sides - batch), frozenset(lengths - batch - sides))

    def setting(self, batch: int, side: int, length: int) -> dict[str, int]:
        """The size of every dimension where all of a kind have the same."""
        kinds = ((self.batch, batch), (self.sides, side), (self.lengths, length))
        return {key: size for keys, size in kinds for key in sorted(keys)}


def candidate_dims(model: ir.Model) -> Iterator[dict[str, int]]:
    """Sizes of the dynamic dimensions to try in turn, likeliest first; one empty setting when all are fixed.

    The batch is 2, then 1. Images take common sides, sequences common lengths.
    """
    kinds = Kinds.of(input_values(model))
    if not kinds.batch | kinds.sides | kinds.lengths:
        yield {}
        return
    for batch in (DEFAULT_DIM, 1) if kinds.batch else (1,):
        for length in _LENGTHS if kinds.lengths else (0,):
            for side in _SIDES if kinds.sides else (0,):
                yield kinds.setting(batch, side, length)


def _looks_like_batch(name: str) -> bool:
    return name.lower() in {"n", "b", "bs"} or "batch" in name.lower()


def dim_key(value: ir.Value, axis: int) -> str:
    """The name of a dynamic dimension; `input:axis` when it has none, or a placeholder that says nothing."""
    dim = value.shape[axis] if value.shape is not None else None
    name = dim.value if isinstance(dim, ir.SymbolicDim) else None
    return name if name and name not in {"?", "None", "-1", "unk"} else f"{value.name}:{axis}"


def takes_any_batch(model: ir.Model) -> bool:
    """Whether the first axis of every input may have any size, and counts samples: where no input has another, it may
    be the length of one."""
    shapes = [value.shape for value in input_values(model)]
    return any(shape is not None and len(shape) > 1 for shape in shapes) and all(
        shape is not None and len(shape) and not is_fixed(shape[0]) for shape in shapes
    )

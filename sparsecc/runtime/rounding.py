"""How far rounding alone moves the outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.runtime.numerics import Outputs, is_float, worst_error
from sparsecc.runtime.runner import Feeds, Runs
from sparsecc.system.memory import HELD

AMPLIFIED = 16.0
"""How many times what rounding of the inputs does an error may be: every operator rounds as well."""
_DRAWS = 3
"""How often inputs are perturbed to see how strongly the model amplifies rounding."""


_MOST_ROWS = 4096
_LOOKED_AT = 1 << 16
_DRAWN = 65_521
"""Numbers drawn for an array; larger ones repeat them. A prime: rows of one length never repeat each other's soon."""
_EPS = {"float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative steps of the float types; that of float32 where none is given."""
_SELECTORS = frozenset({"TopK", "NonMaxSuppression", "Unique", "ArgMax", "ArgMin", "Multinomial"})


def moved_by_rounding(runner: Runs, feeds: Mapping[str, np.ndarray], wanted: Outputs) -> float:
    """The largest relative change of the outputs when the inputs move by about a rounding step."""
    moved = [worst_error(wanted, runner.run(nudged(feeds, draw))) for draw in range(_DRAWS)]
    return max((m for m in moved if np.isfinite(m)), default=0.0)


def nudged(arrays: Feeds, draw: int) -> dict[str, np.ndarray]:
    """Floats moved by about one rounding step each."""
    generator = np.random.default_rng(draw)
    return {name: _moved(array, generator) if is_float(array) else array for name, array in arrays.items()}


def nudged_weights(model: ir.Model, draw: int) -> ir.Model:
    """A copy of which every float constant is moved by about one rounding step per entry, but for whole numbers."""
    moved = model.clone()
    for number, value in enumerate(moved.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
            continue
        if _is_whole(tensor.numpy().reshape(-1)):
            continue  # sizes and coordinates may be floats, and are exact

        def other(tensor: ir.TensorProtocol = tensor, number: int = number) -> ir.TensorProtocol:
            generator = np.random.default_rng((draw, number))
            return ir.Tensor(_moved(tensor.numpy(), generator), dtype=tensor.dtype)

        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(other, dtype=tensor.dtype, shape=shape, name=value.name)
        value.const_value = lazy if tensor.nbytes > HELD else other()
    return moved


def _is_whole(numbers: np.ndarray) -> bool:
    """Whether a list holds whole numbers and infinities alone; it is read as far as that is not refuted."""
    for start in range(0, numbers.size, _LOOKED_AT):
        some = numbers[start : start + _LOOKED_AT].astype(np.float64)
        if (some != np.floor(some)).any():
            return False
    return True


def _moved(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    step = 2 * _EPS.get(array.dtype.name, 2.0**-23)
    wide = np.float64 if array.dtype == np.float64 else np.float32
    factor = 1 + step * generator.uniform(-1, 1, min(array.size, _DRAWN))
    flat, moved = array.reshape(-1), np.empty(array.size, array.dtype)
    for at in range(0, array.size, _DRAWN):
        some = flat[at : at + _DRAWN].astype(wide, copy=False)
        moved[at : at + _DRAWN] = some * factor[: some.size]
    return moved.reshape(array.shape)


def selects(model: ir.Model) -> bool:
    """Whether rounding may change which rows a model gives, or their order."""
    return any(node.op_type in _SELECTORS for node in model.graph.all_nodes())


def same_rows(reference: Any, found: Any, tolerance: float) -> bool:
    """Whether two tensors of rank 2 and more hold the same rows (of the last axis), in another order perhaps."""
    if not isinstance(reference, np.ndarray) or reference.ndim < 2 or reference.shape != found.shape:
        return False
    rows = reference.shape[-2]
    if not 1 < rows <= _MOST_ROWS or not np.isfinite(reference).all() or not np.isfinite(found).all():
        return False
    a, b = (array.astype(np.float64).reshape(-1, rows, array.shape[-1]) for array in (reference, found))
    allowed = tolerance * max(float(np.abs(a).max()), 1e-12)
    return all(_matched(x, y, allowed) for x, y in zip(a, b, strict=True))


def _matched(a: np.ndarray, b: np.ndarray, allowed: float) -> bool:
    """Whether every row of `a` is a row of `b` and the other way round, each entry up to `allowed`."""
    near = np.stack([(np.abs(b - row) <= allowed).all(axis=1) for row in a])
    return bool(near.any(axis=0).all() and near.any(axis=1).all())

"""What was built against the graph that it was built from, and against what was finite before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.errors import GoalError, InternalError
from sparsecc.escaping import quoted
from sparsecc.runtime.numerics import QUANTIZED, Outputs, is_float, is_quantized
from sparsecc.runtime.part_errors import STEPPED, largest, part_errors, steady, tolerances_of, unexplained
from sparsecc.runtime.rounding import AMPLIFIED, nudged, nudged_weights, same_rows, selects
from sparsecc.runtime.runner import Feeds, Runs

_DRAWS = 3
_BLOCK = 1 << 24
"""Bytes of a constant that are looked at in one go."""


def require_same(
    model: ir.Model,
    plain: Callable[[], Runs],
    feeds: Feeds,
    wanted: Outputs,
    found: Outputs,
    opened: Callable[[ir.Model], Runs],
    *,
    in_types: bool = False,
) -> dict[str, float]:
    """The outputs, with their errors, that a runtime's optimized form of `model` gives otherwise than the graph as it
    stands (`plain`, which gave `wanted`) where only a jump of rounding explains that: no proof.

    InternalError where neither rounding does, nor rows in another order; not where layers are in smaller types
    (`in_types`), whose kernels round at other places: there that is no proof either.
    """
    errors = part_errors(wanted, found)
    if is_quantized(model):  # a quantization step is that of the tensor, however small a channel
        errors = {name: error[:1] for name, error in errors.items()}
    loose = AMPLIFIED if not is_quantized(model) else 1.0
    least = QUANTIZED if is_quantized(model) or in_types else 0.0
    times = STEPPED if in_types else AMPLIFIED
    tolerances = {name: max(least, loose * one) for name, one in tolerances_of(wanted).items()}
    if not unexplained(errors, tolerances):
        return {}
    in_rows = selects(model)  # rows that change their place are jumps, and right
    floors = largest(*(part_errors(wanted, plain().run(nudged(feeds, draw))) for draw in range(_DRAWS)))
    first = sure = floors if in_rows else steady(floors)
    for draw in range(_DRAWS):
        if not unexplained(errors, tolerances, sure, times):
            return {}
        one = part_errors(wanted, opened(nudged_weights(model, draw)).run(nudged(feeds, draw)))
        floors = largest(floors, one)
        sure = floors if in_rows else largest(sure, steady(one, None if is_quantized(model) else first))
    doubted, left = (unexplained(errors, tolerances, of, times) for of in (sure, floors))
    if in_rows:
        doubted, left = (
            {n: e for n, e in some.items() if not same_rows(wanted[n], found[n], tolerances[n])}
            for some in (doubted, left)
        )
    if left and not in_types:
        name = max(left, key=lambda n: left[n])
        raise InternalError(
            f"the built model differs from the graph it was built from by {left[name]:.2g} at output {quoted(name)}"
        )
    return doubted


def changed_constants(model: ir.Model, built: ir.Model) -> list[str]:
    """The constants of the graph that stand in what was built from it under the same name, in the same type and shape,
    and hold other numbers: runtimes give what they fuse or reorder a name of its own."""
    changed = []
    for name, value in built.graph.initializers.items():
        before = model.graph.initializers.get(name)
        old, new = (one.const_value if one is not None else None for one in (before, value))
        if old is None or new is None or (old.dtype, list(old.shape)) != (new.dtype, list(new.shape)):
            continue
        if old is not new and not _is_equal(old.numpy(), new.numpy()):
            changed.append(name)
    return changed


def _is_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit by bit, block by block; text as text."""
    if a.dtype == object:
        return bool(np.array_equal(a, b))
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b)]
    blocks = range(0, flat[0].size, _BLOCK)
    return all(np.array_equal(flat[0][at : at + _BLOCK], flat[1][at : at + _BLOCK]) for at in blocks)


def require_finite(before: Outputs, after: Outputs, data: str, *, has_samples: bool) -> None:
    """GoalError where an output was finite before and is not after; NaN equals nothing."""
    lost = [name for name, output in before.items() if _is_finite(output) and not _is_finite(after[name])]
    if lost:
        instead = (
            " or take another type" if has_samples else ", take another type, or give samples with --calib"
        )
        raise GoalError(
            f"output {quoted(lost[0])} is finite before and not after, on {data}: leave what overflows in float32 "
            f"with --quantize-option exclude=NODE{instead}"
        )


def _is_finite(output: object) -> bool:
    """Of lists and of what is no float: yes."""
    return not isinstance(output, np.ndarray) or not is_float(output) or bool(np.isfinite(output).all())


def unlike_rounding(errors: Sequence[float]) -> float | None:
    """The largest error, None where an output had another size, which only 8 bits may give."""
    worst = max(errors, default=0.0)
    return worst if np.isfinite(worst) else None

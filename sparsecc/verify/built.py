"""What was built against the graph that it was built from, and against what was finite before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.errors import GoalError, InternalError
from sparsecc.escaping import quoted
from sparsecc.runtime.numerics import QUANTIZED, Outputs, is_float, is_quantized
from sparsecc.runtime.part_errors import largest, part_errors, tolerances_of, unexplained
from sparsecc.runtime.rounding import AMPLIFIED, nudged, nudged_weights, same_rows, selects
from sparsecc.runtime.runner import Feeds, Runs

_DRAWS = 3


def require_same(
    model: ir.Model,
    plain: Callable[[], Runs],
    feeds: Feeds,
    wanted: Outputs,
    found: Outputs,
    opened: Callable[[ir.Model], Runs],
) -> None:
    """InternalError where a runtime's optimized form of `model` gives other outputs than the graph as it stands
    (`plain`, which gave `wanted`), by more than rounding explains and than rows in another order."""
    errors = part_errors(wanted, found)
    if is_quantized(model):  # a quantization step is that of the tensor, however small a channel
        errors = {name: error[:1] for name, error in errors.items()}
    loose = AMPLIFIED if not is_quantized(model) else 1.0
    least = QUANTIZED if is_quantized(model) else 0.0
    tolerances = {name: max(least, loose * one) for name, one in tolerances_of(wanted).items()}
    left = unexplained(errors, tolerances)
    if not left:
        return
    floors = largest(*(part_errors(wanted, plain().run(nudged(feeds, draw))) for draw in range(_DRAWS)))
    for draw in range(_DRAWS):
        if not (left := unexplained(errors, tolerances, floors)):
            return
        moved = opened(nudged_weights(model, draw)).run(nudged(feeds, draw))
        floors = largest(floors, part_errors(wanted, moved))
    left = unexplained(errors, tolerances, floors)
    if selects(model):
        left = {n: e for n, e in left.items() if not same_rows(wanted[n], found[n], tolerances[n])}
    if left:
        name = max(left, key=lambda n: left[n])
        raise InternalError(
            f"the built model differs from the graph it was built from by {left[name]:.2g} at output {quoted(name)}"
        )


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

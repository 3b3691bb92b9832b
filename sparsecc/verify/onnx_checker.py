"""What onnx's checker says of a graph that we made, beside what it says of the user's."""

from __future__ import annotations

from pathlib import Path

import onnx

from sparsecc.errors import InternalError
from sparsecc.escaping import one_line
from sparsecc.ir.apart import Apart

Checked = Path | Apart
"""A file, or a graph apart from its large weights, which are inputs then."""


def check(made: Checked, dense: Checked | None) -> str:
    """onnx's checker on what we made: what it refuses is our fault, unless it refuses the dense model."""
    complaint = _complaint(made)
    if complaint is None:
        return "passed"
    if dense is None or _complaint(dense) is None:
        raise InternalError(f"the checker refuses the pruned model: {complaint}")
    return f"refuses the input as well: {complaint}"


def _complaint(checked: Checked) -> str | None:
    try:
        onnx.checker.check_model(str(checked) if isinstance(checked, Path) else checked.graph)
    except onnx.checker.ValidationError as e:
        return one_line(str(e), 300)
    return None

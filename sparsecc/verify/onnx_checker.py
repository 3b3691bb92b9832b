"""What onnx's checker says of a file that we wrote, beside what it says of the user's."""

from __future__ import annotations

from pathlib import Path

import onnx

from sparsecc.errors import InternalError
from sparsecc.escaping import one_line


def check(path: Path, dense: Path | None) -> str:
    """onnx's checker on a file we wrote: what it refuses is our fault, unless it refuses the dense one."""
    complaint = _complaint(path)
    if complaint is None:
        return "passed"
    if dense is None or _complaint(dense) is None:
        raise InternalError(f"the checker refuses the pruned model: {complaint}")
    return f"refuses the input as well: {complaint}"


def _complaint(path: Path) -> str | None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as e:
        return one_line(str(e), 300)
    return None

"""Writing a graph to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.system import memory

if TYPE_CHECKING:
    pass


def write(model: ir.Model, path: Path) -> Path:
    """Write a graph as it stands, weights beside it where they are large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if memory.weight_bytes(model) > memory.BESIDE:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    else:
        ir.save(model, path)
    return path

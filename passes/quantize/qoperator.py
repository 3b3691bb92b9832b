"""QLinearConv and its kin instead of Q/DQ pairs, as ONNX Runtime itself fuses them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from sparsecc.runtime.session import open_session


def to_integer_operators(model: ir.Model, scratch: Path) -> None:
    """Replace the graph by the one ONNX Runtime fuses from its Q/DQ pairs (no layouts of this processor)."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "fused.onnx"
        open_session(model, level="extended", optimized=path)
        fused = ir.load(path)
        ir.external_data.load_to_model(fused)
    model.graph = fused.graph

"""QLinearConv and its kin instead of Q/DQ pairs, as ONNX Runtime itself fuses them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from sparsecc.passes.quantize.activation_ranges import session_of


def to_integer_operators(model: ir.Model, scratch: Path) -> None:
    """Replace the graph by the one ONNX Runtime fuses from its Q/DQ pairs (no layouts of this processor)."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "fused.onnx"
        session_of(model, Path(folder), optimized=path, level="ENABLE_EXTENDED")
        fused = ir.load(path)
        ir.external_data.load_to_model(fused)
    model.graph = fused.graph

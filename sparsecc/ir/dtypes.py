"""Element types, by what they hold."""

from __future__ import annotations

import onnx_ir as ir

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8,
     ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
)  # fmt: skip
"""Types that count as parameters; the others hold shapes and indices."""

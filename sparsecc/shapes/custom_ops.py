"""Operators of libraries of the user's own: nothing but running them tells how their outputs look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar

import onnx

from sparsecc.shapes.contrib_ops import Types

Ran = Callable[[onnx.NodeProto, Types, Mapping[str, onnx.TensorProto]], dict[str, onnx.TypeProto]]
"""(node, types of its operands, the small ones whose values are known) -> types of its outputs. ValueError where it
does not run on such operands."""

RUN: ContextVar[Ran | None] = ContextVar("run", default=None)
"""What runs them; None without libraries."""

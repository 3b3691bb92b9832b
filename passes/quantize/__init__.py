"""Quantization: one neutral decision, one lowering per target."""

from sparsecc.passes.quantize.quantize import Quantize

__all__ = ["Quantize"]

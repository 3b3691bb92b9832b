"""Sparsity patterns: zeros where the hardware can skip them."""

from sparsecc.passes.sparsity.sparsify import Sparsify

__all__ = ["Sparsify"]

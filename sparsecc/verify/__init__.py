"""Proof that a compiled model is the dense one without the removed slots."""

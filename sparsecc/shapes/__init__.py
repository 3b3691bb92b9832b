"""Shapes of every value, with concrete sizes for symbolic dimensions."""

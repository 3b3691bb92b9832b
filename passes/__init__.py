"""Optimization passes, one per file."""

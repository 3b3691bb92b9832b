"""Optimization passes, one per file; `sparsecc/decide/passes.py` says which of them a compile runs."""

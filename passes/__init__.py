"""Optimization passes, one per file; `sparsecc/stages.py` says which of them a compile runs."""

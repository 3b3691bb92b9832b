"""Runtimes, one per file or folder."""

"""Multiply-accumulates, parameters and latency as functions of what is kept."""

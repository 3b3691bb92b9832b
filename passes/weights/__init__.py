"""Layers with constant weights as passes see them: their inputs' moments, low-rank paths, fidelity."""

"""sparsecc: a deployment compiler for sparse models."""

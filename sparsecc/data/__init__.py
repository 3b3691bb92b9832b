"""Inputs for a model: files, texts, samples of a user's function, random ones."""

"""From a model to its groups of coupled slots, and back to a smaller model."""

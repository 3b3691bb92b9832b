"""Training a pruned module to give what the dense one gave."""

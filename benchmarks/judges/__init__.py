"""Who says whether a pruned model is right: the dense one with the removed slots masked, for any tool."""

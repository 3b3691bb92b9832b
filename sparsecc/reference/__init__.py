"""Dense models that say what a pruned one must give; they share no slicing with the rewriting."""

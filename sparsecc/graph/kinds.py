"""The kinds of groups, without what it takes to find them."""

KINDS = {
    "channels": "channel",
    "heads": "head",
    "head_dims": "head_dim",
    "experts": "expert",
    "layers": "layer",
}
"""Values of `--prune` and the kind of group each allows."""

"""New weights for what is kept, from unlabelled samples: no training, no labels."""

from __future__ import annotations

METHODS = ("none", "bias", "bn", "reconstruct")
"""`bias` restores the means of layer outputs, `bn` means and variances, `reconstruct` refits the weights."""

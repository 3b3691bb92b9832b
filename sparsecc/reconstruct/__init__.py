"""New weights for what is kept, from unlabelled samples: no training, no labels."""

from __future__ import annotations

METHODS = ("none", "bias", "bn", "reconstruct")
"""`bias` restores the means of layer outputs as far as their signal is left, `bn` means and variances,
`reconstruct` refits the weights."""

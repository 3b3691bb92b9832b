"""What is known not to work: which exporter fails on which entry, and which exports hold only fixed sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Static:
    """Named dimensions that an exporter cannot leave free on an entry, and why."""

    dimensions: frozenset[str] = frozenset()
    reason: str = ""


_RESHAPES = "nn.MultiheadAttention reshapes to traced lengths"

FAILURES: dict[tuple[str, str], str] = {
    ("gpt2_sdpa", "torchscript"): "aten::diff, used to find packed sequences without a mask, has no symbolic",
}
"""(entry, exporter) -> why that exporter cannot export it."""

STATIC: dict[tuple[str, str], Static] = {
    ("torch_encoder", "torchscript"): Static(frozenset({"sequence"}), _RESHAPES),
    ("torch_multihead", "torchscript"): Static(frozenset({"sequence"}), _RESHAPES),
    ("conformer", "torchscript"): Static(frozenset({"time"}), _RESHAPES),
    ("mask_decoder", "torchscript"): Static(frozenset({"prompts"}), _RESHAPES),
    ("fastspeech", "torchscript"): Static(frozenset({"sequence"}), _RESHAPES),
    ("flow_speech", "torchscript"): Static(frozenset({"sequence"}), _RESHAPES),
    ("mamba", "dynamo"): Static(frozenset({"sequence"}), "the scan over time is unrolled"),
    ("rwkv", "dynamo"): Static(frozenset({"sequence"}), "the recurrence over time is unrolled"),
    ("rnn_classifier", "dynamo"): Static(frozenset({"sequence"}), "nn.RNN is unrolled over the steps"),
}
"""(entry, exporter) -> what is exported at its example size only."""

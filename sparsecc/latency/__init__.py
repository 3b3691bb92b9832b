"""What operators cost on this machine: measured over channel counts, kept, and summed into a cost model."""

from __future__ import annotations

from sparsecc.latency.model import latency_model
from sparsecc.latency.table import LatencyTable, Staircase

__all__ = ["LatencyTable", "Staircase", "latency_model"]

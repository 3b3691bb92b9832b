"""Remarks: optimizations that were missed, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remark:
    """Something that was left alone: the node or tensor, and why. It reaches the report's `skipped`."""

    where: str
    reason: str

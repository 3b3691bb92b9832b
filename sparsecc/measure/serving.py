"""What is told of how a model serves: kept apart from what measures it, which loads a runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Serving:
    """A way of serving: samples a second, of each batch, in so many streams (callers of one session at once)."""

    rate: float
    batch: int
    streams: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

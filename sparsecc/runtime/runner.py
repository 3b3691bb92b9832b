"""What runs a model, whatever the runtime: a loaded model's face, its inputs, the times of its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Feeds = Mapping[str, np.ndarray]
"""One set of inputs: input name -> array."""

Progress = Callable[[str, float], None]
"""Called with (what is being done, share done from 0 to 1)."""


@dataclass(frozen=True)
class LayerTime:
    """One layer of a profile: mean time per run in microseconds."""

    name: str
    op_type: str
    microseconds: float
    provider: str = ""
    type: str = ""


class Runner(Protocol):
    """A loaded model."""

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Output name -> array."""
        ...


class Runs(Protocol):
    """A graph that runs exactly as it stands."""

    def run(
        self, feeds: Feeds, seconds: float | None = None, names: Collection[str] | None = None
    ) -> Mapping[str, np.ndarray]:
        """Output name -> array, of all outputs or of `names`. InputError when it fails or takes longer than
        `seconds`."""
        ...


@dataclass(frozen=True)
class Known:
    """A graph of which is known what it gives for some arrays."""

    runner: Runs
    feeds: Feeds
    outputs: Feeds

    def run(
        self, feeds: Feeds, seconds: float | None = None, names: Collection[str] | None = None
    ) -> Mapping[str, np.ndarray]:
        """Output name -> array."""
        if feeds.keys() == self.feeds.keys() and all(feeds[name] is self.feeds[name] for name in feeds):
            return {n: a for n, a in self.outputs.items() if names is None or n in names}
        return self.runner.run(feeds, seconds, names)


@dataclass(frozen=True)
class Fed:
    """A graph of whose inputs some are given already."""

    runner: Runs
    given: Feeds

    def run(
        self, feeds: Feeds, seconds: float | None = None, names: Collection[str] | None = None
    ) -> Mapping[str, np.ndarray]:
        """Output name -> array."""
        return self.runner.run({**self.given, **feeds}, seconds, names)

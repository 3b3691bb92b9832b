"""What the routers of mixtures do on the samples: which experts they choose, how much weight these get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.calibrate.fused_mixtures import fused_mixtures
from sparsecc.calibrate.mixtures import Mixture, Seen, gathered_mixtures
from sparsecc.graph.analysis import Analysis
from sparsecc.runtime.segments import Walk

LEAST_SHARE = 0.0
"""The share among the chosen from which TCESS counts a score."""
EARLY, PERCENTILE, OF_LARGEST, OF_MEDIAN = 0.75, 99.5, 0.1, 10.0
"""Super Experts: in which layers, above which percentile, share of the largest, multiple of the median peak."""


@dataclass(frozen=True)
class Micro:
    """Squares of an inner width's activations times gate weight, per expert: summed and largest, (experts, slots)."""

    sums: np.ndarray
    largest: np.ndarray


@dataclass
class Router:
    """Sums over `tokens` of one mixture, (experts,) each: `times` an expert was chosen, its `gates`, its TCESS
    (`scores`), the `peaks` of |output|, the `norms` of gate weight times output, ‖g f‖₂. `together` (experts,
    experts) counts tokens that chose both.
    """

    mixture: Mixture
    tokens: int
    times: np.ndarray
    gates: np.ndarray
    scores: np.ndarray
    peaks: np.ndarray
    norms: np.ndarray
    together: np.ndarray
    micro: list[Micro]

    @staticmethod
    def empty(mixture: Mixture) -> Router:
        size = mixture.experts.size
        assert isinstance(size, int)
        widths = [(size, inner.axis.size) for inner in mixture.inner]
        micro = [Micro(np.zeros(shape), np.zeros(shape)) for shape in widths]  # type: ignore[arg-type]
        times, gates, scores, peaks, norms = (np.zeros(size) for _ in range(5))
        return Router(mixture, 0, times, gates, scores, peaks, norms, np.zeros((size, size)), micro)

    def add(self, seen: Seen) -> None:
        """Take in a batch."""
        size, (tokens, number) = len(self.times), seen.chosen.shape
        experts = seen.chosen.ravel()
        self.tokens += tokens
        self.times += np.bincount(experts, minlength=size)
        self.gates += np.bincount(experts, weights=seen.gates.ravel(), minlength=size)
        self.scores += tokens * tcess(seen.scores, number, LEAST_SHARE)
        hot = np.zeros((tokens, size))
        np.put_along_axis(hot, seen.chosen, 1.0, axis=1)
        self.together += hot.T @ hot
        for expert in np.unique(experts):
            pairs = np.flatnonzero(experts == expert)
            gates = seen.gates.ravel()[pairs, None]
            if seen.outputs is not None:
                peak = float(np.abs(seen.outputs[pairs]).max())
                self.peaks[expert] = max(self.peaks[expert], peak)
                weighted = (gates * seen.outputs[pairs]).astype(np.float64)
                self.norms[expert] += np.linalg.norm(weighted, axis=1).sum()
            for micro, rows in zip(self.micro, seen.inner, strict=True):
                squares = np.square(rows[pairs] * gates, dtype=np.float64)
                micro.sums[expert] += squares.sum(axis=0)
                micro.largest[expert] = np.maximum(micro.largest[expert], squares.max(axis=0))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the mixture, to be stored."""
        named = {name: np.asarray(getattr(self, name)) for name in ("tokens", *_STORED)}
        for number, micro in enumerate(self.micro):
            named |= {f"sums{number}": micro.sums, f"largest{number}": micro.largest}
        return named

    @staticmethod
    def of(mixture: Mixture, stored: Callable[[str], np.ndarray]) -> Router:
        """The router whose `arrays` were stored under these names."""
        micro = [Micro(stored(f"sums{i}"), stored(f"largest{i}")) for i in range(len(mixture.inner))]
        times, gates, scores, peaks, norms, together = (stored(name) for name in _STORED)
        return Router(mixture, int(stored("tokens")), times, gates, scores, peaks, norms, together, micro)


_STORED = ("times", "gates", "scores", "peaks", "norms", "together")


def tcess(scores: np.ndarray, number: int, least: float) -> np.ndarray:
    """Mean over tokens of an expert's score where it is among the `number` largest of the token and its share of
    their softmax is at least `least`, else 0: PreMoe (2025). Scores (tokens, experts); the result (experts,).
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :number]
    values = np.take_along_axis(scores, best, axis=1).astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    counts = powers / powers.sum(axis=1, keepdims=True) >= least
    sums = np.bincount(best[counts], weights=values[counts], minlength=scores.shape[1])
    return np.asarray(sums / max(len(scores), 1))


def mixtures_of(analysis: Analysis) -> list[Mixture]:
    """All mixtures whose router can be watched, in the graph's order."""
    place = {node: i for i, node in enumerate(analysis.model.graph)}
    found: list[Mixture] = [*gathered_mixtures(analysis), *fused_mixtures(analysis)]
    return sorted(found, key=lambda mixture: place[mixture.node])


class Watch:
    """The routers of a model during a walk: each is looked at where all that it asks for is known."""

    def __init__(self, analysis: Analysis) -> None:
        mixtures = mixtures_of(analysis)
        self.names = [name for mixture in mixtures for name in mixture.names]
        self.routers: list[Router] = []
        self._left = {mixture.node: mixture for mixture in mixtures}

    def look(self, walk: Walk, number: int) -> None:
        """Before the node of that position runs: take in its mixture, if it ends one."""
        mixture = self._left.pop(walk.nodes[number], None)
        if mixture is None:
            return
        walk.advance(number)
        router = Router.empty(mixture)
        for batch in range(walk.batches):
            router.add(mixture.read(partial(walk.value, batch=batch)))
        self.routers.append(router)
        for name in mixture.names:
            walk.release(name)


def supers(routers: Sequence[Router]) -> list[np.ndarray]:
    """Which experts are super, one mask per router: Unveiling Super Experts (2025).

    Their peak output reaches the 99.5th percentile over the experts of the first three quarters of the layers and
    a tenth of the largest. Any model has a largest expert, so it must also be ten times the median.
    """
    early = routers[: int(np.ceil(EARLY * len(routers)))]
    peaks = np.concatenate([r.peaks for r in early]) if early else np.zeros(1)
    seen = peaks[peaks > 0]
    if not len(seen):
        return [np.zeros(len(r.times), dtype=bool) for r in routers]
    least = max(
        float(np.percentile(peaks, PERCENTILE, method="lower")),
        OF_LARGEST * float(peaks.max()),
        OF_MEDIAN * float(np.median(seen)),
    )
    return [(r.peaks >= least) & (i < len(early)) for i, r in enumerate(routers)]


def facts_of(routers: Sequence[Router]) -> list[dict[str, Any]]:
    """For the report: what each router chose, by the numbers of its experts."""
    return [
        {
            "node": router.mixture.node.name,
            "experts": len(router.times),
            "tokens": router.tokens,
            "unused": np.flatnonzero(router.times == 0).tolist(),
            "most_used": round(float(router.times.max()) / max(router.tokens, 1), 4),
            "super": np.flatnonzero(spared).tolist(),
        }
        for router, spared in zip(routers, supers(routers), strict=True)
    ]


def routers_of(routers: Sequence[Router], atom: Atom) -> list[Router]:
    """Those that choose among slots of the atom."""
    return [router for router in routers if atom in atoms_of(router.mixture.experts)]

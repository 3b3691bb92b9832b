"""What is left of a mixture's experts takes over from what is gone.

The output of a mixture is linear in the last layers of its experts: Σ g_e W_e z_e over the chosen ones. So they are
refitted to the dense mixture's output by least squares, one expert after the other to what the others leave over,
from the tokens that choose it now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from sparsecc.calibrate.mixtures import Inner, Mixture, Seen
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.reconstruct.layerwise import UNCHANGED, Kept, Repair
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.remarks import Remark
from sparsecc.runtime.segments import Walk

TOKENS = 16384
"""Tokens that a refit looks at."""
SWEEPS = 3
DAMPINGS = (0.01, 0.1, 1.0, 10.0)
"""Relative to the mean power of an expert's activations; the one that mends unseen tokens best is taken."""


@dataclass(frozen=True)
class _Rows:
    """Tokens of a mixture: `chosen` (tokens, k), activations times gate weight (tokens * k, slots), and what the
    outputs lack (tokens, width), whose dense counterpart has the variance `power`.
    """

    chosen: np.ndarray
    active: np.ndarray
    missing: np.ndarray
    power: float

    def part(self, tokens: np.ndarray) -> _Rows:
        """Some tokens."""
        pairs = (tokens[:, None] * self.chosen.shape[1] + np.arange(self.chosen.shape[1])).ravel()
        return _Rows(self.chosen[tokens], self.active[pairs], self.missing[tokens], self.power)

    @property
    def error(self) -> float:
        return float(np.mean(np.square(self.missing))) / self.power


def mend_experts(
    compilation: Compilation,
    mixtures: Sequence[Mixture],
    dense: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    samples: Samples,
) -> Repair:
    """Edit the experts of `pruned` in place so that its mixtures give what those of `dense` do."""
    if not mixtures:
        return Repair()
    options, scratch = compilation.options, compilation.scratch
    compilation.progress("repair experts", 0.0)
    names = [name for mixture in mixtures for name in mixture.names]
    smaller = Narrowed.by(pruned.graph, kept)
    small = [smaller.feeds(batch) for batch in samples.batches]
    one, other = (
        Walk(
            model,
            batches,
            folder,
            wanted=names,
            threads=options.threads,
            memory=options.working_memory // 2,
        )
        for model, batches, folder in (
            (dense, samples.batches, scratch.dense_experts),
            (pruned, small, scratch.pruned_experts),
        )
    )
    return refit_experts(mixtures, one, other, kept, options.seed)


def refit_experts(mixtures: Sequence[Mixture], dense: Walk, pruned: Walk, kept: Kept, seed: int) -> Repair:
    """Refit the experts of a pruned model, mixture after mixture, both models walked side by side.

    The walks must hold the values that the mixtures name.
    """
    found = Repair()
    twins = {node.name: node for node in dense.nodes}
    for mixture in mixtures:
        name = mixture.node.name or ""
        reason = _reason(mixture, twins, dense)
        if reason is None:
            pruned.advance(pruned.place[mixture.node])
            dense.advance(dense.place[twins[name]])
            reason = _Refit(mixture, twins[name], dense, pruned, kept, seed).run(found)
        if reason:
            found.remarks.append(Remark(name, reason))
        for walk in (dense, pruned):
            for value in mixture.names:
                walk.release(value)
    return found


def _reason(mixture: Mixture, twins: dict[str | None, ir.Node], dense: Walk) -> str | None:
    inputs = {v.name for v in dense.model.graph.inputs}
    if mixture.node.name not in twins or not dense.made_at.keys() | inputs >= set(mixture.names):
        return "its mixture has no counterpart in the dense model"
    if not mixture.inner:
        return "the last layer of its experts is not known"
    if len(mixture.inner[-1].weight.uses()) > 1:
        return "its experts are shared with another mixture"
    return None


@dataclass(frozen=True)
class _Refit:
    """One mixture, beside the node that ends it in the dense model."""

    mixture: Mixture
    twin: ir.Node
    dense: Walk
    pruned: Walk
    kept: Kept
    seed: int

    def run(self, found: Repair) -> str | None:
        """Refit it; why not where it is left alone."""
        rows = self._rows()
        if rows is None:
            return "its output has another width than in the dense model"
        before, damping = rows.error, None
        if before < UNCHANGED:
            return None
        if not np.isfinite(before):
            return "its calibration inputs hold NaN or infinity"
        inner, after = self.mixture.inner[-1], before
        damping = _damping(rows)
        if damping is not None:
            change, left = fitted(rows.chosen, rows.active, rows.missing, _experts(inner), damping)
            after = replace(rows, missing=left).error
            _store(inner, change)
            self._bring_up(change)
            found.changed.append(inner.weight.name or "")
        row = {"layer": self.mixture.node.name, "error_before": before, "error_after": after}
        found.layers.append(row if damping is None else {**row, "damping": damping})
        return None

    def _rows(self) -> _Rows | None:
        parts, wanted, random = [], [], np.random.default_rng(self.seed)
        twin = replace(self.mixture, node=self.twin)  # type: ignore[type-var]
        mask = self.kept(self.mixture.outputs or self.mixture.node.outputs[0].name or "", -1)
        for batch in range(self.pruned.batches):
            seen = self._seen(batch)
            target = mixed(twin.read(partial(self.dense.value, batch=batch)))
            target, given = target if mask is None else target[:, mask], mixed(seen)
            if given.shape != target.shape:
                return None
            number = min(len(given), -(-TOKENS // self.pruned.batches))
            tokens = np.sort(random.choice(len(given), number, replace=False))
            active = seen.inner[-1].astype(np.float64) * seen.gates.reshape(-1, 1)
            parts.append(_Rows(seen.chosen, active, target - given, 1.0).part(tokens))
            wanted.append(target[tokens])
        chosen, active, missing = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("chosen", "active", "missing")
        )
        return _Rows(chosen, active, missing, max(float(np.concatenate(wanted).var()), 1e-12))

    def _seen(self, batch: int) -> Seen:
        return self.mixture.read(partial(self.pruned.value, batch=batch))

    def _bring_up(self, change: np.ndarray) -> None:
        """Where the experts' outputs were computed before the refit, add what it changes."""
        name = self.mixture.outputs
        for batch in range(self.pruned.batches) if name else ():
            seen, held = self._seen(batch), self.pruned.value(name, batch)
            added = _by_pair(seen.chosen, seen.inner[-1], change).reshape(held.shape)
            self.pruned.replace(name, batch, (held + added).astype(held.dtype))


def mixed(seen: Seen) -> np.ndarray:
    """The mixture's output: (tokens, width)."""
    assert seen.outputs is not None
    parts = seen.outputs.reshape(*seen.gates.shape, -1)
    return np.asarray(np.einsum("tk,tkw->tw", seen.gates.astype(np.float64), parts))


def fitted(
    chosen: np.ndarray, active: np.ndarray, missing: np.ndarray, experts: int, damping: float
) -> tuple[np.ndarray, np.ndarray]:
    """What to add to the experts' last layers, (experts, slots, width), and what is missing then (tokens, width)."""
    left = missing.copy()
    change = np.zeros((experts, active.shape[1], missing.shape[1]))
    pairs = {e: np.flatnonzero(chosen.ravel() == e) for e in range(experts)}
    powers = {e: active[p].T @ active[p] for e, p in pairs.items()}
    for _ in range(SWEEPS):
        for expert, own in pairs.items():
            if not len(own):
                continue
            rows, tokens = active[own], own // chosen.shape[1]
            wanted = left[tokens] + rows @ change[expert]
            ridge = damping * max(float(np.trace(powers[expert])) / len(powers[expert]), 1e-30)
            new = np.linalg.solve(powers[expert] + ridge * np.eye(len(powers[expert])), rows.T @ wanted)
            left[tokens] = wanted - rows @ new
            change[expert] = new
    return change, left


def _damping(rows: _Rows) -> float | None:
    """The damping whose refit from each half of the tokens mends the other best; None where none does."""
    tokens = np.arange(len(rows.chosen))
    halves = rows.part(tokens[: len(tokens) // 2]), rows.part(tokens[len(tokens) // 2 :])
    experts = int(rows.chosen.max()) + 1
    best, least = None, sum(half.error for half in halves)
    for damping in DAMPINGS:
        error = 0.0
        for seen, unseen in (halves, halves[::-1]):
            change, _ = fitted(seen.chosen, seen.active, seen.missing, experts, damping)
            error += replace(
                unseen, missing=unseen.missing - _given(unseen.chosen, unseen.active, change)
            ).error
        if error < least:
            best, least = damping, error
    return best


def _given(chosen: np.ndarray, active: np.ndarray, change: np.ndarray) -> np.ndarray:
    """What changed last layers add to the output: (tokens, width)."""
    return np.asarray(_by_pair(chosen, active, change).reshape(*chosen.shape, -1).sum(axis=1))


def _by_pair(chosen: np.ndarray, active: np.ndarray, change: np.ndarray) -> np.ndarray:
    """(tokens * k, width)."""
    added = np.zeros((chosen.size, change.shape[2]))
    for expert in np.unique(chosen):
        own = np.flatnonzero(chosen.ravel() == expert)
        added[own] = active[own] @ change[expert]
    return added


def _experts(inner: Inner) -> int:
    assert inner.weight.const_value is not None
    return int(inner.weight.const_value.shape[inner.expert])  # type: ignore[arg-type]


def _store(inner: Inner, change: np.ndarray) -> None:
    tensor = inner.weight.const_value
    assert tensor is not None
    array = tensor.numpy().copy()
    stack = np.moveaxis(array, (inner.expert, inner.slot), (0, 1))
    stack += change.reshape(stack.shape).astype(array.dtype)
    inner.weight.const_value = ir.Tensor(array, name=inner.weight.name)

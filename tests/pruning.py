"""Prune at random and compare: the question behind the zoo's tests and benchmark."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom
from sparsecc.compilation import Compilation
from sparsecc.cost.model import params_model
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.ir.dtypes import FLOATS
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.plan import make_plan
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.verify.plan_check import zeroed
from sparsecc.verify.probes import Probes


@dataclass
class Pruned:
    """What came of pruning one model: shares are of weight parameters, errors relative to the largest output."""

    nodes: int
    seconds: float
    groups: int
    free: int
    coverage: float
    left: float
    predicted: float
    error: float
    rounding: float
    planned_error: float | None
    changed: float
    pins: dict[str, int] = field(default_factory=dict)
    unfollowed: dict[str, int] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Equal to the masked dense model up to the order of additions."""
        return self.error <= max(1e-4, 16 * self.rounding)


def random_half(groups: list[Group], seed: int) -> dict[Atom, np.ndarray]:
    """A mask for every free group with half of its slots, drawn at random."""
    generator = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        if group.is_free:
            keep[group.atom] = np.ones(group.size, dtype=bool)
            keep[group.atom][
                generator.permutation(group.size)[: min(group.size // 2, group.size - group.least)]
            ] = False
    return keep


def prune_half(path: Path, scratch: Path, seed: int = 0) -> Pruned:
    """Remove a random half of every free group; compare with the masked dense model at every probe's sizes."""
    model = normalise(load_ir(path))
    compilation = Compilation(path, CompileOptions(seed=seed), Scratch(scratch))
    compilation.begin(model)
    probes = Probes(compilation)
    begun = time.perf_counter()
    analysis = analyse(model)
    groups = find_groups(analysis)
    seconds = time.perf_counter() - begun
    analysis = compilation.analysed(model)
    groups = find_groups(analysis)
    keep = random_half(groups, seed)
    result = _described(analysis, groups, seconds)
    kept = {atom: int(slots.sum()) for atom, slots in keep.items()}
    result.predicted = params_model(analysis).total(kept)
    plan = make_plan(analysis, groups, keep, {})
    removal = probes.of_removal(analysis, keep)
    remove(analysis, keep)
    runner = open_session(write(model, scratch / "pruned" / "model.onnx"), level="none")
    found = []
    for (feeds, wanted, moved), dense in zip(probes.reference(removal), compilation.expected, strict=True):
        found.append(runner.run(feeds))
        error = worst_error(wanted, found[-1])
        result.error = max(result.error, error)
        result.changed = max(result.changed, worst_error(dense, wanted))
        if error > 1e-4:
            result.rounding = max(result.rounding, moved())
    if not plan.mixes:
        other = zeroed(normalise(load_ir(path)), plan.to_json())
        runner = open_session(write(other, scratch / "zeroed" / "model.onnx"), level="none")
        result.planned_error = max(
            worst_error(runner.run(f), o) for f, o in zip(compilation.feeds, found, strict=True)
        )
    result.left = _parameters(model)
    return result


def _described(analysis: Analysis, groups: list[Group], seconds: float) -> Pruned:
    names = {name for g in groups if g.is_free for name, _ in g.members}
    tensors = {n: v.const_value for n, v in analysis.model.graph.initializers.items()}
    sizes = {
        n: int(t.size) for n, t in tensors.items() if t is not None and t.dtype in FLOATS and len(t.shape)
    }
    covered = sum(size for n, size in sizes.items() if n in names)
    pins = Counter(g.pinned.rsplit(" of ", 1)[0] for g in groups if g.pinned)
    return Pruned(
        nodes=len(analysis.model.graph),
        seconds=seconds,
        groups=len(groups),
        free=sum(g.is_free for g in groups),
        coverage=covered / (sum(sizes.values()) or 1),
        left=0.0,
        predicted=0.0,
        error=0.0,
        rounding=0.0,
        planned_error=None,
        changed=0.0,
        pins=dict(pins),
        unfollowed=dict(Counter(f"{n.op_type}: {r}" for n, r in analysis.record.unfollowed.items())),
    )


def _parameters(model: ir.Model) -> float:
    tensors = [v.const_value for v in model.graph.initializers.values()]
    return float(sum(int(t.size) for t in tensors if t is not None and t.dtype in FLOATS))


def removable(analysis: Analysis) -> float:
    """The share of the parameters that is gone where every free group keeps as few slots as it may."""
    params = params_model(analysis)
    least = {group.atom: group.least for group in find_groups(analysis) if group.is_free}
    return 1 - params.total(least) / (params.total({}) or 1)

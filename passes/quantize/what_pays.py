"""Layers that fewer bits do not make faster stay in float: by timing where the target runs here, by a table where not.

Layers of one kind and size gain or lose together, so groups of them are judged, and every timing is of the whole
model: single layers are too short to be told apart on a busy machine, and their times do not add up. A group goes back
to float only where the whole interval says so. The end is held against float: integers stay at KEPT of its speed or
more (NVIDIA's Autotune keeps them from 1.02 on, for what they lose; here they also make files smaller).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.graph.patterns import exactly
from sparsecc.measure.statistics import LogRatio
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.select_layers import Decision, fused_result
from sparsecc.passes.quantize.stopwatch import Stopwatch, is_timed
from sparsecc.passes.quantize.stored_weights import FREE
from sparsecc.remarks import Remark

KEPT = 0.98
"""The least speed relative to float, by the lower end of the interval, at which integers stay."""
THIN = 32.0
"""Multiply-accumulates per value moved under which a layer between float ones converts longer than it gains."""
GAINS = 1.25
"""The speed relative to float from which on groups that are not thin are no suspects."""
SECONDS, LATEST = 12.0, 45.0
"""Processor time, and time, for which groups are tried one after the other; the others stay as they are then."""

Written = Callable[[Collection[str]], ir.Model]
"""A copy of the model in the type, but for the named nodes."""


@dataclass(frozen=True)
class Group:
    """Layers that one kernel runs at sizes alike. `is_thin` says that by the table they do not pay, `is_extra` that
    they have no weights that would be smaller: thin ones are taken only where the model is surely faster."""

    what: str
    names: tuple[str, ...]
    density: float
    is_thin: bool
    is_extra: bool = False


@dataclass
class Paying:
    """The nodes left in float, and how that was found: facts for the report."""

    left: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def told(self, result: PassResult) -> PassResult:
        """What a type did with the rest, with what was left for speed, which is said once."""
        known = {remark.where for remark in self.remarks}
        remarks = (remark for remark in result.remarks if remark.where not in known)
        warnings = [*self.warnings, *result.facts.get("warnings", ())]
        facts = {**result.facts, "speed": self.facts, "warnings": warnings}
        return replace(result, facts=facts, remarks=(*self.remarks, *remarks))


def what_pays(
    type_: str,
    groups: Sequence[Group],
    written: Written,
    model: ir.Model,
    exclude: Sequence[str],
    compilation: Compilation,
) -> Paying:
    """Which layers of the model in float stay there because the type would make them no faster; what was timed goes
    into the recipe by name, beside those that are excluded anyway."""
    if not is_timed(compilation):
        return by_table(groups)
    paying = by_timing(type_, groups, written, model, compilation) if groups else Paying()
    names = [node.name or "" for node in model.graph.all_nodes()]
    left = ",".join(exactly(name, names) for name in (*exclude, *paying.left))
    asked = {**compilation.options.quantize_options, **({"exclude": left} if left else {})}
    compilation.measured_options |= {"quantize": f"{type_}!", "quantize_options": asked}
    return paying


def groups_of(
    decision: Decision, forced: Collection[str], densities: Mapping[str, float] | None = None
) -> list[Group]:
    """The layers of a decision that are not forced, in groups, those that are most likely to lose first. `densities`
    are those of products of activations."""
    groups = grouped(decision.layers, forced, lambda layer: _is_lone(layer, decision))
    products = [node.name or "" for node in decision.products if node.name not in forced]
    for is_thin in (True, False):
        some = {name: d for name in products if ((d := (densities or {})[name]) < THIN) == is_thin}
        if some:
            what = f"products of activations, {_size(is_thin)}"
            groups.append(Group(what, tuple(some), sum(some.values()) / len(some), is_thin, is_extra=True))
    for operator in dict.fromkeys(node.op_type for node in decision.stored):
        names = tuple(n.name or "" for n in decision.stored if n.op_type == operator and n.name not in forced)
        groups += [Group(f"weights of {operator}", names, math.inf, operator not in FREE)] if names else []
    return sorted(groups, key=_likely_to_lose)


def grouped(
    layers: Iterable[LinearLayer], forced: Collection[str], stands_alone: Callable[[LinearLayer], bool]
) -> list[Group]:
    """Layers that are not forced in groups, as above. One that stands alone converts all that it reads and gives."""
    found: dict[tuple[str, bool, bool], list[LinearLayer]] = defaultdict(list)
    for layer in layers:
        if layer.name not in forced:
            found[_kind(layer), density(layer) < THIN, stands_alone(layer)].append(layer)
    groups = []
    for (kind, is_thin, is_lone), layers in found.items():
        what = f"{kind}, {_size(is_thin)}{', between float ones' if is_lone else ''}"
        mean = sum(density(layer) for layer in layers) / len(layers)
        groups.append(Group(what, tuple(layer.name for layer in layers), mean, is_thin and is_lone))
    return sorted(groups, key=_likely_to_lose)


def _size(is_thin: bool) -> str:
    return f"{'under' if is_thin else 'from'} {THIN:g} multiply-accumulates per value"


def _likely_to_lose(group: Group) -> tuple[bool, float]:
    return not group.is_thin, group.density


def density(layer: LinearLayer) -> float:
    """Multiply-accumulates per value that is read or written: the more, the more integers gain."""
    groups, outputs, columns = layer.sizes
    inputs = columns // layer.cells * groups if layer.is_conv else columns
    steps = int(np.prod(layer.node.attributes.get_ints("strides") or [1])) if layer.is_conv else 1
    return groups * outputs * columns / (inputs * steps + groups * outputs)


def _kind(layer: LinearLayer) -> str:
    if not layer.is_conv:
        return "matrix products"
    if layer.group > 1:
        return "depthwise convolutions" if layer.shape[1] == 1 else "grouped convolutions"
    return "1x1 convolutions" if layer.cells == 1 else "convolutions"


def _is_lone(layer: LinearLayer, decision: Decision) -> bool:
    """Whether what it reads comes from a float kernel, and what it gives goes to float kernels only."""
    if layer.source in decision.full:
        return False
    integer = {*(other.node for other in decision.layers), *decision.followers}
    return integer.isdisjoint(fused_result(layer.node).consumers())


def by_table(groups: Sequence[Group]) -> Paying:
    """What is left in float where nothing can be timed."""
    thin = [group for group in groups if group.is_thin]
    reason = "integers gain less there than the conversions take"
    remarks = [
        Remark(name, f"left in float: {group.what}: {reason}") for group in thin for name in group.names
    ]
    facts = {"how": "table", "left_in_float": [remark.where for remark in remarks]}
    return Paying(tuple(remark.where for remark in remarks), facts, remarks)


def by_timing(
    type_: str, groups: Sequence[Group], written: Written, in_float: ir.Model, compilation: Compilation
) -> Paying:
    """What is left in float on this machine: groups without which the model is surely faster, and all of them where
    it would be slower than in float."""
    return Trial(type_, groups, written, Stopwatch(compilation, in_float), compilation).run()


class Trial:
    """One search for the fastest choice."""

    def __init__(
        self,
        type_: str,
        groups: Sequence[Group],
        written: Written,
        watch: Stopwatch,
        compilation: Compilation,
    ) -> None:
        self.type, self.groups, self.written = type_, groups, written
        self.watch, self.compilation = watch, compilation
        self.left = [group for group in groups if group.is_extra and group.is_thin]
        self.best = self._file(self.left)
        self.rows: list[dict[str, Any]] = []

    def run(self) -> Paying:
        whole = self.watch.ratio(self.watch.in_float, self.best)
        begun, spent = time.monotonic(), time.process_time()
        extra, first = list(self.left), self.best
        others = [group for group in self.groups if group not in extra]
        thin = [group for group in others if group.is_thin]
        suspects = thin if math.exp(-whole.high) > GAINS else others
        for number, group in enumerate([*suspects, *extra]):
            if time.monotonic() - begun < LATEST and time.process_time() - spent < SECONDS:
                self._add(group) if group in extra else self._try([group])
            self.compilation.progress("time types", (number + 1) / (len(suspects) + len(extra)))
        if self.left == extra and len(thin) > 1:
            self._try(thin)  # each may be too little to be told apart
        chosen = (
            whole if self.best is first else self.watch.ratio(self.watch.in_float, self.best, brief=False)
        )
        if math.exp(-chosen.high) < KEPT < math.exp(-chosen.low):
            chosen = self.watch.ratio(self.watch.in_float, self.best, brief=False)
        return self._told(whole, chosen)

    def _try(self, more: Sequence[Group]) -> None:
        """Leave these in float as well where that is surely faster."""
        left = [*self.left, *more]
        if len(left) == len(self.groups):
            return  # that is the model in float, which comes last
        file = self._file(left)
        ratio = self.watch.ratio(self.best, file)
        is_faster = ratio.high < 0
        what = "; ".join(group.what for group in more)
        self.rows.append({"group": what, "in_float": ratio.to_json(), "left": is_faster})
        if is_faster:
            self.left, self.best = left, file

    def _add(self, group: Group) -> None:
        """Take these, too, where that is surely faster."""
        left = [other for other in self.left if other is not group]
        file = self._file(left)
        ratio = self.watch.ratio(self.best, file)
        self.rows.append({"group": group.what, "in_integers": ratio.to_json(), "left": ratio.high >= 0})
        if ratio.high < 0:
            self.left, self.best = left, file

    def _file(self, left: Sequence[Group]) -> Path:
        return self.watch.file(self.written([name for group in left for name in group.names]))

    def _told(self, whole: LogRatio, chosen: LogRatio) -> Paying:
        facts: dict[str, Any] = {
            "how": "timed", "all": whole.to_json(), "chosen": chosen.to_json(), "tried": self.rows,
        }  # fmt: skip
        left = [(name, group.what) for group in self.left for name in group.names]
        reason = "the model is no slower with these in float"
        warnings = []
        if math.exp(-chosen.high) < KEPT:
            left = [(name, group.what) for group in self.groups for name in group.names]
            reason = f"{self.type} runs at {_speed(chosen)} of the speed of float"
            warnings = [
                f"{self.type} pays in no layer here: at best the model would run at {_speed(chosen)} of its speed in "
                f"float; --quantize {self.type}! insists"
            ]
        facts["left_in_float"] = [name for name, _ in left]
        remarks = [Remark(name, f"left in float: {what}: {reason}") for name, what in left]
        return Paying(tuple(name for name, _ in left), facts, remarks, warnings)


def _speed(ratio: LogRatio) -> str:
    return f"{ratio.speedup:.2f} ({math.exp(-ratio.high):.2f} to {math.exp(-ratio.low):.2f})"

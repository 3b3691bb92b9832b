"""The proof that removing channels was right, and that it would have noticed had it been wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InputError, InternalError
from sparsecc.escaping import quoted
from sparsecc.graph.rewrite import Cut
from sparsecc.ir.subgraphs import show
from sparsecc.ir.switches import ELSE, THEN, in_full_precision, with_switches
from sparsecc.reference.layer_values import LayerValue
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.filed import Filed
from sparsecc.runtime.numerics import Outputs, is_float, is_quantized
from sparsecc.runtime.part_errors import (
    STEPPED,
    Errors,
    Rounding,
    largest,
    part_errors,
    steady,
    tolerances_of,
    unexplained,
)
from sparsecc.runtime.rounding import AMPLIFIED, nudged, nudged_weights, same_rows, selects
from sparsecc.runtime.runner import Feeds, Runs
from sparsecc.system.memory import give_back
from sparsecc.verify.planted import Plant

Opened = Callable[[ir.Model], Runs]
"""Loads a graph that nobody edits any more; constants that are inputs too may be given."""

Sides = Mapping[str, int]
"""The branches that Ifs are told to take, by flag."""

RANDOM, RESIZED = "random inputs", "random inputs of another size"
"""The probes of every compile, whose errors are told: others may be extreme."""

ENOUGH = 0.8
"""The share of plants that outputs must notice: a key's bias, for one, moves no output of an attention."""

_DRAWS = 2
_LAST_DRAWS = 4
"""How often inputs and weights are moved before a difference counts as a fault."""
_PLANT_DRAWS = 1
"""The same before a planted fault counts as noticed."""


@dataclass(frozen=True)
class Removal:
    """What a proof compares: the masked dense model per probe, the values of layers that the first of them shows,
    and the constants that were cut."""

    masked: Sequence[Runs] = ()
    layers: Sequence[LayerValue] = ()
    cuts: Sequence[Cut] = ()


@dataclass
class Seen:
    """What the probes have shown so far."""

    outputs: dict[str, dict[str, float]] = field(default_factory=dict)
    at_outputs: set[int] = field(default_factory=set)
    at_layers: set[int] = field(default_factory=set)
    finite: set[str] = field(default_factory=set)
    varied: set[str] = field(default_factory=set)
    values: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, set[int]] = field(default_factory=dict)
    probes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> int:
        """How much outputs have shown: numbers, and more than one."""
        return len(self.finite) + len(self.varied)

    def look_at(self, outputs: Outputs) -> None:
        """Note which outputs hold finite numbers, and which more than one value."""
        for name, output in outputs.items():
            array = np.asarray(output) if not isinstance(output, list) else np.zeros(2)
            numbers = array.reshape(-1)
            if is_float(array):
                numbers = numbers[np.isfinite(numbers)]
            if not numbers.size and array.size:
                continue
            self.finite.add(name)
            first = self.values.setdefault(name, numbers[0] if numbers.size else None)
            if isinstance(output, list) or not array.size or (numbers != first).any():
                self.varied.add(name)


class Surgery:
    """The pruned graph with plants, shown layers and switched branches as one session, held against the masked one.

    InternalError where they differ by more than rounding explains.
    """

    def __init__(
        self,
        pruned: ir.Model,
        removal: Removal,
        plants: Sequence[Plant],
        narrowed: Narrowed,
        opened: Opened,
        in_pieces: Opened,
        by_parts: bool = False,
        unsteady: Mapping[str, float] | None = None,
    ) -> None:
        self.plants, self.narrowed, self.opened = plants, narrowed, opened
        self.unsteady = unsteady or {}
        self.names = list(dict.fromkeys(value.name or "" for value in pruned.graph.outputs))
        made = {value.name for node in pruned.graph for value in node.outputs}
        self.layers = {layer.name: layer for layer in removal.layers if layer.name in made}
        self.model = pruned.clone()
        self.model.ir_version = max(self.model.ir_version or 4, 4)  # before, constants could not be inputs
        in_full_precision(self.model)
        self.branches = with_switches(self.model)
        show(self.model, [*self.layers, *(one.taken for one in self.branches.values() if one.taken)])
        known = self.model.graph.initializers
        plain = {plant.name: known[plant.name] for plant in plants}
        self.plain = {name: value.const_value for name, value in plain.items()}
        self.model.graph.inputs.extend(value for value in plain.values() if not value.is_graph_input())
        taken = [branch.taken for branch in self.branches.values() if branch.taken]
        self.shown = [*self.names, *taken]
        self.by_parts = by_parts
        self.runner = in_pieces(self.model) if plants else opened(self.model)
        self.selects = selects(pruned)
        self.sure = STEPPED if is_quantized(pruned) else AMPLIFIED
        self.seen = Seen()
        self.telling: list[tuple[Feeds, Outputs]] = []
        """The probes that showed a number, or a second one, where an output had shown none, with the outputs."""

    def compare(self, reference: Runs, feeds: Feeds, title: str, sides: Sides | None = None) -> Outputs:
        """One probe: the right graph against its reference, then every plant not noticed yet. The outputs."""
        sides = sides or {}
        flags = {flag: np.asarray(side) for flag, side in sides.items()}
        small = {**self.narrowed.feeds(feeds), **flags}
        names = self.shown if title == RESIZED else None  # layers are known at the size of the first probe
        give_back()
        wanted = self._told(reference.run({**feeds, **flags}, names=names))
        give_back()  # one of the two models at a time: each casts or holds as much as its weights
        found = self.runner.run(small, names=names)
        errors = part_errors(wanted, found)
        is_clear = not unexplained(errors, tolerances_of(wanted))
        rounding = Rounding(found, () if is_clear else self._moved(small, _DRAWS, found))
        floors = None if is_clear else rounding.floors(wanted)
        told = self._require_explained(reference, {**feeds, **flags}, wanted, found, errors, floors)
        asked = self.names if title in (RANDOM, RESIZED) else set(self.names) - self.seen.finite
        self._note_errors(asked, errors, told)
        known = self.seen.shown
        self.seen.look_at({name: wanted[name] for name in self.names})
        if self.seen.shown > known and not sides:
            self.telling.append((feeds, {name: found[name] for name in self.names}))
        self.seen.probes.append(title)
        self._note_branches(found, sides)
        waiting = [i for i in range(len(self.plants)) if i not in self.seen.at_outputs]
        if waiting:
            rounding = rounding if floors else Rounding(found, self._moved(small, _PLANT_DRAWS, found))
            for number in waiting:
                self._try(number, small, wanted, errors, rounding)
            give_back()
        return {name: found[name] for name in self.names}

    def try_also(self, reference: Runs, feeds: Feeds, title: str, sides: Sides | None = None) -> None:
        """The same on inputs, or in branches, that the model may refuse."""
        try:
            self.compare(reference, feeds, title, sides)
        except InputError:
            self.seen.refused.append(title)

    def turn(self, reference: Runs, feeds: Feeds) -> None:
        """Run every branch that no probe was seen to take, and the branches that it stands in."""
        for flag, side in self.unseen_branches:
            if side not in self.seen.taken[flag]:
                self.try_also(
                    reference, feeds, "the other branch", {**self.branches[flag].within, flag: side}
                )

    @property
    def wants_more(self) -> bool:
        """Whether nothing noticed some plant, outputs noticed few, or an output shows no number or only one."""
        seen, number = self.seen, len(self.plants)
        all_noticed = (
            len(seen.at_outputs | seen.at_layers) == number and len(seen.at_outputs) >= ENOUGH * number
        )
        return not (all_noticed and seen.varied.issuperset(self.names))

    @property
    def unseen_branches(self) -> list[tuple[str, int]]:
        """The branches that no probe was seen to take: the flag of the If, and the side."""
        return [
            (flag, side)
            for flag, taken in self.seen.taken.items()
            for side in (THEN, ELSE)
            if side not in taken
        ]

    def verdict(self) -> dict[str, Any]:
        """What the proof says, for the report."""
        seen = self.seen
        noticed = seen.at_outputs | seen.at_layers
        missed = [plant for i, plant in enumerate(self.plants) if i not in noticed]
        silent = [name for name in self.names if name not in seen.finite]
        constant = [name for name in self.names if name in seen.finite - seen.varied]
        branches = [
            f"the {'then' if side == THEN else 'else'} branch of {quoted(self.branches[flag].node)}"
            for flag, side in self.unseen_branches
        ]
        floors = [told["rounding_floor"] for told in seen.outputs.values() if "rounding_floor" in told]
        reasons = [
            f"the model gives other outputs each time: {quoted(name)} differs from itself by {error:.2g} on the same "
            "inputs"
            for name, error in self.unsteady.items()
        ]
        reasons += [f"output {quoted(name)} is not finite on any probe" for name in silent]
        reasons += [f"no probe takes {branch}" for branch in branches]
        reasons += [
            f"{quoted(name)} differs by {error}, more than rounding explains for sure"
            for name, error in seen.doubts.items()
        ]
        if missed:
            one = missed[0]
            reasons.append(
                f"{len(missed)} of {len(self.plants)} planted faults change nothing on any probe, for example "
                f"{quoted(one.name)} of {quoted(one.layer)}"
            )
        return {
            "status": "not proved" if reasons else "proved",
            **({"reason": "; ".join(reasons)} if reasons else {}),
            "planted": {
                "tried": len(self.plants),
                "noticed": len(noticed),
                "at_outputs": len(seen.at_outputs),
            },
            "probes": list(dict.fromkeys(seen.probes)),
            **({"constant_outputs": constant} if constant else {}),
            "max_relative_error": max(
                (told["max_relative_error"] for told in seen.outputs.values()), default=0.0
            ),
            "rounding_floor": max(floors) if floors else None,
            "outputs": seen.outputs,
        }

    def _note_branches(self, found: Outputs, sides: Sides) -> None:
        """An If of the main graph says which branch ran; one in a body ran those that it was told to."""
        for flag, branch in self.branches.items():
            taken = self.seen.taken.setdefault(flag, set())
            if branch.taken:
                taken.add(THEN if np.asarray(found[branch.taken]).reshape(-1)[0] else ELSE)
            elif flag in sides and branch.within.items() <= sides.items():
                taken.add(sides[flag])

    def _note_errors(self, names: Iterable[str], errors: Errors, floors: Errors | None) -> None:
        for name in names:
            told = self.seen.outputs.setdefault(name, {"max_relative_error": 0.0, "worst_channel": 0.0})
            told["max_relative_error"] = max(told["max_relative_error"], float(errors[name][0]))
            told["worst_channel"] = max(told["worst_channel"], float(errors[name].max()))
            if floors is not None:
                floor = float(np.nan_to_num(floors[name][0], posinf=0.0))
                told["rounding_floor"] = max(told.get("rounding_floor", 0.0), floor)

    def _try(self, number: int, small: Feeds, wanted: Filed, errors: Errors, rounding: Rounding) -> None:
        """Note a plant that adds more to the errors of the right graph than rounding explains."""
        plant = self.plants[number]
        try:
            wrong = self._with(plant, small, wanted)
        except InputError:
            self.seen.at_outputs.add(number)
            return
        if moved := rounding.leaves(wanted.only(self.names), wrong, errors):
            self.seen.at_outputs.add(number)
            self.seen.varied.update(moved)
        elif rounding.leaves(wanted.only(n for n in wanted if n not in self.names), wrong, errors):
            self.seen.at_layers.add(number)

    def _with(self, plant: Plant, small: Feeds, wanted: Outputs) -> Outputs:
        """What the graph with a plant gives, of what is wanted."""
        return self.runner.run({**small, plant.name: plant.wrong()}, names=wanted)

    def _moved(self, small: Feeds, draws: int, names: Collection[str]) -> list[Outputs]:
        """The pruned graph's values when its inputs and the constants of the plants move by a rounding step."""
        constants = {
            name: tensor.numpy() for name, tensor in self.plain.items() if tensor and not self.by_parts
        }
        return [self.runner.run(nudged({**small, **constants}, draw), names=names) for draw in range(draws)]

    def _require_explained(
        self,
        reference: Runs,
        feeds: Feeds,
        wanted: Outputs,
        found: Outputs,
        errors: Errors,
        floors: Errors | None,
    ) -> Errors | None:
        """What rounding of inputs and of all weights explains; InternalError where a part differs by more.

        What only a jump explains (a NaN that came or went, a number rounded to another) is a doubt: no proof.
        """
        tolerances = tolerances_of(wanted)
        sure = self._steady(floors) if floors else None
        if not floors or not sure or not unexplained(errors, tolerances, sure, self.sure):
            return sure
        shown, first = {name: found[name] for name in wanted}, sure
        for draw in range(_LAST_DRAWS):
            moved = self.opened(nudged_weights(self.model, draw))
            small = self.narrowed.feeds(feeds)
            own = part_errors(shown, moved.run(nudged(small, draw), names=wanted))
            other = part_errors(wanted, self._told(reference.run(nudged(feeds, draw))))
            floors = largest(floors, own, other)
            sure = largest(sure, *(self._steady(one, first) for one in (own, other)))
            if not unexplained(errors, tolerances, sure, self.sure):
                return sure
        doubted, left = (
            unexplained(errors, tolerances, sure, self.sure),
            unexplained(errors, tolerances, floors),
        )
        self.seen.doubts |= {name: f"{doubted[name]:.2g}" for name in doubted.keys() - left.keys()}
        if self.selects:
            left = {n: e for n, e in left.items() if not same_rows(wanted[n], found[n], tolerances[n])}
        if (
            self.unsteady
        ):  # noise reaches layers too: only outputs that are the same each time tell of a fault
            left = {n: e for n, e in left.items() if n in self.names and n not in self.unsteady}
        if left:
            name = max(left, key=lambda n: left[n])
            what = "output" if name in self.names else "layer value"
            raise InternalError(
                f"the pruned model differs from the masked dense one by {left[name]:.2g} at {what} {quoted(name)}, "
                f"rounding explains {float(np.max(floors[name])):.2g}"
            )
        return sure

    def _steady(self, floors: Errors, first: Errors | None = None) -> Errors:
        """The errors that rounding makes, without jumps.

        All of them where the graph selects: rows that change their place are jumps, and right. Integers jump always.
        """
        return floors if self.selects else steady(floors, None if self.sure == STEPPED else first)

    def _told(self, told: Outputs) -> Filed:
        """What the pruned graph must give, of what its reference gave."""
        wanted = Filed()
        for name, array in self.narrowed.wanted({name: told[name] for name in self.names}).items():
            wanted.put(name, array)
        for name, layer in self.layers.items():
            if name in told:
                wanted.put(name, layer.left(told[name]))
        return wanted


def proven(
    pruned: ir.Model,
    removal: Removal,
    plants: Sequence[Plant],
    narrowed: Narrowed,
    probes: Sequence[Feeds],
    others: Iterator[tuple[str, Feeds]],
    opened: Opened,
    in_pieces: Opened,
    by_parts: bool = False,
    unsteady: Mapping[str, float] | None = None,
) -> tuple[dict[str, Any], list[Outputs], list[tuple[Feeds, Outputs]]]:
    """The verification of a removal: error, floor, plants, and whether that is a proof; what it gave on `probes`; and
    the others that showed more of the outputs, with these.

    `probes` are compared each with its masked model; where the outputs show too little, `others` follow in turn, at
    the sizes of the first probe, and then the other branches. `unsteady` outputs of the dense model (name -> error)
    differ from themselves on the same inputs: that is no proof, whatever else is seen.
    """
    surgery = Surgery(pruned, removal, plants, narrowed, opened, in_pieces, by_parts, unsteady)
    first = removal.masked[0]
    found = [surgery.compare(first, probes[0], RANDOM)]
    for number, feeds in enumerate(probes[1:], 1):
        found.append(surgery.compare(removal.masked[number], feeds, RESIZED))
    surgery.telling.clear()
    for title, feeds in others:
        if not surgery.wants_more:
            break
        surgery.try_also(first, feeds, title)
    surgery.turn(first, probes[0])
    return surgery.verdict(), found, surgery.telling

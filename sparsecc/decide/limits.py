"""What the user says of single groups: how much of each may go, and which slots do.

`--ratio-for`, `--at-least` and `--at-most` bound how many slots stay, `--protect` names some that do; `--slots` and
`--plan` say of tensors which go. Everything is turned into bounds of atoms, within which criteria and allocators
choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of, mask
from sparsecc.axes.owners import owners_of
from sparsecc.compilation import Compilation
from sparsecc.data import slot_files
from sparsecc.data.plan_file import in_own_names, require_fits
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group, by_handle
from sparsecc.graph.linear_layers import FLOATS, LinearLayer, layer_of
from sparsecc.graph.patterns import matches, module_of, with_modules
from sparsecc.options import CompileOptions

BY_PATTERN = ("ratio_for", "at_least", "at_most", "protect")
"""Options that hold a value for each pattern."""
Patterns = Mapping[str, Mapping[str, Any]]
"""These options with what they hold."""


Statement = tuple[str, Axis, np.ndarray]
"""(where it is said, an axis, a boolean of each slot: whether it stays)."""


@dataclass
class Bounds:
    """What may become of a group's slots: `gone` and `held` (boolean, a slot each) go and stay, whatever their
    scores; `least` and `most` bound how many stay, None where the user said nothing of it. Of a `settled` group
    nothing else goes."""

    gone: np.ndarray
    held: np.ndarray
    least: int | None = None
    most: int | None = None
    settled: bool = False


@dataclass(frozen=True)
class Limits:
    """Bounds by atom. Where `only_named`, nothing goes but what they say."""

    of: Mapping[Atom, Bounds] = field(default_factory=dict)
    only_named: bool = False

    @property
    def rank(self) -> bool:
        """Whether some say how many slots go, but not which."""
        return any(bounds.most is not None for bounds in self.of.values())

    def may_die(self, atom: Atom, dead: np.ndarray) -> np.ndarray:
        """Those of the dead slots that may go for being dead."""
        bounds = self.of.get(atom)
        if bounds is None:
            return np.zeros_like(dead) if self.only_named else dead
        return np.asarray(dead & (bounds.gone if bounds.settled or self.only_named else ~bounds.held))

    def removes(self, atom: Atom, slot: int) -> bool:
        """Whether the user said of this slot that it goes."""
        return atom in self.of and bool(self.of[atom].gone[slot])


def patterns_of(options: CompileOptions, groups: Sequence[Group] = ()) -> Patterns:
    """The options that hold patterns; groups by number are spelt so that they still hold when the model is edited."""
    return {
        name: {
            spelt: value
            for pattern, value in getattr(options, name).items()
            for spelt in by_handle([pattern], groups)
        }
        for name in BY_PATTERN
        if getattr(options, name)
    }


def limits_of(
    compilation: Compilation, analysis: Analysis, groups: Sequence[Group], patterns: Patterns
) -> Limits:
    """What the options of a compile say of these groups. InputError as for `bounded`."""
    options = compilation.options
    planned, given = _planned(compilation, analysis), _given(compilation, analysis)
    return bounded(groups, patterns, planned, given, only_named=not (options.ratio or options.dead_only))


def bounded(
    groups: Sequence[Group],
    patterns: Patterns,
    planned: Iterable[Statement],
    given: Iterable[Statement],
    *,
    only_named: bool,
    spelt: str = "--",
) -> Limits:
    """What patterns, the plan of another pruning, and masks of tensors say of these groups. InputError where that
    cannot be: nothing named may go, a slot or tensor is not there, bounds exclude one another, tied tensors keep
    different slots. `spelt` is what stands before the options' names where the user writes them."""
    found: dict[Atom, Bounds] = {}
    _take_statements(found, planned, groups, f"{spelt}plan", settles=False)
    _take_statements(found, given, groups, f"{spelt}slots", settles=True)
    for group in groups:
        if patterns and group.is_free:
            _take_patterns(found, group, patterns, spelt)
    _require_use(groups, patterns, spelt)
    return Limits(found, only_named)


# patterns --------------------------------------------------------------------------------------------


def _hits(group: Group, patterns: Iterable[str]) -> list[str]:
    names = with_modules(group.names)
    return [pattern for pattern in patterns if any(matches(name, pattern) for name in names)]


def _take_patterns(found: dict[Atom, Bounds], group: Group, patterns: Patterns, spelt: str) -> None:
    hits = {name: _hits(group, of) for name, of in patterns.items()}
    if not any(hits.values()):
        return
    bounds = found.setdefault(group.atom, _unbounded(group))
    if bounds.settled:
        return
    counts = {
        name: [_count(patterns[name][pattern], group.size) for pattern in hits.get(name, ())]
        for name in ("at_least", "at_most")
    }
    if shares := hits.get("ratio_for"):
        share = patterns["ratio_for"][max(shares, key=len)]
        bounds.least = bounds.most = max(1, group.least, round((1 - share) * group.size))
    if counts["at_least"]:
        bounds.least = max(bounds.least or 0, *counts["at_least"])
    if counts["at_most"]:
        bounds.most = min(bounds.most or group.size, *counts["at_most"])
    for pattern in hits.get("protect", ()):
        for slot in patterns["protect"][pattern]:
            if slot >= group.size:
                where = f"{spelt}protect {quoted(pattern)}"
                raise InputError(
                    f"{where}: there is no slot {slot}: {quoted(group.names[-1])} has {group.size}"
                )
            bounds.held[slot] = True
    if bounds.least is not None and bounds.most is not None and bounds.least > bounds.most:
        if not shares:
            raise InputError(
                f"at least {bounds.least} and at most {bounds.most} slots of {quoted(_title(group))} are to stay: "
                "give bounds that leave a choice"
            )
        bounds.least = bounds.most = min(counts["at_most"] or [bounds.least])


def _count(amount: float | int, size: int) -> int:
    """So many slots, or that share of them; never more than there are."""
    return min(size, amount if isinstance(amount, int) else max(1, round(amount * size)))


def _require_use(groups: Sequence[Group], patterns: Patterns, spelt: str) -> None:
    """InputError where nothing that a pattern names may go."""
    for name in ("ratio_for", "at_most"):
        for pattern in patterns.get(name, ()):
            named = [g for g in groups if _hits(g, [pattern])]
            if named and not any(g.is_free for g in named):
                flag = f"--{name.replace('_', '-')}" if spelt else name
                raise InputError(f"{flag} {quoted(pattern)} names nothing that can be cut: {named[0].pinned}")


# masks of tensors ------------------------------------------------------------------------------------


def _take_statements(
    found: dict[Atom, Bounds],
    statements: Iterable[Statement],
    groups: Sequence[Group],
    flag: str,
    *,
    settles: bool,
) -> None:
    """Let go what the statements remove. InputError where groups are pinned, or tied axes lose different slots."""
    of = {g.atom: g for g in groups}
    known: dict[
        Atom, tuple[str, np.ndarray, np.ndarray]
    ] = {}  # who said it, of which slots, which of them stay
    for where, axis, stays in statements:
        for atom, (spoken, kept) in _by_atom(flag, where, axis, stays).items():
            group = of.get(atom)
            if group is None or not group.is_free:
                why = "owns no weights" if group is None else group.pinned
                raise InputError(f"{flag}: slots of {quoted(where)} are to go, which cannot: {why}")
            before = known.get(atom)
            if before is not None and (before[1] & spoken & (before[2] != kept)).any():
                raise InputError(
                    f"{flag}: {quoted(before[0])} and {quoted(where)} are tied, and different slots of them are to go"
                )
            if before is not None:
                spoken, kept = spoken | before[1], kept & before[2]
            known[atom] = where, spoken, kept
    for atom, (_, _, kept) in known.items():
        if not kept.any():
            raise InputError(f"{flag}: nothing is left of {quoted(known[atom][0])}: a layer keeps one slot")
        bounds = found.setdefault(atom, _unbounded(of[atom]))
        bounds.gone = bounds.gone | ~kept
        if settles:
            bounds.settled, bounds.least = True, int((~bounds.gone).sum())


def _by_atom(
    flag: str, where: str, axis: Axis, stays: np.ndarray
) -> dict[Atom, tuple[np.ndarray, np.ndarray]]:
    """By atom of an axis that loses some (slots that the axis has, slots that stay). InputError where what is to go
    is no slots of atoms."""
    found, keep = {}, {}
    for atom in atoms_of(axis):
        if not isinstance(atom.size, int):
            continue
        owners = owners_of(axis, atom)
        spoken, kept = np.zeros(atom.size, dtype=bool), np.zeros(atom.size, dtype=bool)
        spoken[owners[owners >= 0]] = True
        kept[owners[(owners >= 0) & stays]] = True
        kept |= ~spoken
        if not kept.all():
            found[atom], keep[atom] = (spoken, kept), kept
    result = mask(axis, keep)
    if not np.array_equal(stays, np.ones_like(stays) if result is None else result):
        raise InputError(
            f"{flag}: slots of {quoted(where)} go together (heads, copies): let whole ones go, see "
            f"'sparsecc inspect --why {where}'"
        )
    return found


def _planned(compilation: Compilation, analysis: Analysis) -> Iterable[Statement]:
    """What the plan of another compile removes."""
    plan = compilation.base
    if not plan:
        return
    uses = analysis.record.uses
    by_name = {(f"{node.name}:{operand}"): axes for (node, operand), axes in uses.items()}
    by_value: dict[str, list[list[Axis]]] = {}
    for (node, operand), axes in uses.items():
        value = node.inputs[operand]
        by_value.setdefault((value.name or "") if value is not None else "", []).append(axes)
    for tensor, entry in in_own_names(plan, analysis.model)["tensors"].items():
        apart = entry.get("uses")
        spoken = [(e, [by_name[use]]) for use, e in apart.items() if use in by_name] if apart else []
        for facts, all_axes in spoken or [(entry, by_value.get(tensor, []))]:
            for position, fact in facts.items():
                stays = np.zeros(fact["size"], dtype=bool)
                stays[fact["keep"]] = True
                yield from ((f"{tensor}:{position}", axes[int(position)], stays) for axes in all_axes)


def require_same_graph(compilation: Compilation, model: ir.Model) -> None:
    """InputError where `--plan` is of another graph, or leaves tokens out and `--tokens` is not given."""
    if not compilation.base:
        return
    require_fits(compilation.base, model)
    if compilation.base["tokens"] and compilation.options.tokens is None:
        raise InputError("--plan leaves tokens out: give --tokens too, which says how many")


def _given(compilation: Compilation, analysis: Analysis) -> Iterable[Statement]:
    """What `--slots` removes."""
    initializers, layers = analysis.model.graph.initializers, _layers(analysis.model)
    uses: dict[ir.Value, list[Axis]] = {}
    for (node, operand), axes in analysis.record.uses.items():
        if (value := node.inputs[operand]) is not None:
            uses.setdefault(value, axes)
    for name, given in slot_files.in_own_names(compilation.slots, analysis.model).items():
        tensor, _, tail = name.rpartition(":")
        value = initializers.get(tensor if tail.isdigit() and name not in initializers else name)
        layer = layers.get(name) if value is None else layers.get(value.name or "")
        value = layer.weight if value is None and layer is not None else value
        if value is None or value.const_value is None:
            raise InputError(f"--slots names {quoted(name)}, which is no weight and no module of one layer")
        shape = tuple(int(d) for d in value.const_value.shape)  # type: ignore[arg-type]
        if value not in uses:
            continue
        if is_whole_mask(given, shape):
            yield from by_axis(value.name or "", uses[value], given)
            continue
        position = _axis(name, value, layer, shape)
        stays = slots_that_stay(name, given, shape[position])
        yield f"{value.name}:{position}", uses[value][position], stays


def is_whole_mask(given: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether what is said of a tensor is a mask of all its elements."""
    return given.dtype == bool and given.shape == tuple(shape) and len(shape) > 1


def by_axis(tensor: str, axes: Sequence[Axis], elements: np.ndarray) -> Iterable[Statement]:
    """A mask of all elements of a tensor, said of each of its axes: slots stay where any element does."""
    for position, axis in enumerate(axes):
        others = tuple(i for i in range(len(axes)) if i != position)
        yield f"{tensor}:{position}", axis, np.asarray(elements.any(axis=others))


def _layers(model: ir.Model) -> dict[str, LinearLayer]:
    """Layers by the names of their weight and node, and by their module where it has no other."""
    found: dict[str, LinearLayer] = {}
    modules: dict[str, list[LinearLayer]] = {}
    for node in model.graph.all_nodes():
        layer = layer_of(node, FLOATS)
        if isinstance(layer, LinearLayer):
            found[layer.weight.name or ""] = found[layer.name] = layer
            modules.setdefault(module_of(layer.name), []).append(layer)
    return {name: layers[0] for name, layers in modules.items() if len(layers) == 1} | found


def _axis(name: str, value: ir.Value, layer: LinearLayer | None, shape: tuple[int, ...]) -> int:
    tail = name.removeprefix(f"{value.name}:")
    if tail != name:
        if int(tail) >= len(shape):
            raise InputError(f"--slots: {quoted(value.name or '')} has {len(shape)} axes, no axis {tail}")
        return int(tail)
    if len(shape) == 1:
        return 0
    if layer is None:
        raise InputError(f"--slots: say which axis of {quoted(name)}: '{name}:0'")
    return layer.out_axis


def slots_that_stay(name: str, given: np.ndarray, size: int, spelt: str = "--") -> np.ndarray:
    """A boolean for each slot of an axis, from such a mask or numbers of slots. InputError where they do not fit."""
    if given.dtype == bool:
        if given.shape != (size,):
            raise InputError(
                f"{spelt}slots: the mask of {quoted(name)} has shape {list(given.shape)}, its axis {size} slots"
            )
        return given
    if given.size and int(given.max()) >= size:
        raise InputError(f"{spelt}slots: {quoted(name)} has {size} slots, no slot {int(given.max())}")
    stays = np.zeros(size, dtype=bool)
    stays[given] = True
    return stays


# choosing within bounds ------------------------------------------------------------------------------


def settle(
    bounds: Bounds | None, scores: np.ndarray, dead: np.ndarray | None, step: int, floor: int
) -> tuple[np.ndarray | None, int]:
    """(slots that go in any case, None where none do; how many of the others stay at least).

    Dead slots go, but for those that fill what stays up to a multiple of the step or to what must stay; then those
    with the lowest scores, down to what may stay at most: the nearest multiple of the step, where bounds leave room.
    """
    size = len(scores)
    gone = np.zeros(size, dtype=bool) if bounds is None else bounds.gone.copy()
    held = np.zeros(size, dtype=bool) if bounds is None else bounds.held
    least, most = (None, None) if bounds is None else _in_steps(bounds, step)
    if dead is not None:
        extra = dead & ~gone
        left = size - int(gone.sum() + extra.sum())
        spare = max(-left % step, (least or 0) - left, 0)
        extra[np.flatnonzero(extra)[:spare]] = False
        gone |= extra
    gone &= ~held
    left = size - int(gone.sum())
    if most is not None and most < left:
        order = np.argsort(np.where(gone | held, np.inf, scores), kind="stable")
        gone[order[: min(left - most, int((~gone & ~held).sum()))]] = True
    left = size - int(gone.sum())
    lowest = floor if least is None else max(least, int((held & ~gone).sum()))
    return (gone if gone.any() else None), min(lowest, left)


def _in_steps(bounds: Bounds, step: int) -> tuple[int | None, int | None]:
    """The bounds rounded to steps: a number that must stay up, one that may stay down, one that is both to the
    nearest; as they are where a step has no room between them."""
    least, most, size = bounds.least, bounds.most, len(bounds.gone)
    if bounds.settled or step == 1:
        return least, most
    if least is not None and least == most:
        nearest = min(size, max(step, step * round(least / step)))
        return nearest, nearest
    up = None if least is None else min(size, -(-least // step) * step)
    down = None if most is None else most // step * step or most
    return (least, most) if up is not None and down is not None and up > down else (up, down)


def _unbounded(group: Group) -> Bounds:
    return Bounds(np.zeros(group.size, dtype=bool), np.zeros(group.size, dtype=bool))


def _title(group: Group) -> str:
    return f"{group.members[0][0]}:{group.members[0][1]}" if group.members else f"group:{group.id}"

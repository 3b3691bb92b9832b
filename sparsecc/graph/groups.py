"""Groups of coupled slots: what can be removed, what goes with it, and what is pinned and why."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.graph.analysis import Analysis, Member, prunable_atoms
from sparsecc.graph.kinds import KINDS
from sparsecc.graph.patterns import held, module_of
from sparsecc.graph.slot_indices import least_left
from sparsecc.ir.file_names import in_file
from sparsecc.rules import Trait, traits_of
from sparsecc.rules.site import CELLS
from sparsecc.system.gc_pause import collector_paused

MIXING = frozenset({"mean", "max", "min", "layernorm", "rmsnorm", "instancenorm", "groupnorm"})
"""Kinds of reduction for which zeroing removed slots in the dense model is not exact."""


@dataclass(frozen=True)
class Group:
    """Slots that can only go together in every member.

    `atom` is the free atom they are; `members` are (initializer, axis); `nodes` name who reads them. `pinned`
    says why nothing may go, None where it may. `mixes` is True where some operator's result depends on how
    many slots there are (norms, means). `feeds_conv` is True where a convolution works on them. `least` slots
    stay whatever is asked, because so many are picked at run time. `turned` are the members as the user's file
    has them, where normalisation turned some around; () elsewhere.
    """

    id: int
    kind: str
    size: int
    atom: Atom
    members: tuple[Member, ...]
    nodes: tuple[str, ...]
    pinned: str | None
    mixes: bool
    feeds_conv: bool
    params: int
    least: int = 1
    turned: tuple[Member, ...] = ()

    @property
    def in_file(self) -> tuple[Member, ...]:
        """The members as the user's file has them."""
        return self.turned or self.members

    @property
    def names(self) -> list[str]:
        """All that a pattern finds it by, but for modules."""
        own = () if not self.turned else handles(self.kind, self.turned)
        return [f"group:{self.id}", *own, *handles(self.kind, self.members), *self.nodes]

    @property
    def modules(self) -> list[str]:
        """The modules whose weights it is of, by the names of nodes, or of tensors where those have none."""
        by_node = dict.fromkeys(module for name in self.nodes if (module := module_of(name)))
        tensors = (name for name, _ in self.members if ":" not in name)
        return list(by_node or dict.fromkeys(m for name in tensors if (m := name.rpartition(".")[0])))

    @property
    def is_free(self) -> bool:
        return self.pinned is None


@collector_paused()
def find_groups(
    analysis: Analysis,
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    prune: Sequence[str] = tuple(KINDS),
) -> list[Group]:
    """All groups that own slots of initializers, largest first among the free ones; the cells of kernels and the
    places of images are none.

    `keep` and `only` are shell patterns matched against member tensors, the nodes that read them and their
    modules, and against `group:ID` and `TENSOR:AXIS`; a name without wildcards stands for its module and all below.
    What matches `keep` stays whole; with `only`, what matches none of it stays whole. `prune` names the kinds that
    may go.
    """
    mixing, users, least = _mixing_atoms(analysis), _users(analysis), least_left(analysis.record)
    allowed = {KINDS[name] for name in prune if name in KINDS}
    groups, initializers = [], analysis.model.graph.initializers
    owned = [(a, m) for a, m in prunable_atoms(analysis).items() if a.pin is None or CELLS not in a.roles]
    for number, (atom, members) in enumerate(owned):
        assert isinstance(atom.size, int)
        nodes = users.get(atom, {})
        kind = _kind(atom)
        group = Group(
            id=number,
            kind=kind,
            size=atom.size,
            atom=atom,
            members=tuple(members),
            nodes=tuple(dict.fromkeys(n.name or "" for n in nodes)),
            pinned=atom.pin,
            mixes=atom in mixing,
            feeds_conv=any(traits_of(n) & Trait.CONVOLUTION for n in nodes),
            params=_params(analysis, members),
            least=least.get(atom, 1),
            turned=_turned(initializers, members),
        )
        unasked = None if kind in allowed else f"{kind} groups were not asked to be pruned"
        groups.append(replace(group, pinned=atom.pin or held(group.names, keep, only) or unasked))
    return groups


def _turned(initializers: Mapping[str, ir.Value], members: Sequence[Member]) -> tuple[Member, ...]:
    """The members as the file has them; () where that is the same."""
    found = tuple(in_file(initializers[name], axis) for name, axis in members)
    return () if found == tuple(members) else found


def handles(kind: str, members: Sequence[Member]) -> list[str]:
    """The names that a group goes by through its members. The last of each survives when ids change."""
    return [
        name for tensor, axis in members for name in (tensor, f"{tensor}:{axis}", f"{kind}@{tensor}:{axis}")
    ]


def by_handle(patterns: Sequence[str], groups: Sequence[Group]) -> tuple[str, ...]:
    """The same patterns with every `group:ID` spelt so that it holds after the model was edited."""
    found: list[str] = []
    numbered = {f"group:{g.id}": g for g in groups}
    for pattern in patterns:
        group = numbered.get(pattern)
        if group is None:
            found.append(pattern)
            continue
        found += [glob.escape(f"{group.kind}@{tensor}:{axis}") for tensor, axis in group.members]
    return tuple(found)


def _kind(atom: Atom) -> str:
    for kind in ("expert", "head", "head_dim"):
        if kind in atom.roles:
            return kind
    return "channel"


def known_names(analysis: Analysis, groups: Sequence[Group]) -> list[str]:
    """All that a pattern may name besides groups by number: their handles, every tensor and every node."""
    model = analysis.model
    return [
        *(name for g in groups for name in handles(g.kind, g.in_file)),
        *(name for g in groups for name in handles(g.kind, g.members)),
        *model.graph.initializers,
        *(node.name or "" for node in model.graph.all_nodes()),
    ]


def _mixing_atoms(analysis: Analysis) -> set[Atom]:
    found: set[Atom] = set()
    for reduction in analysis.record.reductions:
        if reduction.kind not in MIXING:
            continue
        value = reduction.node.inputs[reduction.operand]
        axes = analysis.record.uses.get((reduction.node, reduction.operand))
        if axes is None and value is not None:
            axes = analysis.record.axes[value]
        for position in reduction.positions:
            found.update(atoms_of((axes or [])[position]))
    return found


def _users(analysis: Analysis) -> dict[Atom, dict[ir.Node, None]]:
    found: dict[Atom, dict[ir.Node, None]] = {}
    for (node, _), axes in analysis.record.uses.items():
        for axis in axes:
            for atom in atoms_of(axis):
                found.setdefault(atom, {})[node] = None
    return found


def nodes_holding(analysis: Analysis) -> dict[Atom, list[str]]:
    """The names of all nodes that read or write slots of each atom, in the model's order, bodies included."""
    record = analysis.record
    found: dict[Atom, dict[str, None]] = {}
    for node in analysis.model.graph.all_nodes():
        held_axes = [
            axes
            for operand, value in enumerate(node.inputs)
            if value is not None and (axes := record.uses.get((node, operand)) or record.axes.get(value))
        ]
        held_axes += [record.axes[value] for value in node.outputs if value in record.axes]
        for atom in {atom for axes in held_axes for axis in axes for atom in atoms_of(axis)}:
            found.setdefault(atom, {})[node.name or ""] = None
    return {atom: list(names) for atom, names in found.items()}


def _params(analysis: Analysis, members: Sequence[Member]) -> int:
    initializers = analysis.model.graph.initializers
    total = 0
    for name in dict.fromkeys(name for name, _ in members):
        tensor = initializers[name].const_value
        total += 0 if tensor is None else int(tensor.size)
    return total


def reason_of(group: Group) -> str:
    """Why a pinned group stays, without the node that says so."""
    return (group.pinned or "").partition(" of ")[0]


def pinned_reasons(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Why what was kept whole was kept whole: reason, how many groups and parameters, an example."""
    number: Counter[str] = Counter()
    params: Counter[str] = Counter()
    example: dict[str, str] = {}
    for group in groups:
        if group.pinned is not None:
            reason = reason_of(group)
            number[reason] += 1
            params[reason] += group.params
            example.setdefault(reason, group.in_file[0][0])
    return [
        {"what": example[r], "reason": r, "groups": n, "params": params[r]} for r, n in number.most_common()
    ]

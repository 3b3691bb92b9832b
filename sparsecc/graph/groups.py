"""Groups of coupled slots: what can be removed, what goes with it, and what is pinned and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsecc.axes import Atom, atoms_of
from sparsecc.graph.analysis import Analysis, Member, prunable_atoms
from sparsecc.graph.kinds import KINDS

MIXING = frozenset({"mean", "max", "min", "layernorm", "rmsnorm", "instancenorm", "groupnorm"})
"""Kinds of reduction for which zeroing removed slots in the dense model is not exact."""


@dataclass(frozen=True)
class Group:
    """Slots that can only go together in every member.

    `atom` is the free atom they are; `members` are (initializer, axis); `nodes` name who reads them. `pinned`
    says why nothing may go, None where it may. `mixes` is True where some operator's result depends on how many
    slots there are (norms, means). `feeds_conv` is True where a convolution works on them.
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

    @property
    def is_free(self) -> bool:
        return self.pinned is None


def find_groups(
    analysis: Analysis,
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    prune: Sequence[str] = tuple(KINDS),
) -> list[Group]:
    """All groups that own slots of initializers, largest first among the free ones.

    `keep` and `only` are shell patterns matched against member tensors and node names: what matches `keep`
    stays whole; with `only`, what matches none of it stays whole. `prune` names the kinds that may go.
    """
    mixing = _mixing_atoms(analysis)
    users = _users(analysis)
    allowed = {KINDS[name] for name in prune if name in KINDS}
    groups = []
    for atom, members in prunable_atoms(analysis).items():
        assert isinstance(atom.size, int)
        nodes = users.get(atom, {})
        kind = _kind(atom)
        names = [*(m[0] for m in members), *(n.name or "" for n in nodes)]
        pinned = atom.pin or _held(names, keep, only)
        if pinned is None and kind not in allowed:
            pinned = f"{kind} groups were not asked to be pruned"
        groups.append(
            Group(
                id=0,
                kind=kind,
                size=atom.size,
                atom=atom,
                members=tuple(members),
                nodes=tuple(dict.fromkeys(n.name or "" for n in nodes)),
                pinned=pinned,
                mixes=atom in mixing,
                feeds_conv=any(n.op_type in _CONVOLUTIONS for n in nodes),
                params=_params(analysis, members),
            )
        )
    return [_numbered(g, i) for i, g in enumerate(groups)]


_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "NhwcConv", "ConvInteger"})


def _numbered(group: Group, number: int) -> Group:
    return Group(**{**group.__dict__, "id": number})


def _kind(atom: Atom) -> str:
    for kind in ("expert", "head", "head_dim"):
        if kind in atom.roles:
            return kind
    return "channel"


def _held(names: Sequence[str], keep: Sequence[str], only: Sequence[str]) -> str | None:
    for pattern in keep:
        if any(fnmatch.fnmatchcase(n, pattern) for n in names):
            return f"kept by --keep '{pattern}'"
    if only and not any(fnmatch.fnmatchcase(n, p) for n in names for p in only):
        return "outside --only"
    return None


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


def _params(analysis: Analysis, members: Sequence[Member]) -> int:
    initializers = analysis.model.graph.initializers
    total = 0
    for name in dict.fromkeys(name for name, _ in members):
        tensor = initializers[name].const_value
        total += 0 if tensor is None else int(tensor.size)
    return total

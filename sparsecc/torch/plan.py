"""What a pruning of a torch module decided, as data for tensors, modules and optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.axes.algebra import Keep, atoms_of, mask
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.torch.program.exported import Program
from sparsecc.torch.program.reparametrized import dense_norms, hold_norms
from sparsecc.torch.rules.catalogue import rule_for
from sparsecc.torch.rules.edit import AtenEdit, Change

REALISED = ("module", "graph")
"""Forms that a pruned module can have."""
Indices = dict[int, np.ndarray]
"""Axis -> the slots of it that stay, ascending."""


@dataclass(frozen=True)
class TorchPlan:
    """Which slots of which parameters and buffers stay.

    `tensors` names every tensor that lost slots, under each of its names. `form` is "module" where the user's
    own modules were changed and "graph" where the result is the exported graph; `before` and `after` are in
    units of the metric, and `error` is the largest relative difference to the masked dense module.
    """

    tensors: dict[str, Indices]
    groups: list[dict[str, Any]]
    metric: str
    before: float
    after: float
    reached: bool
    form: str = "module"
    error: float = 0.0
    reason: str = ""
    attributes: list[tuple[str, str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `of_json` reads back."""
        tensors = {
            n: {str(axis): slots.tolist() for axis, slots in i.items()} for n, i in self.tensors.items()
        }
        names = ("groups", "metric", "before", "after", "reached", "form", "error", "reason")
        attributes = [[path, name, value] for path, name, value in self.attributes]
        return {"tensors": tensors, **{n: getattr(self, n) for n in names}, "attributes": attributes}

    @classmethod
    def of_json(cls, data: Any) -> TorchPlan:
        """From plain data, which may be a stranger's. InputError where it is no plan."""
        try:
            tensors = {
                str(name): {_axis(axis): _slots(slots) for axis, slots in indices.items()}
                for name, indices in data["tensors"].items()
            }
            sizes = [
                (str(path), str(name), tuple(value) if isinstance(value, list) else value)
                for path, name, value in data["attributes"]
            ]
            groups = [{**row, "slots": _kept(row)} for row in data["groups"]]
            form, metric = str(data["form"]), str(data["metric"])
            numbers = (float(data["before"]), float(data["after"]), bool(data["reached"]))
            error, reason = float(data["error"]), str(data["reason"])
            if form not in REALISED or not all(map(math.isfinite, (*numbers, error))):
                raise ValueError("no form, or no numbers")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise InputError("no plan of a pruned torch module: give what TorchPlan.to_json made") from e
        return cls(tensors, groups, metric, *numbers, form, error, reason, sizes)

    @property
    def removed(self) -> float:
        """The share of the metric that went."""
        return 1 - self.after / self.before if self.before else 0.0


def _slots(values: Any) -> np.ndarray:
    """Slots that stay, ascending and none twice. ValueError or OverflowError for anything else."""
    if not isinstance(values, list | tuple) or not values or not all(type(one) is int for one in values):
        raise ValueError("no slots")
    found = np.asarray(values, dtype=np.int64)
    if found[0] < 0 or (np.diff(found) <= 0).any():
        raise ValueError("no slots")
    return found


def _axis(told: Any) -> int:
    axis = int(told)
    if axis < 0:
        raise ValueError("no axis")
    return axis


def _kept(row: Mapping[str, Any]) -> list[int] | None:
    slots = row.get("slots")
    return None if slots is None else [int(one) for one in _slots(slots)]


def sliced(tensor: Tensor, indices: Mapping[int, np.ndarray]) -> Tensor:
    """A copy of the tensor with only the kept slots."""
    found = tensor.detach()
    for axis, slots in indices.items():
        found = found.index_select(axis, torch.from_numpy(slots).to(found.device))
    return found.clone().contiguous()


def kept_slots(program: Program, analysis: Analysis, keep: Keep) -> dict[str, Indices]:
    """For every parameter and buffer that loses slots, under each of its names, what stays."""
    found: dict[str, Indices] = {}
    for value, axes in analysis.weights():
        indices: Indices = {}
        for position, axis in enumerate(axes):
            slots = mask(axis, keep) if any(a in keep for a in atoms_of(axis)) else None
            if slots is not None and not slots.all():
                indices[position] = np.flatnonzero(slots)
        if indices:
            for name in program.names[value.name or ""]:
                found[name] = indices
    return found


def changes_of(program: Program, analysis: Analysis, keep: Keep) -> list[Change]:
    """Every argument of a call that the removal changes."""
    kept = {atom: int(slots.sum()) for atom, slots in keep.items() if not slots.all()}
    found: list[Change] = []
    for node in program.model.graph:
        rule = rule_for(node.op_type)
        if rule is not None and rule.fix is not None and node not in analysis.record.unfollowed:
            edit = AtenEdit(program, node, analysis.record, keep, kept)
            rule.fix(edit)
            found += edit.changes
    return found


def described(groups: list[Group], keep: Keep) -> list[dict[str, Any]]:
    """The groups as plain data: kind, sizes, members, and why a group is pinned."""
    return [
        {
            "kind": g.kind,
            "size": g.size,
            "slots": np.flatnonzero(keep[g.atom]).tolist() if g.atom in keep else None,
            "kept": int(keep[g.atom].sum()) if g.atom in keep else g.size,
            "members": [list(m) for m in g.members],
            "mixes": g.mixes,
            "pinned": g.pinned,
        }
        for g in groups
    ]


def owned(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every parameter and buffer as (full name, module that holds it, its name there, tensor)."""
    for path, part in module.named_modules(remove_duplicate=False):
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield (f"{path}.{name}" if path else name), part, name, tensor


def replace_tensors(module: nn.Module, tensors: Mapping[str, Indices]) -> None:
    """Slice parameters and buffers of a module in place; tensors that were shared stay shared.

    Weights that a norm computes stay what they were."""
    made: dict[int, Tensor] = {}
    dense = dense_norms(module, tensors)
    for full, part, name, tensor in list(owned(module)):
        if full not in tensors:
            continue
        if id(tensor) not in made:
            small = sliced(tensor, tensors[full])
            made[id(tensor)] = (
                nn.Parameter(small, tensor.requires_grad) if name in part._parameters else small
            )
        setattr(part, name, made[id(tensor)])
    hold_norms(module, dense)

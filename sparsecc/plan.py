"""The plan: everything a compile decided, as plain data. The keep-masks live beside it as arrays per atom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Keep, atoms_of, mask
from sparsecc.axes.sizes import at
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.graph.zeroable import zeroable
from sparsecc.ir.file_names import in_file, origin_of
from sparsecc.system.gc_pause import collector_paused

SCHEMA = "sparsecc.plan/1"


@dataclass
class Plan:
    """What was decided, per tensor and axis. `to_json` gives the schema that others build on.

    `io` lists the slots left of graph inputs and outputs that lost some (`--prune-io`); `tokens` says behind
    which value and by whose attention tokens are left out, how many stay, and which attention is later; `ports` which
    caches went with their layers, and the new names of others. Tensors and axes are those of the user's file;
    `names` says what the compiled model calls others: {name: {"of": tensors of the file, "order": axes, if turned}}.
    """

    model: dict[str, Any]
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    dropped_nodes: list[str] = field(default_factory=list)
    patterns: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantization: dict[str, dict[str, Any]] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    io: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    ports: dict[str, Any] = field(default_factory=dict)
    names: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "model": self.model,
            "tensors": self.tensors,
            "groups": self.groups,
            "dropped_nodes": self.dropped_nodes,
            "patterns": self.patterns,
            "quantization": self.quantization,
            "repaired": sorted(self._in_file(name) for name in self.repaired),
            **({"io": self.io} if self.io else {}),
            **({"tokens": self.tokens} if self.tokens else {}),
            **({"ports": self.ports} if self.ports else {}),
            **({"names": self.names} if self.names else {}),
        }

    def _in_file(self, name: str) -> str:
        """What the file calls a tensor; of one that was computed its own name."""
        known = self.names.get(name, {})
        return str(known["of"][0]) if "order" in known else name

    @property
    def removes_anything(self) -> bool:
        return bool(self.tensors) or bool(self.dropped_nodes)

    @property
    def mixes(self) -> bool:
        """Whether some removed group is mixed, so that zeroing its slots in the dense model is not exact."""
        return any(g["mixes"] and g["kept"] < g["size"] for g in self.groups)


@collector_paused()
def make_plan(analysis: Analysis, groups: Sequence[Group], keep: Keep, facts: Mapping[str, Any]) -> Plan:
    """Write down what the keep-masks mean for every constant of the input model."""
    lost = {atom for atom, slots in keep.items() if not slots.all()}
    zeroed, unclear = zeroable(analysis, lost)
    plan = Plan(dict(facts))
    initializers = analysis.model.graph.initializers
    plan.groups = [_group(g, keep, g.mixes or g.atom in unclear) for g in groups]
    plan.names = {
        name: {"of": list(origin.tensors), **({"order": list(origin.order)} if origin.order else {})}
        for name, value in initializers.items()
        if (origin := origin_of(value)) is not None
    }
    by_value: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node, operand in analysis.record.uses:
        value = node.inputs[operand]
        assert value is not None
        by_value.setdefault(value, []).append((node, operand))
    for value, uses in by_value.items():
        entries = [_axes(analysis.record.uses[use], keep, zeroed.get(use, set())) for use in uses]
        entry = _merged(entries, uses)
        if entry:
            plan.tensors[in_file(value, 0)[0]] = _on_axes_of_file(value, entry)
    return plan


def _on_axes_of_file(value: ir.Value, entry: dict[str, Any]) -> dict[str, Any]:
    """What is said of axes of a value, of those of the file's tensor."""
    if "uses" in entry:
        return {"uses": {use: _on_axes_of_file(value, axes) for use, axes in entry["uses"].items()}}
    return {str(in_file(value, int(axis))[1]): fact for axis, fact in entry.items()}


def _group(group: Group, keep: Keep, mixes: bool) -> dict[str, Any]:
    kept = int(keep[group.atom].sum()) if group.atom in keep else group.size
    return {
        "id": group.id,
        "kind": group.kind,
        "size": group.size,
        "kept": kept,
        "members": [list(m) for m in group.in_file],
        "mixes": mixes,
        "pinned": group.pinned,
    }


def _axes(axes: Sequence[Axis], keep: Keep, summed: set[int]) -> dict[str, Any]:
    entry = {}
    for position, axis in enumerate(axes):
        if not any(atom in keep for atom in atoms_of(axis)):
            continue
        slots = mask(axis, keep)
        assert slots is not None
        if not slots.all():
            entry[str(position)] = {
                "size": at(axis.size, 0),
                "keep": np.flatnonzero(slots).tolist(),
                "summed": position in summed,
            }
    return entry


def _merged(entries: list[dict[str, Any]], uses: list[tuple[ir.Node, int]]) -> dict[str, Any]:
    """One entry per constant. Uses that keep different slots are listed apart: each got its own copy."""
    if all(_kept(e) == _kept(entries[0]) for e in entries):
        merged = entries[0]
        for other in entries[1:]:
            for axis, fact in other.items():
                merged[axis]["summed"] = merged[axis]["summed"] or fact["summed"]
        return merged
    named = [(f"{node.name}:{operand}", e) for (node, operand), e in zip(uses, entries, strict=True) if e]
    return {"uses": dict(named)}


def _kept(entry: dict[str, Any]) -> dict[str, Any]:
    return {axis: fact["keep"] for axis, fact in entry.items()}

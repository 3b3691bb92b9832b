"""Slots of graph inputs and outputs that went, of caches or by `--prune-io`: what to feed, and what to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Keep, atoms_of, mask
from sparsecc.graph.analysis import Analysis

Slots = Mapping[str, Mapping[int, list[int]]]
"""Tensor name -> axis -> the slots that are left."""


@dataclass(frozen=True)
class Narrowed:
    """Which slots of the inputs and outputs are left; tensors that are whole are not listed.

    `gone` are inputs and outputs that went with their layer, `renamed` gives the names of others since; slots are
    listed under the names of the dense model.
    """

    inputs: Slots = field(default_factory=dict)
    outputs: Slots = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    last: frozenset[str] = frozenset()
    """Outputs (batch, positions, ...) of which the last position alone is left."""

    @staticmethod
    def of(analysis: Analysis, keep: Keep) -> Narrowed:
        """Read from the masks, before the model is edited."""
        graph = analysis.model.graph
        return Narrowed(_left(analysis, graph.inputs, keep), _left(analysis, graph.outputs, keep))

    @staticmethod
    def by(graph: ir.Graph, kept: Callable[[str, int], np.ndarray | None]) -> Narrowed:
        """Of a pruned graph's inputs, from which slots are left of a value's axis (None where all are)."""
        found: dict[str, dict[int, list[int]]] = {}
        for value in graph.inputs:
            for axis in range(len(value.shape or ())):
                slots = kept(value.name or "", axis)
                if slots is not None and not slots.all():
                    found.setdefault(value.name or "", {})[axis] = np.flatnonzero(slots).tolist()
        return Narrowed(found)

    @staticmethod
    def from_json(data: Mapping[str, Any], ports: Mapping[str, Any] | None = None) -> Narrowed:
        """Read `to_json` and `ports` back; nothing is narrowed where there is no data."""
        sides = [
            {
                name: {int(axis): slots for axis, slots in axes.items()}
                for name, axes in data.get(side, {}).items()
            }
            for side in ("inputs", "outputs")
        ]
        inputs, outputs = sides
        told = ports or {}
        gone, last = (frozenset(told.get(key, ())) for key in ("gone", "last"))
        return Narrowed(inputs, outputs, gone, told.get("renamed", {}), last)

    def to_json(self) -> dict[str, Any]:
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        return {
            side: {name: {str(axis): slots for axis, slots in axes.items()} for name, axes in tensors.items()}
            for side, tensors in sides.items()
            if tensors
        }

    def ports(self) -> dict[str, Any]:
        """The inputs and outputs that are gone, have other names or fewer positions, for the plan; {} where none."""
        told = {"gone": sorted(self.gone), "renamed": dict(self.renamed), "last": sorted(self.last)}
        return told if self.gone or self.last else {}

    def feeds(self, dense: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The smaller model's inputs from the dense model's."""
        return self._named(_taken(dense, self.inputs))

    def wanted(self, dense: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of the dense model's outputs the smaller model has."""
        last = {name: array[:, -1:] if name in self.last else array for name, array in dense.items()}
        return self._named(_taken(last, self.outputs))

    def _named(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            self.renamed.get(name, name): array for name, array in arrays.items() if name not in self.gone
        }

    @property
    def changes_inputs(self) -> bool:
        """Whether the smaller model takes other inputs than the dense one."""
        return bool(self.inputs or self.gone)


def _left(analysis: Analysis, values: Any, keep: Keep) -> dict[str, dict[int, list[int]]]:
    found: dict[str, dict[int, list[int]]] = {}
    for value in values:
        assert isinstance(value, ir.Value)
        for position, axis in enumerate(analysis.record.axes.get(value, [])):
            lost = any(atom in keep and not keep[atom].all() for atom in atoms_of(axis))
            slots = mask(axis, keep) if lost else None
            if slots is not None:
                found.setdefault(value.name or "", {})[position] = np.flatnonzero(slots).tolist()
    return found


def _taken(arrays: Mapping[str, np.ndarray], slots: Slots) -> dict[str, np.ndarray]:
    taken = dict(arrays)
    for name, axes in slots.items():
        for axis, left in axes.items():
            taken[name] = np.take(taken[name], left, axis=axis)
    return taken

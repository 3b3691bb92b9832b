"""One module seen from both sides: its groups through torch.export and through its ONNX file, and one plan on both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from sparsecc.axes import Atom, Axis, atoms_of, owners_of
from sparsecc.backends.onnxruntime_cpu import OnnxRuntimeCpu
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.torch.masked import difference
from sparsecc.torch.pruning import Study, planned, realise, study
from sparsecc.verify.prove import write
from tests.zoo import ZOO
from tests.zoo.export import Exporter, onnx_path

Member = tuple[str, int]
Members = frozenset[tuple[str, int, str]]
"""(parameter in torch, axis there, which places of it go together) of one group, as far as both sides have it."""
Names = dict[str, tuple[str, bool]]
"""Initializer -> (parameter in torch, whether it is stored transposed)."""

RUNTIME = OnnxRuntimeCpu()


@dataclass
class Sides:
    """A zoo entry as torch and as ONNX see it. Both maps hold the free groups only.

    Several groups can have the same members: ONNX files store equal constants once, so that a small matrix which
    two nodes read may lose other slots for each.
    """

    found: Study
    analysis: Analysis
    names: Names
    torch_groups: dict[Members, list[Group]]
    onnx_groups: dict[Members, list[Group]]

    @property
    def is_equal(self) -> bool:
        return set(self.torch_groups) == set(self.onnx_groups)

    @property
    def shared(self) -> list[Members]:
        return [m for m in self.torch_groups if m in self.onnx_groups]


def sides(name: str, exporter: Exporter = "dynamo") -> Sides:
    """Analyse both sides of a zoo entry. ZooUnavailable where it has no file."""
    path, model = onnx_path(name, exporter), ZOO[name].build()
    proto = normalise(load_ir(path))
    found = study(model.module, model.example(), align=1)
    tensors = dict(model.module.named_parameters(remove_duplicate=False))
    names = _names(tensors, proto)
    analysis = analyse(proto)
    known = {parameter for parameter, _ in names.values()}
    same = _aliases(found)
    on_torch = _by_members(
        found.analysis, found.groups, {n: (same.get(n, n), False) for n in tensors if same.get(n, n) in known}
    )
    known_names = {n: (same.get(p, p), turned) for n, (p, turned) in names.items()}
    return Sides(found, analysis, names, on_torch, _by_members(analysis, find_groups(analysis), known_names))


def _aliases(found: Study) -> dict[str, str]:
    """The first name of every tensor that has several."""
    return {alias: names[0] for names in found.program.names.values() for alias in names}


def _names(tensors: Mapping[str, Tensor], proto: ir.Model) -> Names:
    """Which parameter every initializer is: by its bytes, else (a folded norm) by name and shape."""
    plain: dict[tuple[tuple[int, ...], bytes], str] = {}
    turned: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        plain.setdefault((array.shape, array.tobytes()), name)
        if array.ndim == 2:
            turned.setdefault((array.T.shape, np.ascontiguousarray(array.T).tobytes()), name)
    found: Names = {}
    for name, value in proto.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        key = (array.shape, np.ascontiguousarray(array).tobytes())
        if key in plain or key in turned:
            found[name] = (plain[key], False) if key in plain else (turned[key], True)
        elif name in tensors and tuple(tensors[name].shape) == array.shape:
            found[name] = (name, False)
    return found


def _by_members(analysis: Analysis, groups: list[Group], names: Names) -> dict[Members, list[Group]]:
    found: dict[Members, list[Group]] = {}
    for group in groups:
        members = set()
        for tensor, position, axis in _uses(analysis, group) if group.is_free else ():
            if tensor in names:
                parameter, turned = names[tensor]
                place = 1 - position if turned else position
                members.add((parameter, place, _pattern(owners_of(axis, group.atom))))
        if members:
            found.setdefault(frozenset(members), []).append(group)
    return found


def _pattern(owner: np.ndarray) -> str:
    """The same text for the same partition of places into slots, however the slots are numbered."""
    order: dict[int, int] = {-1: -1}
    numbered = [order.setdefault(int(slot), len(order)) for slot in owner]
    return hashlib.sha256(np.array(numbered).tobytes()).hexdigest()[:8]


def plan_error(both: Sides, inputs: tuple[Any, ...], scratch: Path, seed: int = 0) -> float:
    """Drop the same random half of every group that both sides have; the difference of their outputs."""
    generator = np.random.default_rng(seed)
    on_torch: dict[Atom, np.ndarray] = {}
    on_onnx: dict[Atom, np.ndarray] = {}
    for members in both.shared:
        first = both.torch_groups[members][0]
        slots = np.ones(first.size, dtype=bool)
        slots[generator.permutation(first.size)[: first.size // 2]] = False
        by_position = _by_position(both, first, slots)
        on_torch |= {g.atom: _slots(both.found.analysis, g, by_position) for g in both.torch_groups[members]}
        there = _renamed(both, by_position)
        on_onnx |= {g.atom: _slots(both.analysis, g, there) for g in both.onnx_groups[members]}
    small = realise(both.found, on_torch, planned(both.found, on_torch), form="graph")
    with torch.no_grad():
        wanted = small.eval()(*inputs)
    feeds = {v.name or "": t.numpy() for v, t in zip(both.analysis.model.graph.inputs, inputs, strict=False)}
    remove(both.analysis, on_onnx)
    path = write(both.analysis.model, scratch / "model.onnx")
    outputs = RUNTIME.load(path, level="none").run(feeds)
    return difference([torch.from_numpy(np.asarray(o)) for o in outputs.values()], wanted)


Stays = dict[Member, np.ndarray]
"""(tensor, axis) -> for each place there, 1 where it stays, 0 where it goes, -1 where it is not the group's."""


def _by_position(both: Sides, group: Group, slots: np.ndarray) -> Stays:
    found: Stays = {}
    for tensor, position, axis in _uses(both.found.analysis, group):
        owner = owners_of(axis, group.atom)
        found[tensor, position] = np.where(owner >= 0, slots[owner], -1)
    return found


def _renamed(both: Sides, stays: Stays) -> Stays:
    found: Stays = {}
    for name, (parameter, turned) in both.names.items():
        for position in (0, 1):
            if (parameter, position) in stays:
                found[name, 1 - position if turned else position] = stays[parameter, position]
    return found


def _slots(analysis: Analysis, group: Group, stays: Stays) -> np.ndarray:
    """The mask of a group from what stays of its tensors, in the order of its own slots."""
    result = np.ones(group.size, dtype=bool)
    for tensor, position, axis in _uses(analysis, group):
        owner, wanted = owners_of(axis, group.atom), stays.get((tensor, position))
        if wanted is not None and len(wanted) == len(owner):
            seen = (owner >= 0) & (wanted >= 0)
            result[owner[seen]] = wanted[seen] == 1
            return result
    raise AssertionError("the group has no tensor that both sides hold alike")


def _uses(analysis: Analysis, group: Group) -> list[tuple[str, int, Axis]]:
    return [
        (value.name or "", position, axis)
        for value, axes in analysis.weights()
        for position, axis in enumerate(axes)
        if group.atom in atoms_of(axis)
    ]

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

from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.axes.owners import owners_of
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.kinds import KINDS
from sparsecc.graph.rewrite import remove
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.runtime.session import open_session
from sparsecc.torch.masked import difference
from sparsecc.torch.pruning import Study, planned, realise, study
from tests.zoo import ZOO
from tests.zoo.export import Exporter, onnx_path

Member = tuple[str, int, str]
"""(parameter in torch, axis there, which places of it go together); equal parameters go by the first one's name."""
Members = frozenset[Member]
"""One group, as far as both sides have its tensors."""
Names = dict[str, tuple[str, bool]]
"""Initializer -> (parameter in torch, whether it is stored transposed)."""
Content = tuple[tuple[int, ...], bytes]


@dataclass(frozen=True)
class Difference:
    """How many groups only one side has, and why that is right; `same` says whether outputs are equal all the same."""

    torch_only: int
    onnx_only: int
    reason: str
    same: bool = True


COUNTED = (
    "a table made by counting (arange) stays in torch; the exporter computes it and stores it as a weight"
)
TWICE = "a tied table is stored a second time, transposed: ONNX may cut the two apart, in torch they are one tensor"
MERGED = "layers alike at initialisation compute the same constants, which the exporter merges into one value"
ZEROS = (
    "zeros_like of another value has its sizes in torch, so that both go together; in ONNX it is a constant"
)
SMALL = "a matrix of less than 1024 elements that two nodes read is tied in torch alone"
STRIDED = "the exporter makes a mean over positions into a gather with strides (as_strided), which ONNX pins"

DIFFERENCES: dict[str, Difference] = {
    "diffusion_unet": Difference(0, 1, COUNTED),
    "dit": Difference(0, 1, COUNTED),
    "joint_diffusion": Difference(0, 1, COUNTED),
    "video_diffusion": Difference(0, 1, COUNTED),
    "bloom": Difference(0, 1, COUNTED),
    "lstm_tied_lm": Difference(1, 2, TWICE),
    "opt": Difference(1, 2, TWICE),
    "bert_masked_lm": Difference(1, 2, TWICE),
    "mamba": Difference(4, 2, MERGED),
    "deberta": Difference(2, 1, MERGED),
    "deepseek_v3": Difference(
        5, 1, "keys are written into an empty tensor by slices, in ONNX by ScatterND, whose written axes stay"
    ),
    "efficientvit": Difference(1, 1, STRIDED),
    "swin": Difference(1, 1, STRIDED),
    "performer": Difference(2, 4, SMALL),
    "stereo": Difference(1, 2, SMALL),
    "retention": Difference(2, 1, MERGED),
    "point_transformer": Difference(2, 1, MERGED),
    "equivariant_graph": Difference(2, 1, MERGED),
    "source_separation": Difference(1, 2, ZEROS),
    "flow_speech": Difference(2, 4, ZEROS),
    "optical_flow": Difference(0, 1, ZEROS),
    "deformable_detr": Difference(
        1,
        1,
        "heads of the offsets that grid_sampler reads stay in torch, in ONNX they go with the other heads",
    ),
    "neural_codec": Difference(
        0,
        1,
        "torch's LSTM pins what it reads at a length that is a product; squares of the codes are summed from what is "
        "left, in ONNX they are a folded constant: other codes are nearest",
        same=False,
    ),
    "rnn_classifier": Difference(
        1, 3, "nn.RNN has one size for all layers; the exporter unrolls it into products"
    ),
    "dlrm": Difference(
        1, 0, "the pairs picked are a buffer that loses columns in torch; ONNX folds it into indices"
    ),
}
"""Entries whose groups are not the same on both sides."""


@dataclass
class Sides:
    """A zoo entry as torch and as ONNX see it. Both maps hold the free groups only.

    Several groups can have the same members: exporters store equal constants once, so that a small matrix which
    two nodes read may lose other slots for each.
    """

    found: Study
    analysis: Analysis
    torch_names: Names
    onnx_names: Names
    torch_groups: dict[Members, list[Group]]
    onnx_groups: dict[Members, list[Group]]

    @property
    def is_equal(self) -> bool:
        return self.extra == (0, 0)

    @property
    def extra(self) -> tuple[int, int]:
        """How many groups only torch has, and only ONNX."""
        on_torch, on_onnx = set(self.torch_groups), set(self.onnx_groups)
        return len(on_torch - on_onnx), len(on_onnx - on_torch)

    @property
    def shared(self) -> list[Members]:
        return [m for m in self.torch_groups if m in self.onnx_groups]


def sides(name: str, exporter: Exporter = "dynamo") -> Sides:
    """Analyse both sides of a zoo entry. ZooUnavailable where it has no file."""
    path, model = onnx_path(name, exporter), ZOO[name].build()
    proto = normalise(load_ir(path))
    found = study(model.module, model.example(), align=1, kinds=tuple(KINDS))
    tensors = dict(model.module.named_parameters(remove_duplicate=False))
    alike = _alike(tensors)
    onnx_names = _names(tensors, alike, proto)
    known = {parameter for parameter, _ in onnx_names.values()}
    torch_names = {n: (alike[n], False) for n in tensors if alike[n] in known}
    analysis = analyse(proto)
    on_torch = _by_members(found.analysis, found.groups, torch_names)
    on_onnx = _by_members(analysis, find_groups(analysis), onnx_names)
    return Sides(found, analysis, torch_names, onnx_names, on_torch, on_onnx)


def _alike(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Parameter -> the first one of the same content: exporters store equal constants once."""
    first: dict[Content, str] = {}
    return {name: first.setdefault(_content(t.detach().numpy()), name) for name, t in tensors.items()}


def _content(array: np.ndarray) -> Content:
    return array.shape, np.ascontiguousarray(array).tobytes()


def _names(tensors: Mapping[str, Tensor], alike: Mapping[str, str], proto: ir.Model) -> Names:
    """Which parameter every initializer is: by its bytes, else (a folded norm) by name and shape."""
    plain = {_content(tensors[n].detach().numpy()): n for n in dict.fromkeys(alike.values())}
    turned = {_content(tensors[n].detach().numpy().T): n for n in plain.values() if tensors[n].dim() == 2}
    found: Names = {}
    for name, value in proto.graph.initializers.items():
        assert value.const_value is not None
        content = _content(value.const_value.numpy())
        if content in plain or content in turned:
            found[name] = (plain[content], False) if content in plain else (turned[content], True)
        elif name in tensors and tuple(tensors[name].shape) == content[0]:
            found[name] = (alike[name], False)
    return found


def _by_members(analysis: Analysis, groups: list[Group], names: Names) -> dict[Members, list[Group]]:
    found: dict[Members, list[Group]] = {}
    for group in groups:
        members = frozenset(m for m, _ in _uses(analysis, group, names)) if group.is_free else None
        if members:
            found.setdefault(members, []).append(group)
    return found


def _uses(analysis: Analysis, group: Group, names: Names) -> list[tuple[Member, np.ndarray]]:
    """The group's members, each with the slots of its atom in the order in which they appear there."""
    found = []
    for value, axes in analysis.weights():
        parameter, turned = names.get(value.name or "", ("", False))
        for position, axis in enumerate(axes if parameter else ()):
            if group.atom in atoms_of(axis):
                place = 1 - position if turned else position
                pattern, order = _numbered(owners_of(axis, group.atom))
                found.append(((parameter, place, pattern), order))
    return found


def _numbered(owner: np.ndarray) -> tuple[str, np.ndarray]:
    """(the same text for the same partition of places into slots, the slots in order of appearance)."""
    order: dict[int, int] = {-1: -1}
    numbered = [order.setdefault(int(slot), len(order)) for slot in owner]
    pattern = hashlib.sha256(np.array(numbered).tobytes()).hexdigest()[:8]
    return pattern, np.array(list(order)[1:])


def plan_error(both: Sides, inputs: tuple[Any, ...], scratch: Path, seed: int = 0) -> float:
    """Drop the same random half of every group that both sides have; the difference of their outputs."""
    generator = np.random.default_rng(seed)
    on_torch: dict[Atom, np.ndarray] = {}
    on_onnx: dict[Atom, np.ndarray] = {}
    for members in both.shared:
        first = both.torch_groups[members][0]
        stays = np.ones(first.size, dtype=bool)
        stays[generator.permutation(first.size)[: min(first.size // 2, first.size - first.least)]] = False
        for group in both.torch_groups[members]:
            on_torch[group.atom] = _mask(both.found.analysis, group, both.torch_names, min(members), stays)
        for group in both.onnx_groups[members]:
            on_onnx[group.atom] = _mask(both.analysis, group, both.onnx_names, min(members), stays)
    small = realise(both.found, on_torch, planned(both.found, on_torch), form="graph")
    with torch.no_grad():
        wanted = small.eval()(*inputs)
    feeds = {v.name or "": t.numpy() for v, t in zip(both.analysis.model.graph.inputs, inputs, strict=False)}
    remove(both.analysis, on_onnx)
    path = write(both.analysis.model, scratch / "model.onnx")
    outputs = open_session(path, level="none").run(feeds)
    return difference([torch.from_numpy(np.asarray(o)) for o in outputs.values()], wanted)


def _mask(analysis: Analysis, group: Group, names: Names, member: Member, stays: np.ndarray) -> np.ndarray:
    """The mask of a group from what stays of one member, whose slots count in order of appearance."""
    order = next(order for found, order in _uses(analysis, group, names) if found == member)
    result = np.ones(group.size, dtype=bool)
    result[order] = stays
    return result

"""Exported mixtures of experts with routers made uneven, and what to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.calibrate.layer_statistics import Stats, collect
from sparsecc.calibrate.mixtures import Mixture
from sparsecc.calibrate.routers import Router
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.weights import SlotWeights
from sparsecc.data.samples import Samples, random_samples
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.normalise import normalise
from tests.rule_checks import run
from tests.zoo.export import Exporter, onnx_path

NEVER = -60.0
"""Added to a router's score, it keeps an expert from ever being chosen."""


def biased(
    name: str, exporter: Exporter = "dynamo", bias: Mapping[int, float] | None = None
) -> onnx.ModelProto:
    """A mixture of the zoo whose routers add these to the scores of experts; as it is without them."""
    proto = onnx.load(onnx_path(name, exporter))
    if not bias:
        return proto
    makers = {output: node for node in proto.graph.node for output in node.output}
    for choice in [node for node in proto.graph.node if node.op_type == "TopK"]:
        node = choice
        while node.op_type not in ("Gemm", "MatMul"):
            node = makers[node.input[0]]
        _add_after(proto, node, bias)
    return proto


def _add_after(proto: onnx.ModelProto, node: onnx.NodeProto, bias: Mapping[int, float]) -> None:
    shapes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    weight, output = node.input[1], node.output[0]
    size = shapes[weight][0] if node.op_type == "Gemm" else shapes[weight][1]
    array = np.array([bias.get(expert, 0.0) for expert in range(size)], dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{output}_bias"))
    node.output[0] = f"{output}_plain"
    place = next(i for i, other in enumerate(proto.graph.node) if other is node or other == node)
    made = onnx.helper.make_node("Add", [node.output[0], f"{output}_bias"], [output], name=f"{output}_add")
    proto.graph.node.insert(place + 1, made)


@dataclass
class Studied:
    """A model, its samples and what calibration says of it."""

    analysis: Analysis
    samples: Samples
    stats: Stats

    @property
    def evidence(self) -> Evidence:
        return Evidence(SlotWeights(self.analysis), self.stats)

    @property
    def experts(self) -> list[Group]:
        """The groups of experts, in the order of their routers."""
        groups = {g.atom: g for g in find_groups(self.analysis)}
        return [groups[atom_of(r.mixture.experts)] for r in self.stats.routers]

    def outputs(self, model: ir.Model | None = None) -> list[np.ndarray]:
        return [out for batch in self.samples.batches for out in run(model or self.analysis.model, batch)]

    def without(self, gone: Mapping[Atom, int]) -> list[np.ndarray]:
        """The outputs once a slot of each of these atoms is removed. The analysis is used up."""
        keep = {atom: np.arange(atom.size) != slot for atom, slot in gone.items()}  # type: ignore[arg-type]
        remove(self.analysis, keep)
        return self.outputs()


def studied(model: onnx.ModelProto | ir.Model, folder: Path, samples: Samples | None = None) -> Studied:
    """The model analysed and calibrated, on random inputs unless samples are given."""
    found = normalise(ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model)
    analysis = analyse(found)
    drawn = samples or random_samples(found, sizes=analysis.shapes.inputs[0], seed=3)
    return Studied(analysis, drawn, collect(analysis, drawn, folder))


def atom_of(axis: Axis) -> Atom:
    """The atom that an axis is."""
    (atom,) = atoms_of(axis)
    return atom


def stack_of(mixture: Mixture) -> np.ndarray:
    """The weights of the experts' last layer, experts first."""
    (inner,) = mixture.inner
    assert inner.weight.const_value is not None
    return np.moveaxis(inner.weight.const_value.numpy(), inner.expert, 0)


def scale_expert(router: Router, expert: int, factor: float) -> None:
    """Multiply the last layer of an expert."""
    (inner,) = router.mixture.inner
    assert inner.weight.const_value is not None
    array = inner.weight.const_value.numpy().copy()
    np.moveaxis(array, inner.expert, 0)[expert] *= factor
    inner.weight.const_value = ir.Tensor(array, name=inner.weight.name)

"""One question for every rule: which slots are free, and is the model without half of them still right?

A case is the text of an ONNX graph. Inputs whose name starts with `w` become random weights, `s` positive
scales, `z` zero points, `b` biases of a quantized layer; the others are fed. `N` is a dynamic batch of 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import parser

from sparsecc.axes.algebra import Atom
from sparsecc.graph.analysis import Analysis, analyse, prunable_atoms
from sparsecc.graph.rewrite import remove
from sparsecc.graph.slot_indices import least_left
from sparsecc.ir.subgraphs import one_scope
from sparsecc.reference.masked_channels import masked

NEWEST_IR = 10
Arrays = Mapping[str, np.ndarray]


def model_of(text: str, opset: int = 23, values: Arrays | None = None) -> onnx.ModelProto:
    """The graph as a model whose weights are random."""
    header = f'<ir_version: {NEWEST_IR}, opset_import: ["": {opset}, "com.microsoft": 1]> case '
    model = parser.parse_model(header + text)
    rng = np.random.default_rng(0)
    fed = []
    for value in model.graph.input:
        if value.name[0] not in "wszb":
            fed.append(value)
            continue
        array = (values or {}).get(value.name)
        if array is None:
            array = _random(value, rng)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[:]
    model.graph.input.extend(fed)
    return model


def _random(value: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    kind = value.type.tensor_type
    shape = [d.dim_value for d in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if value.name.startswith("s"):
        return rng.uniform(0.02, 0.05, shape).astype(dtype)
    if value.name.startswith("z"):
        return rng.integers(0, 6, shape).astype(dtype)
    if dtype.kind == "f":
        return rng.normal(0, 0.6, shape).astype(dtype)
    low = 0 if dtype.kind == "u" else -20
    return rng.integers(low, low + 40, shape).astype(dtype)


def loaded(proto: onnx.ModelProto) -> ir.Model:
    """The model in memory, in one scope as it is when a file is loaded."""
    model = ir.serde.deserialize_model(proto)
    one_scope(model)
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"{node.op_type}{number}"
    return model


def feeds_of(model: onnx.ModelProto, given: Arrays | None = None, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs; dynamic dimensions are 3."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 3 for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        random = (
            rng.normal(0, 1, shape)
            if dtype.kind == "f"
            else rng.integers(0, 2 if dtype.kind == "b" else 4, shape)
        )
        feeds[value.name] = np.asarray(random).astype(dtype)
    return {**feeds, **(given or {})}


def run(model: ir.Model, feeds: Arrays) -> list[np.ndarray]:
    """The outputs of ONNX Runtime with its optimizer off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def free_members(analysis: Analysis) -> set[str]:
    """`weight:axis` of everything that may lose slots."""
    owners = prunable_atoms(analysis)
    return {
        f"{name}:{axis}" for atom, members in owners.items() if atom.pin is None for name, axis in members
    }


def half_of_every_group(analysis: Analysis, seed: int = 2) -> dict[Atom, np.ndarray]:
    """A random half of the slots of every free group."""
    rng = np.random.default_rng(seed)
    keep = {}
    least = least_left(analysis.record)
    for atom in prunable_atoms(analysis):
        if atom.pin is None and isinstance(atom.size, int):
            slots = np.zeros(atom.size, dtype=bool)
            slots[rng.permutation(atom.size)[: max((atom.size + 1) // 2, least.get(atom, 1))]] = True
            keep[atom] = slots
    return keep


def check(
    text: str,
    free: str,
    opset: int = 23,
    values: Arrays | None = None,
    feeds: Arrays | None = None,
    tolerance: float = 2e-5,
) -> ir.Model:
    """The free slots are those expected; without half of them the model gives what the masked one gives.

    Returns the pruned model.
    """
    proto = model_of(text, opset, values)
    model = loaded(proto)
    analysis = analyse(model)
    assert free_members(analysis) == set(free.split()), pins(analysis)
    keep = half_of_every_group(analysis)
    dense = masked(analysis, keep)
    before = _elements(model)
    remove(analysis, keep)
    if keep:
        assert _elements(model) < before
    fed = feeds_of(proto, feeds)
    for expected, found in zip(run(dense, fed), run(model, fed), strict=True):
        assert expected.shape == found.shape
        scale = max(float(np.abs(expected.astype(np.float64)).max()), 1.0)
        np.testing.assert_allclose(
            found.astype(np.float64) / scale, expected.astype(np.float64) / scale, atol=tolerance
        )
        assert expected.size < 2 or expected.dtype.kind != "f" or np.ptp(expected) > 0, (
            "a constant output proves nothing"
        )
    return model


def check_free(text: str, free: str, opset: int = 23) -> None:
    """The free slots are exactly those expected, of an operator that no CPU kernel runs.

    Without half of them every node still makes sense to its rule.
    """
    model = loaded(model_of(text, opset))
    analysis = analyse(model)
    assert free_members(analysis) == set(free.split()), pins(analysis)
    lost = len(analysis.record.unfollowed)
    remove(analysis, half_of_every_group(analysis))
    again = analyse(model)
    assert len(again.record.unfollowed) == lost, pins(again)


def _elements(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)


def pins(analysis: Analysis) -> str:
    """What is pinned and why, for the message of a failed check."""
    owners = prunable_atoms(analysis)
    lines = [f"{members}: {atom.pin}" for atom, members in owners.items()]
    return "\n".join(lines + [f"{n.op_type}: {r}" for n, r in analysis.record.unfollowed.items()])


def why_pinned(text: str, member: str, opset: int = 23, values: Arrays | None = None) -> str:
    """The reason that pins `weight:axis`, or '' where it is free."""
    analysis = analyse(loaded(model_of(text, opset, values)))
    name, axis = re.fullmatch(r"(.+):(\d+)", member).groups()  # type: ignore[union-attr]
    found = [a.pin or "" for a, m in prunable_atoms(analysis).items() if (name, int(axis)) in m]
    assert found, f"{member} is not an axis of a weight"
    return found[0]

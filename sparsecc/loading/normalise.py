"""One form for models of every exporter: functions inlined, constants lifted, everything named once."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from sparsecc.errors import InputError
from sparsecc.graph.branches import take_known_branches
from sparsecc.loading.models import TYPES
from sparsecc.text import quoted


def normalise(model: ir.Model) -> ir.Model:
    """Bring a loaded model into the form that analysis works on, in place where possible.

    An If whose condition is the same for every input gives way to its branch.

    Names of inputs, outputs and initializers stay. Weights that are also graph inputs stay inputs, and
    their default value is what gets compiled, except in files of IR version 3, which had to list them: runtimes
    fold only what cannot be overridden. InputError for inputs and
    outputs that are maps or opaque.
    """
    for name in model.meta.get(TYPES, {}):
        raise InputError(
            f"{quoted(name)} is a map or opaque: only tensors can be compiled, cut that part off"
        )
    if model.functions:
        model = InlinePass()(model).model
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if model.ir_version < 4:
        RemoveInitializersFromInputsPass()(model)
    _mend_header(model)
    _name_everything(model.graph)
    if take_known_branches(model):
        _name_everything(model.graph)
    return model


_READ_BY_ALL = 10
"""The IR version that every supported runtime reads."""


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values())
        for node in graph:
            yield from node.outputs


def _is_recent(value: ir.Value) -> bool:
    """Whether a value is of a type that came after that version."""
    tensor = value.const_value
    dtype = value.dtype or (tensor.dtype if tensor is not None else None)
    return dtype is not None and dtype.value > ir.DataType.INT4.value


def _mend_header(model: ir.Model) -> None:
    """What runtimes overlook and onnx's checker does not: a graph without a name, domains that are not
    imported, and weights that are no graph inputs, which IR version 3 did not know. What onnx writes
    today is newer than what runtimes read, though nothing in the graph needs it."""
    if model.ir_version > _READ_BY_ALL and not any(_is_recent(v) for v in _values(model)):
        model.ir_version = _READ_BY_ALL
    model.ir_version = max(model.ir_version, 4)
    model.graph.name = model.graph.name or "model"
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            model.opset_imports.setdefault(node.domain, 1)


def _name_everything(graph: ir.Graph) -> None:
    """Give nameless values and nodes names, and repeated node names a number."""
    taken = set(graph.initializers) | {v.name for v in (*graph.inputs, *graph.outputs) if v.name}
    taken |= {v.name for node in graph for v in node.outputs if v.name}
    nodes: dict[str, int] = {}
    for number, node in enumerate(graph):
        for output in node.outputs:
            if not output.name:
                output.name = _fresh(f"{node.op_type}_{number}_out", taken)
        name = node.name or f"{node.op_type}_{number}"
        while name in nodes:
            nodes[name] += 1
            name = f"{name}_{nodes[name]}"
        nodes[name] = 0
        node.name = name


def _fresh(stem: str, taken: set[str]) -> str:
    name = stem
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}{number}"
    taken.add(name)
    return name

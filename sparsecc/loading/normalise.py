"""One form for models of every exporter: functions inlined, constants lifted, weights stored as layers read them,
everything named once."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.graph.caches import size_caches
from sparsecc.graph.constant_if import take_known_branches
from sparsecc.ir.subgraphs import name_values, one_scope
from sparsecc.loading.attention_bias import give_biases
from sparsecc.loading.constant_weights import fix_weights, store_operands
from sparsecc.loading.maxpool_padding import guard_zeros
from sparsecc.loading.mixture_buffers import guard_mixtures
from sparsecc.loading.models import TYPES
from sparsecc.loading.sequences import split_sequences
from sparsecc.rules import shapes_of

FIXED = "sparsecc.fixed"
"""Where a normalised model says how many inputs became constants because the file listed its weights there."""
GUARDED = "sparsecc.guarded"
"""Where it names the Pads whose zeros a runtime would lose."""
UNBIASED = "sparsecc.unbiased"
"""Where it names the attentions that were given a bias of zeros, without which a runtime dies."""
CLEARED = "sparsecc.cleared"
"""Where it names the mixtures of experts whose inputs a runtime would clear."""


def normalise(model: ir.Model) -> ir.Model:
    """Bring a loaded model into the form that analysis works on, in place where possible.

    An If whose condition is the same for every input gives way to its branch, a sequence that only passes pieces
    of a tensor on to a Split. Weights inside bodies become weights of the main graph, which the bodies read. What
    layers read as weights and nodes compute from constants becomes constant too. Caches have the sizes that their
    attention demands. Zeros that a runtime would lose
    become numbers next to zero, and inputs that it would clear get a reader more.

    Names of inputs, outputs and initializers stay, but for those inside bodies that repeat another. Inputs with
    a default value stay, and that is what gets compiled, except where a file lists most of its layers' weights:
    runtimes fold only what cannot be overridden. InputError for inputs and outputs that are maps or opaque.
    """
    for name in model.meta.get(TYPES, {}):
        raise InputError(
            f"{quoted(name)} is a map or opaque: only tensors can be compiled, cut that part off"
        )
    if model.functions:
        model = _inlined(model)
    one_scope(model)
    split_sequences(model)
    if model.ir_version < 4:
        RemoveInitializersFromInputsPass()(model)
    _mend_header(model)
    _name_nodes(model)
    if take_known_branches(model):
        name_values(model)
        _name_nodes(model)
    size_caches(model, shapes_of)
    model.meta[UNBIASED] = give_biases(model)
    model.meta[FIXED] = fix_weights(model)
    store_operands(model)
    model.meta[GUARDED] = guard_zeros(model)
    model.meta[CLEARED] = guard_mixtures(model)
    return model


def _inlined(model: ir.Model) -> ir.Model:
    """The model with every call replaced by what it calls. InputError where onnx_ir cannot, as for functions of
    another opset than the model's."""
    try:
        return InlinePass()(model).model
    except ValueError as e:
        raise InputError(f"cannot inline the functions: {one_line(str(e), 200)}; export them inlined") from e


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


def _name_nodes(model: ir.Model) -> None:
    """Give nameless nodes names, and repeated names a number."""
    nodes: dict[str, int] = {}
    for number, node in enumerate(model.graph.all_nodes()):
        name = node.name or f"{node.op_type}_{number}"
        while name in nodes:
            nodes[name] += 1
            name = f"{name}_{nodes[name]}"
        nodes[name] = 0
        node.name = name

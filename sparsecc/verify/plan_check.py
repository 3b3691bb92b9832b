"""The check anyone can make from `plan.json` alone: zero the summed slices in the input model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.data.plan_file import in_own_names
from sparsecc.reference.gated_layers import dropped_branches, silenced
from sparsecc.reference.hidden_tokens import unseen
from sparsecc.system.memory import HELD


def zeroed(model: ir.Model, plan: Mapping[str, Any]) -> ir.Model:
    """The (normalised) input model with zeros for what was removed, as far as an operator sums over it.

    These are the removed slices of every axis that is summed over, and what dropped branches add. Later attention
    does not see tokens that were left out.
    """
    branches = dropped_branches(plan)
    if branches:
        model = silenced(model, branches)
    if plan.get("tokens"):
        model = unseen(model, plan["tokens"])
    for name, entry in in_own_names(plan, model)["tensors"].items():
        value = model.graph.initializers[name]
        if "uses" in entry:
            for use, axes in entry["uses"].items():
                _zero_use(model, value, use, axes)
            continue
        _zero(value, entry)
    return model


def _zero(value: ir.Value, axes: Mapping[str, Any]) -> None:
    tensor = value.const_value
    assert tensor is not None

    def with_zeros() -> ir.TensorProtocol:
        array = tensor.numpy().copy()
        for axis, fact in axes.items():
            if fact["summed"]:
                gone = np.setdiff1d(np.arange(fact["size"]), fact["keep"])
                array[(slice(None),) * int(axis) + (gone,)] = 0
        return ir.Tensor(array, dtype=tensor.dtype, name=value.name)

    shape = ir.Shape(tensor.shape.numpy())
    lazy = ir.LazyTensor(with_zeros, dtype=tensor.dtype, shape=shape, name=value.name)
    value.const_value = lazy if tensor.nbytes > HELD else with_zeros()


def _zero_use(model: ir.Model, value: ir.Value, use: str, axes: Mapping[str, Any]) -> None:
    """The same for one use of a constant that several nodes share."""
    node_name, _, operand = use.rpartition(":")
    node = next(n for n in model.graph.all_nodes() if n.name == node_name)
    copy = ir.Value(
        name=f"{value.name}.{use}", shape=value.shape, type=value.type, const_value=value.const_value
    )
    model.graph.register_initializer(copy)
    _zero(copy, axes)
    node.replace_input_with(int(operand), copy)

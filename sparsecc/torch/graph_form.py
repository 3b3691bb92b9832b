"""The exported graph as a module that trains: tensors sliced, sizes in its calls rewritten."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsecc.torch.plan import Indices, sliced
from sparsecc.torch.program.exported import Program, operator_name
from sparsecc.torch.program.reparametrized import lengths, quotient
from sparsecc.torch.rules.edit import Change, Rescaled

_MODES = {"batch_norm": "training", "dropout": "train", "lstm": "train", "gru": "train", "rnn_tanh": "train",
          "rnn_relu": "train", "feature_dropout": "train", "alpha_dropout": "train"}  # fmt: skip
"""Operators that behave differently in training, and the argument that says so."""


class PrunedGraph(fx.GraphModule):
    """An exported graph that has `train()` and `eval()`, and moves to another device as a whole.

    Parameters keep the names they had in the user's module. Dropout inside a fused attention call is not
    restored in training, for the export in eval mode does not show it.
    """

    def train(self, mode: bool = True) -> PrunedGraph:
        """Set the mode; batch norms, dropouts and recurrent layers follow it."""
        nn.Module.train(self, mode)
        for node in self.graph.nodes:
            name = _MODES.get(operator_name(node)) if node.op == "call_function" else None
            if name is not None and not _remembers_nothing(node):
                set_argument(node, name, mode)
        self.recompile()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PrunedGraph:
        nn.Module._apply(self, fn, recurse)
        device = next((p.device for p in self.parameters()), None)
        if device is not None:
            for node in self.graph.nodes:
                node.args = fx.node.map_aggregate(node.args, lambda a: _moved(a, device))
                node.kwargs = fx.node.map_aggregate(node.kwargs, lambda a: _moved(a, device))
            self.recompile()
        return self


def _remembers_nothing(node: fx.Node) -> bool:
    """Whether a batch norm has the statistics of the batch alone, and so is the same in both modes."""
    return operator_name(node) == "batch_norm" and node.args[3] is None


def _moved(value: Any, device: torch.device) -> Any:
    return device if isinstance(value, torch.device) else value


def graph_form(program: Program, tensors: Mapping[str, Indices], changes: Iterable[Change]) -> PrunedGraph:
    """Rewrite the exported graph in place and give it as a module. The program is spent after this."""
    module = program.graph_module
    for change in changes:
        _apply_change(module.graph, change)
    made: dict[int, Tensor] = {}
    directions = {
        node: _attribute(module, node.args[0]).detach()
        for node in module.graph.nodes
        if node.op == "call_function" and operator_name(node) == "_weight_norm"
    }
    for node in module.graph.nodes:
        if node.op != "get_attr" or not program.of.get(node):
            continue
        name = program.of[node][0].name or ""
        path, _, last = str(node.target).rpartition(".")
        holder, tensor = module.get_submodule(path), _attribute(module, node)
        indices = tensors.get(program.names.get(name, [name])[0])
        if indices is None:
            continue
        if id(tensor) not in made and not any(tensor is done for done in made.values()):
            small = sliced(tensor, indices)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(small, tensor.requires_grad) if is_parameter else small
        if id(tensor) in made:
            setattr(holder, last, made[id(tensor)])
    for node, dense in directions.items():
        name = program.of[node.args[0]][0].name or ""
        indices = tensors.get(program.names.get(name, [name])[0])
        if indices is not None:
            _mend_length(module, node, dense, indices)
    module.graph.lint()
    return PrunedGraph(module, module.graph, "PrunedGraph")


def _mend_length(module: fx.GraphModule, node: fx.Node, dense: Tensor, indices: Indices) -> None:
    """New lengths of a weight norm, so that what is left of the weight is what it was."""
    given: list[Any] = list(node.args)
    axis = given[2] if len(given) > 2 else 0
    direction, length = _attribute(module, given[0]).detach(), _attribute(module, given[1])
    growth = quotient(lengths(dense, axis, indices), torch.norm_except_dim(direction, 2, axis))
    path, _, last = str(given[1].target).rpartition(".")
    new = length.detach() * growth.reshape(length.shape)
    setattr(module.get_submodule(path), last, nn.Parameter(new, length.requires_grad))


def _attribute(module: fx.GraphModule, node: Any) -> Tensor:
    path, _, last = str(node.target).rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), last)
    return tensor


def _apply_change(graph: fx.Graph, change: Change) -> None:
    call = change.call
    with graph.inserting_before(call):
        new = fx.node.map_aggregate(change.new, lambda v: _scaled(graph, v))
    if change.target is None:
        set_argument(call, change.name, new)
        return
    axis = call.kwargs.get("dim", call.args[2] if len(call.args) > 2 else 0)
    call.args, call.kwargs, call.target = (call.args[0], new, axis), {}, change.target


def _scaled(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, Rescaled):
        return value
    dense = graph.call_function(operator.floordiv, (value.node, value.divisor))
    return graph.call_function(operator.mul, (dense, value.multiplier))


def set_argument(call: fx.Node, name: str, value: Any) -> None:
    """Set an argument by its name in the operator's schema."""
    assert isinstance(call.target, torch._ops.OpOverload)
    schema = call.target._schema.arguments
    position = next(i for i, a in enumerate(schema) if a.name == name)
    if position < len(call.args):
        call.args = (*call.args[:position], value, *call.args[position + 1 :])
    else:
        call.kwargs = {**call.kwargs, name: value}

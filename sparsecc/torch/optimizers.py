"""State that belongs to the dense module, sliced for the pruned one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecc.errors import InputError
from sparsecc.torch.plan import sliced
from sparsecc.torch.pruning import plan_of


def prune_state_dict(state: Mapping[str, Any], pruned: nn.Module) -> dict[str, Any]:
    """A state dict of the dense module (a checkpoint, averaged weights) with only the kept slots.

    Names stay. InputError where a tensor does not have the dense module's shape.
    """
    plan = plan_of(pruned)
    found: dict[str, Any] = {}
    for name, value in state.items():
        indices = plan.tensors.get(name)
        if indices is None or not isinstance(value, Tensor):
            found[name] = value
            continue
        if any(axis >= value.dim() or int(slots[-1]) >= value.shape[axis] for axis, slots in indices.items()):
            raise InputError(f"'{name}' has shape {list(value.shape)}: it is not that of the dense module")
        found[name] = sliced(value, indices)
    return found


def prune_optimizer(optimizer: torch.optim.Optimizer, dense: nn.Module, pruned: nn.Module) -> None:
    """Make the dense module's optimizer that of the pruned one, in place: its state follows the kept slots.

    State tensors of a parameter's own shape are sliced; others (step counts) stay as they are. After pruning
    in place (`dense is pruned`) the optimizer's parameters are told apart by their order. InputError where a
    parameter of the optimizer is not one of the dense module.
    """
    plan = plan_of(pruned)
    new = dict(pruned.named_parameters(remove_duplicate=False))
    names = {id(p): n for n, p in dense.named_parameters(remove_duplicate=False)}
    order = [n for n, _ in pruned.named_parameters()]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    by_order = dense is pruned and len(held) == len(order)
    position = 0
    for group in optimizer.param_groups:
        replaced = []
        for old in group["params"]:
            name = names.get(id(old), order[position] if by_order else None)
            position += 1
            if name is None or name not in new:
                shape = list(old.shape)
                raise InputError(
                    f"the optimizer holds a parameter of shape {shape} that is not of the dense module"
                )
            replaced.append(new[name])
            _move_state(optimizer, old, new[name], plan.tensors.get(name, {}))
        group["params"] = replaced


def _move_state(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, indices: Any) -> None:
    if old is new or old not in optimizer.state:
        return
    state = optimizer.state.pop(old)
    optimizer.state[new] = {
        key: sliced(value, indices) if isinstance(value, Tensor) and value.shape == old.shape else value
        for key, value in state.items()
    }

"""What the user says of single groups of a torch module: patterns, masks by parameter, the plan of another pruning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsecc.axes.algebra import Axis
from sparsecc.decide.limits import (
    Limits,
    Patterns,
    Statement,
    bounded,
    by_axis,
    is_whole_mask,
    slots_that_stay,
)
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group
from sparsecc.torch.plan import TorchPlan
from sparsecc.torch.program.exported import Program

Uses = Mapping[str, Sequence[Sequence[Axis]]]
"""By each name of a parameter or buffer, the axes of its uses."""


def limits_of(
    module: nn.Module,
    program: Program,
    analysis: Analysis,
    groups: Sequence[Group],
    patterns: Patterns,
    slots: Mapping[str, Any],
    plan: TorchPlan | None,
) -> Limits:
    """Bounds of the groups. InputError where what is said is of no parameter, or cannot be."""
    if not (patterns or slots or plan):
        return Limits()
    uses: dict[str, list[Sequence[Axis]]] = {}
    for value, axes in analysis.weights():
        for name in program.names[value.name or ""]:
            uses.setdefault(name, []).append(axes)
    planned, given = _planned(module, plan, uses), _given(module, slots, uses)
    return bounded(groups, patterns, planned, given, only_named=False, spelt="")


def _planned(module: nn.Module, plan: TorchPlan | None, uses: Uses) -> Iterable[Statement]:
    """What another pruning removed."""
    tensors = module.state_dict(keep_vars=True)
    for name, indices in plan.tensors.items() if plan is not None else ():
        shape = tuple(tensors[name].shape) if name in tensors else ()
        for position, kept in indices.items():
            if position >= len(shape) or kept[-1] >= shape[position]:
                raise InputError(
                    f"plan: axis {position} of {quoted(name)} is not as {type(module).__name__} has it"
                )
            stays = slots_that_stay(name, kept, shape[position], spelt="")
            yield from ((f"{name}:{position}", axes[position], stays) for axes in uses.get(name, ()))


def _given(module: nn.Module, slots: Mapping[str, Any], uses: Uses) -> Iterable[Statement]:
    """What `slots` says."""
    tensors, parts = module.state_dict(keep_vars=True), dict(module.named_modules())
    for name, said in slots.items():
        given = _array(name, said)
        stem, _, tail = name.rpartition(":")
        known, position = (stem, int(tail)) if tail.isdigit() and name not in tensors else (name, None)
        if known not in tensors and f"{known}.weight" in tensors:
            transposed = isinstance(parts.get(known), _ConvTransposeNd)
            known, position = f"{known}.weight", int(transposed) if position is None else position
        if known not in tensors:
            raise InputError(f"slots names {quoted(name)}, which is no parameter and no module with a weight")
        shape = tuple(tensors[known].shape)
        for axes in uses.get(known, ()):
            if is_whole_mask(given, shape):
                yield from by_axis(known, axes, given)
                continue
            place = 0 if position is None and len(shape) == 1 else position
            if place is None or place >= len(shape):
                raise InputError(f"slots: {quoted(known)} has axes 0 to {len(shape) - 1}: write '{known}:0'")
            yield f"{known}:{place}", axes[place], slots_that_stay(name, given, shape[place], spelt="")


def _array(name: str, said: Any) -> np.ndarray:
    """A boolean mask, or the numbers of slots. InputError for anything else."""
    array = np.asarray(said.detach().cpu().numpy() if isinstance(said, Tensor) else said)
    if array.ndim == 1 and (not array.size or (array.dtype.kind in "iu" and array.min() >= 0)):
        return array.astype(np.int64)
    if array.dtype.kind in "bfiu" and array.ndim:
        return np.asarray(array != 0)
    raise InputError(f"slots: {quoted(name)} is neither a mask nor the numbers of slots that stay")

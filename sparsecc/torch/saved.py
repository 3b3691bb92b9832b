"""Pruned modules on disk: weights and the plan in one safetensors file, the code given by the user's own class."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.errors import GoalError, InputError, MissingPackageError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.files import replace_whole
from sparsecc.torch.layers import apply_edits, foreign_edit
from sparsecc.torch.plan import TorchPlan, owned, replace_tensors
from sparsecc.torch.program.reparametrized import copied
from sparsecc.torch.pruning import labelled, plan_of, planned, realise, study

SCHEMA = "sparsecc.torch/1"
_HEADER = "sparsecc"
"""The key of the file's metadata that holds the plan."""
_TYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def save(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned module: its tensors and its plan, no code. The old file or the new one is there at every moment.

    InputError for a module that `prune` did not make, for one whose state holds more than tensors, and where the
    file cannot be written.
    """
    safetensors = _safetensors()
    plan = plan_of(module)
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"'{name}' is a {type(value).__name__}: only tensors can be saved without pickles"
            )
    first: dict[tuple[Any, ...], str] = {}
    alike = {n: first.setdefault(_place(t), n) for n, t in state.items() if t.numel()}
    shared = {name: other for name, other in alike.items() if name != other}
    tensors = {name: t.detach().contiguous().cpu() for name, t in state.items() if name not in shared}
    computed = {name: str(t.dtype) for name, _, _, t in owned(module) if name not in state}
    told = {"schema": SCHEMA, "plan": plan.to_json(), "shared": shared, "types": computed}
    try:
        replace_whole(Path(path), safetensors.torch.save(tensors, metadata={_HEADER: json.dumps(told)}))
    except OSError as e:
        raise InputError(
            f"cannot write {one_line(str(path), 120)}: {e.strerror}: make its folder, or choose another path"
        ) from e


def load(
    path: str | os.PathLike[str],
    module: nn.Module,
    example_inputs: Any = None,
    **options: Any,
) -> nn.Module:
    """The module of `save`, from an instance of the dense class, which stays as it is; nothing of the file is run.

    Parameters and buffers get the types in which they were saved. A module that was saved in the graph form is
    exported again: give `example_inputs`, and the options of `prune` that are about the export (`kwargs`,
    `dynamic_shapes`). InputError where the file does not fit the class.
    """
    safetensors, shown = _safetensors(), one_line(str(path), 120)
    try:
        data = Path(path).read_bytes()
        told = _metadata(data)
        tensors = safetensors.torch.load(data)
    except OSError as e:
        raise InputError(f"{shown}: {e.strerror}: give a file of sparsecc.torch.save") from e
    except (safetensors.SafetensorError, ValueError, LookupError, RecursionError) as e:
        raise InputError(f"{shown} is no file of sparsecc.torch.save: {one_line(str(e), 120)}") from e
    small = apply_plan(module, TorchPlan.of_json(told.get("plan")), example_inputs, **options)
    shared, types = _texts(told, "shared", shown), _texts(told, "types", shown)
    state = {**tensors, **{name: tensors[other] for name, other in shared.items() if other in tensors}}
    try:
        _set_types(small, {name: _TYPES[word] for name, word in types.items() if word in _TYPES})
        _set_types(small, {name: tensor.dtype for name, tensor in state.items()})
        small.load_state_dict(state, strict=True)
    except RuntimeError as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        raise InputError(f"{shown} does not fit {type(module).__name__}: {one_line(lines[-1], 200)}") from e
    return small


def apply_plan(module: nn.Module, plan: TorchPlan, example_inputs: Any = None, **options: Any) -> nn.Module:
    """A copy of a dense module made as small as the plan says: whose `state_dict` a checkpoint of the pruned one fits.

    For checkpoints of your own: keep `plan_of(small).to_json()` in them, and read it with `TorchPlan.of_json`.
    """
    if plan.form == "graph":
        return _exported(module, plan, example_inputs, options)
    _require_fit(module, plan)
    small = copied(module)
    replace_tensors(small, plan.tensors)
    apply_edits(small, plan.attributes)
    return labelled(small, plan)


def _set_types(module: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Give parameters and buffers other types of their kind, in place: ties and optimizers' references stay.

    RuntimeError, as of `load_state_dict`, where integers are to be floats or the other way round.
    """
    for name, _, _, tensor in owned(module):
        wanted = types.get(name, tensor.dtype)
        if (wanted.is_floating_point, wanted.is_complex) != (tensor.is_floating_point(), tensor.is_complex()):
            raise RuntimeError(f"{name} holds {tensor.dtype}, not {wanted}")
        if wanted != tensor.dtype:
            tensor.data = tensor.data.to(wanted)


def _exported(
    module: nn.Module, plan: TorchPlan, example_inputs: Any, options: Mapping[str, Any]
) -> nn.Module:
    """The graph form: the same groups are found again, and lose the same slots."""
    if example_inputs is None:
        raise InputError("it was saved in the graph form, which is exported again: give example_inputs")
    found = study(copied(module), example_inputs, **options)
    of_class = [_identity(row) for row in planned(found, {}).groups]
    fits = of_class == [_identity(row) for row in plan.groups]
    if not fits or any(row["slots"] and row["slots"][-1] >= row["size"] for row in plan.groups):
        raise InputError(f"{type(module).__name__} has other groups than the module that was saved")
    masks = {}
    for group, row in zip(found.groups, plan.groups, strict=True):
        if row.get("slots") is not None:
            masks[group.atom] = np.isin(np.arange(group.size), row["slots"])
    try:
        small = realise(found, masks, planned(found, masks), form="graph")
    except GoalError as e:
        raise InputError(f"{type(module).__name__} is not the class of the module that was saved: {e}") from e
    return labelled(small, replace(plan, error=plan_of(small).error))


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("kind"), row.get("size"), row.get("members")


def _require_fit(module: nn.Module, plan: TorchPlan) -> None:
    """A file sets sizes where there are sizes, and nothing else."""
    held = {name: tensor for name, _, _, tensor in owned(module)}
    name = type(module).__name__
    for tensor, indices in plan.tensors.items():
        if tensor not in held:
            raise InputError(
                f"{name} has no tensor {quoted(tensor)}: give an instance of the class that was pruned"
            )
        shape = held[tensor].shape
        for axis, slots in indices.items():
            if axis >= len(shape) or int(slots[-1]) >= shape[axis]:
                raise InputError(
                    f"{quoted(tensor)} of {name} has shape {list(shape)}, not that of the pruned class"
                )
    parts = dict(module.named_modules())
    for path, attribute, value in plan.attributes:
        now = getattr(parts.get(path), attribute, None)
        if not _is_size(now) or not _is_size(value) or isinstance(now, int) != isinstance(value, int):
            raise InputError(
                f"{name} has no size {quoted(f'{path}.{attribute}')}: the plan is of another class"
            )
    foreign = foreign_edit(module, plan.tensors, plan.attributes)
    if foreign is not None:
        path, attribute, value = foreign
        raise InputError(
            f"{quoted(f'{path}.{attribute}')} of {name} cannot become {one_line(str(value), 40)}: "
            "the plan is of another class"
        )


def _is_size(value: Any) -> bool:
    listed = value if isinstance(value, tuple | list) else (value,)
    return bool(listed) and all(type(one) is int for one in listed)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The same for two tensors that are one."""
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.device


def _metadata(data: bytes) -> dict[str, Any]:
    """What `save` told. ValueError or RecursionError for any other file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    words = header.get("__metadata__") if isinstance(header, dict) else None
    told = words.get(_HEADER) if isinstance(words, dict) else None
    found = json.loads(told) if isinstance(told, str) else None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError("it has no plan in it")
    return found


def _texts(told: Mapping[str, Any], key: str, shown: str) -> dict[str, str]:
    found = told.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise InputError(f"{shown} is no file of sparsecc.torch.save: its {quoted(key)} are no names")
    return found


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as e:
        raise MissingPackageError(
            "sparsecc.torch.save needs safetensors: run pip install 'sparsecc[torch]'"
        ) from e
    return safetensors

"""Attributes of a user's modules that hold sizes, mended after their tensors were sliced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from sparsecc.torch.plan import Indices, owned
from sparsecc.torch.program.exported import operator_name
from sparsecc.torch.program.reparametrized import normed_weights
from sparsecc.torch.rules.edit import Change

Shapes = Mapping[str, tuple[int, ...]]
Attributes = dict[str, Any]
Edit = tuple[str, str, Any]
"""(module path, attribute, new value)"""


def _linear(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    out, width = weights["weight"]
    return {"out_features": out, "in_features": width}


def _conv(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    groups = changed.get("groups", part.groups)
    first, second = weights["weight"][:2]
    transposed = getattr(part, "transposed", False)
    sizes = (first, second * groups) if transposed else (second * groups, first)
    return {"in_channels": sizes[0], "out_channels": sizes[1], "groups": groups}


def _batch_norm(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    return {"num_features": next(s[0] for s in weights.values() if s)}


def _layer_norm(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    return {"normalized_shape": tuple(weights["weight"])}


def _group_norm(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    return {"num_channels": weights["weight"][0], "num_groups": changed.get("num_groups", part.num_groups)}


def _embedding(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    return {"num_embeddings": weights["weight"][0], "embedding_dim": weights["weight"][1]}


def _recurrent(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    width, state = weights["weight_ih_l0"][1], weights["weight_hh_l0"][1]
    if "weight_hr_l0" in weights:
        return {"input_size": width, "hidden_size": weights["weight_hr_l0"][1], "proj_size": state}
    return {"input_size": width, "hidden_size": state}


def _attention(part: nn.Module, weights: Shapes, changed: Attributes) -> Attributes:
    if "in_proj_weight" not in weights:
        return {}
    width = weights["in_proj_weight"][1]
    return {"embed_dim": width, "kdim": width, "vdim": width}


_Convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
LAYERS: tuple[tuple[Any, Callable[[nn.Module, Shapes, Attributes], Attributes]], ...] = (
    (nn.Linear, _linear),
    (_Convs, _conv),
    (_Norms, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.RNNBase, _recurrent),
    (nn.MultiheadAttention, _attention),
)
"""Type of module -> its attributes from the new shapes of its tensors."""
_COUNTS = ("groups", "num_groups")
"""Sizes that no tensor shows."""
_SIZES = frozenset({
    *_COUNTS, "in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels",
    "num_embeddings", "embedding_dim", "input_size", "hidden_size", "proj_size", "embed_dim", "kdim", "vdim",
    "num_heads", "head_dim",
})  # fmt: skip
"""Sizes of torch's own modules."""


def attribute_edits(
    module: nn.Module, tensors: Mapping[str, Indices], changes: Iterable[Change]
) -> list[Edit]:
    """The attributes to set, by the table for torch's own layers and by their old value for others."""
    shapes = _new_shapes(module, tensors)
    by_path: dict[str, list[Change]] = {}
    for change in changes:
        by_path.setdefault(_path(change), []).append(change)
    edits: list[Edit] = []
    for path, part in module.named_modules():
        mine = by_path.get(path, [])
        changed = {c.name: c.new for c in mine}
        found = _by_table(part, shapes.get(path, {}), changed)
        if isinstance(part, (*_Convs, nn.GroupNorm)):
            found |= {n: v for n, v in changed.items() if n in _COUNTS}
        found = {**_by_value(part, mine), **found}
        edits += [(path, n, v) for n, v in found.items() if getattr(part, n, v) != v]
    return edits


def foreign_edit(module: nn.Module, tensors: Mapping[str, Indices], edits: Iterable[Edit]) -> Edit | None:
    """The first edit that `attribute_edits` could not have made for these tensors.

    Sizes of torch's own layers follow from their tensors; any other is a public integer that comes nearer to 0.
    """
    edits = list(edits)
    shapes, parts = _new_shapes(module, tensors), dict(module.named_modules())
    for path, name, value in edits:
        counts = {n: v for p, n, v in edits if p == path and n in _COUNTS and type(v) is int}
        if path not in parts or not _is_own(parts[path], shapes.get(path, {}), counts, name, value):
            return path, name, value
    return None


def _is_own(part: nn.Module, own: Shapes, counts: Attributes, name: str, value: Any) -> bool:
    now = vars(part).get(name)
    is_smaller = type(now) is int and type(value) is int and (0 < value <= now or now <= value < 0)
    if name in _COUNTS and isinstance(part, (*_Convs, nn.GroupNorm)):
        return is_smaller and ("weight" not in own or own["weight"][0] % value == 0)
    table = _by_table(part, own, counts)
    if name in table:
        return bool(table[name] == value)
    is_known = name in _SIZES or not type(part).__module__.startswith("torch.nn.")
    return is_smaller and is_known and not name.startswith("_")


def _by_table(part: nn.Module, own: Shapes, changed: Attributes) -> Attributes:
    row = next((row for types, row in LAYERS if isinstance(part, types)), None)
    return row(part, own, changed) if row is not None and _is_plain(row, own) else {}


def _is_plain(row: Any, own: Shapes) -> bool:
    """Whether a layer holds its own tensors; a parametrised weight is computed from others."""
    return bool(own) and (row in (_recurrent, _attention, _batch_norm) or "weight" in own)


def apply_edits(module: nn.Module, edits: Iterable[Edit]) -> None:
    """Set the attributes."""
    for path, name, value in edits:
        setattr(module.get_submodule(path), name, value)


def _new_shapes(module: nn.Module, tensors: Mapping[str, Indices]) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for full, _, name, tensor in owned(module):
        slots = tensors.get(full, {})
        shape = tuple(len(slots[i]) if i in slots else int(s) for i, s in enumerate(tensor.shape))
        found.setdefault(full.removesuffix(name).rstrip("."), {})[name] = shape
    for one in normed_weights(module):
        path, _, name = one.source.rpartition(".")
        found.setdefault(one.layer, {})[one.name] = found[path][name]
    return found


def _path(change: Change) -> str:
    stack = list(change.call.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _by_value(part: nn.Module, changes: Iterable[Change]) -> Attributes:
    """Integer attributes that have the value of a size which becomes another one in this module's forward."""
    becomes: dict[int, set[int]] = {}
    for change in changes:
        for old, new in _pairs(change):
            becomes.setdefault(old, set()).add(new)
    found = {}
    for name, value in vars(part).items():
        if type(value) is int and not name.startswith("_") and len(becomes.get(value, ())) == 1:
            found[name] = next(iter(becomes[value]))
    return found


def _pairs(change: Change) -> list[tuple[int, int]]:
    old, new = change.old, change.new
    if change.target is not None and operator_name(change.call) == "split":
        given = change.call.args[1] if len(change.call.args) > 1 else None
        old = [given] * len(new) if isinstance(given, int) else None
    if isinstance(old, int) and isinstance(new, int):
        return [(old, new)]
    if not isinstance(old, list | tuple) or not isinstance(new, list | tuple):
        return []
    both = zip(old, new, strict=False)
    return [(a, b) for a, b in both if isinstance(a, int) and isinstance(b, int) and a != b]

"""At which sizes of its dynamic dimensions a model is inferred."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from sparsecc.shapes.dictated import Walk, dictated
from sparsecc.shapes.dynamic_dims import candidate_dims, dim_key, is_fixed

Dims = Mapping[str, Sequence[int]]
"""Sizes the user gave for inputs: input name -> its shape."""

_CANDIDATES: tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], ...] = (
    # batch, sequence (or the later axes of rank 2 and 3), spatial (axes from 2 of rank 4 and 5)
    ((2, 3), (11, 13), (64, 96)),
    ((2, 3), (64, 96), (224, 256)),
    ((1, 2), (16, 24), (320, 384)),
    ((1, 1), (128, 160), (48, 64)),
    ((1, 2), (16000, 24000), (32, 40)),
)

_ALIKE = ((1, 2), (1,), (2, 4), (2,), (3, 6), (3,), (4,), (8,), (16,))
"""Last, one size for all dynamic dimensions: what is broadcast or multiplied against constants may take no other."""


def assignments(
    model: ir.Model,
    dims: Dims,
    sample: Dims | None = None,
    likely: Sequence[list[dict[str, tuple[int, ...]]]] = (),
    walk: Walk | None = None,
) -> Iterator[list[dict[str, tuple[int, ...]]]]:
    """Candidate sizes of all inputs: one dict per probe (a single probe where nothing is dynamic).

    Those that are `likely` come first. `sample` are the shapes of one of the user's samples; they are tried next, with
    as many of the dynamic dimensions varied as the model allows. With `walk` those that its nodes dictate are found.
    """
    graph = model.graph
    values = [v for v in graph.inputs if v.name not in graph.initializers and v.shape is not None]
    if all(v.name in dims or all(is_fixed(d) for d in v.shape or ()) for v in values):
        yield [{v.name or "": _fixed(v, dims) for v in values}]
        return
    yield from likely
    if sample is not None:
        yield from _around(values, dims, sample)
    for candidate in _CANDIDATES:
        names: dict[str, tuple[int, int]] = {}
        pairs = {v.name or "": _input_dims(v, dims, candidate, names) for v in values}
        yield [
            {name: tuple(pair[probe] for pair in axes) for name, axes in pairs.items()} for probe in (0, 1)
        ]
    if walk is not None:
        yield from dictated(graph, values, dims, walk)
    for setting in candidate_dims(model):
        doubled = {name: 2 * size for name, size in setting.items()}
        yield [{v.name or "": _at_setting(v, dims, sizes) for v in values} for sizes in (setting, doubled)]
    for sizes in _ALIKE:
        yield [{v.name or "": _alike(v, dims, size) for v in values} for size in sizes]


def _around(
    values: Sequence[ir.Value], dims: Dims, sample: Dims
) -> Iterator[list[dict[str, tuple[int, ...]]]]:
    """The sample's sizes beside larger ones: all dimensions, all but one, the batch alone, then none varied."""
    known = {v.name or "": tuple(dims.get(v.name or "", sample[v.name or ""])) for v in values}
    free = [
        (dim_key(v, axis), axis, known[v.name or ""][axis])
        for v in values
        if v.name not in dims
        for axis, dim in enumerate(v.shape or ())
        if not is_fixed(dim)
    ]
    names: dict[str, tuple[int, int]] = {}
    for name, _, size in free:
        larger = size + _grain(size) * (1 + len(names))
        names.setdefault(name, _larger_sum(name, size, names) or (size, larger))
    batch = {name for name, axis, _ in free if axis == 0}
    subsets = [set(names), *(set(names) - {name} for name in names), batch, set[str]()]
    for position, varied in enumerate(subsets):
        if varied in subsets[:position]:
            continue
        second = {v.name or "": _varied(v, dims, known[v.name or ""], names, varied) for v in values}
        yield [known, second] if varied else [known]


def _grain(size: int) -> int:
    """By how much a dimension grows so that what its size is divided by on the way still divides it."""
    return 32 if size >= 32 else 8 if size >= 8 else 1


def _larger_sum(name: str, size: int, names: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    pair = _sum_of(name, names)
    return pair if pair is not None and pair[0] == size else None


def _varied(
    value: ir.Value,
    dims: Dims,
    known: tuple[int, ...],
    names: Mapping[str, tuple[int, int]],
    varied: set[str],
) -> tuple[int, ...]:
    """The sizes of an input at which the dimensions in `varied` are larger than in the sample."""
    sizes = list(known)
    for axis, dim in enumerate(value.shape or ()):
        name = dim_key(value, axis)
        if not is_fixed(dim) and value.name not in dims and name in varied and names[name][0] == known[axis]:
            sizes[axis] = names[name][1]
    return tuple(sizes)


def _fixed(value: ir.Value, dims: Dims) -> tuple[int, ...]:
    given = dims.get(value.name or "")
    return tuple(given) if given is not None else tuple(d for d in value.shape or () if isinstance(d, int))


def _at_setting(value: ir.Value, dims: Dims, setting: Mapping[str, int]) -> tuple[int, ...]:
    if value.name in dims:
        return _fixed(value, dims)
    sizes = []
    for axis, dim in enumerate(value.shape or ()):
        sizes.append(dim if is_fixed(dim) else setting.get(dim_key(value, axis), 2))
    return tuple(sizes)


def _alike(value: ir.Value, dims: Dims, size: int) -> tuple[int, ...]:
    if value.name in dims:
        return _fixed(value, dims)
    return tuple(dim if is_fixed(dim) else size for dim in value.shape or ())


def _input_dims(
    value: ir.Value,
    dims: Dims,
    candidate: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    names: dict[str, tuple[int, int]],
) -> list[tuple[int, int]]:
    assert value.shape is not None
    given = dims.get(value.name or "")
    rank = len(value.shape)
    pairs = []
    for axis, dim in enumerate(value.shape):
        if given is not None:
            pairs.append((given[axis], given[axis]))
        elif is_fixed(dim):
            pairs.append((dim, dim))
        else:
            kind = 0 if axis == 0 else 2 if rank >= 4 and axis >= 2 else 1
            name = dim_key(value, axis)
            names.setdefault(name, _sum_of(name, names) or _spread(candidate[kind], kind, axis, names))
            pairs.append(names[name])
    return pairs


def _spread(
    pair: tuple[int, int], kind: int, axis: int, names: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
    """Sizes of a symbol, different from those of other symbols of its kind where it may differ."""
    if kind == 0 or pair not in names.values():
        return pair
    step = 32 if kind == 2 else 4
    shift = step * sum(1 for p in names.values() if p[1] >= pair[0] and p != (2, 3))
    return pair[0] + shift, pair[1] + shift


def _sum_of(name: str, names: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """The sizes of a symbol written as a sum of known ones (`past + sequence`), else None."""
    terms = [t.strip() for t in name.split("+")]
    if len(terms) < 2 or not all(re.fullmatch(r"\w+", t) for t in terms):
        return None
    if not all(t.isdigit() or t in names for t in terms):
        return None
    values = [(int(t), int(t)) if t.isdigit() else names[t] for t in terms]
    return sum(v[0] for v in values), sum(v[1] for v in values)

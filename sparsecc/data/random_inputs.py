"""Inputs for a model: random ones that let real models run, and those of the user's files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsecc.data.files import feeds_from
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.options import CompileOptions
from sparsecc.rules import Trait, traits_of
from sparsecc.shapes.dynamic_dims import DEFAULT_DIM, dim_key, input_values, is_fixed

__all__ = ["feeds_from", "input_values", "random_feeds"]


_MASK = re.compile(r"mask|valid|padding", re.IGNORECASE)
_LENGTH = re.compile(r"(^|[^a-z])(len|lens|length|lengths|seqlens?)($|[^a-z])", re.IGNORECASE)
_SUM = re.compile(r"[\w.]+( *[+*] *[\w.]+)+")

_BOUNDED = frozenset({"Abs", "Clip", "Pad"})
_JOINED = frozenset({"Concat", "Max", "Min"})
"""Operators whose first input's numbers come out again, or all inputs', beside those that only move them."""

_TABLE_INPUTS = {
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
    ("SkipLayerNormalizationEmbed", 0): 2,
}
"""(operator, index of its integer input) -> index of the table that it looks rows up in."""


@dataclass(frozen=True)
class _Use:
    """What an input is used for: rows of a table, a constant it is compared with, a mask, a size."""

    rows: int | None = None
    equals: int | None = None
    is_mask: bool = False
    is_size: bool = False


def random_feeds(
    model: ir.Model,
    *,
    seed: int,
    sizes: Mapping[str, Sequence[int]] | None = None,
    dynamic: Mapping[str, int] | int = DEFAULT_DIM,
    sample: Mapping[str, np.ndarray] | None = None,
    integers: tuple[int, int] = (0, 2),
    plain: int | None = None,
) -> dict[str, np.ndarray]:
    """One array per input, the same for the same seed.

    Floats are N(0, 1), single numbers from 0 to 1; integers that select rows of a table stay inside it; what is
    compared with a constant is that constant; masks are ones with a few trailing zeros; other integers are drawn from
    `integers` (the upper bound is left out), bytes from 0 to 255.
    `sizes` gives whole shapes by input name; `dynamic` gives the size of dynamic dimensions, one for all or
    by name (`input:axis` where it has none). The same name is the same size. Integers and text that `sample`
    holds are taken from it, repeated where a shape is larger, unless a shape is smaller: such inputs may be
    lengths, rates or choices. With `plain` floats are from 0 to 1 and integers are this number, as far as tables have
    such a row: what is an axis, a divisor or a threshold may be hardly anything else. InputError for an unknown name
    in `sizes`, a wrong rank, a size that contradicts a fixed one, and inputs that are no tensors.
    """
    values = input_values(model)
    _require_known(sizes or {}, values)
    generator = np.random.default_rng(seed)
    known = dict(dynamic) if isinstance(dynamic, Mapping) else {}
    default = dynamic if isinstance(dynamic, int) else DEFAULT_DIM
    for value in values:
        _learn_names(value, (sizes or {}).get(value.name or ""), known)
    shapes = {
        value.name or "": _shape(value, (sizes or {}).get(value.name or ""), known, default)
        for value in values
    }
    taken = _repeated(sample or {}, shapes)
    feeds = {}
    for value in values:
        name = value.name or ""
        if name in taken and value.dtype is not None:
            feeds[name] = _typed(taken[name], value.dtype)
        else:
            feeds[name] = _draw(value, shapes, generator, model, integers, plain)
    return feeds


def why_not(model: ir.Model, failure: str) -> str:
    """The reason in what a runtime said of a run, without its advice, and what the node that failed was fed."""
    reason = failure.rsplit(": ", 1)[0]
    node = re.search(r"Name:'([^']*)'", reason)
    read = _inputs_behind(model, node[1]) if node else ()
    return f"{reason}; it reads {', '.join(map(quoted, read))}" if read else reason


def _inputs_behind(model: ir.Model, node: str) -> Sequence[str]:
    """The names of the inputs that a node of this name reads, as they are or moved about."""
    found: list[str] = []
    waiting = [v for n in model.graph if n.name == node for v in n.inputs if v is not None]
    for value in waiting:
        maker = value.producer()
        if value.is_graph_input():
            found.append(value.name or "")
        elif maker is not None and traits_of(maker) & (Trait.MOVES | Trait.KEEPS_SIZE):
            waiting += [v for v in maker.inputs[:1] if v is not None]
    return tuple(dict.fromkeys(found))


def require_known_inputs(options: CompileOptions, model: ir.Model) -> None:
    """InputError where `--input` names an input that a model does not have, or has with another rank."""
    ranks = {v.name: len(v.shape) for v in input_values(model) if v.shape is not None}
    for name, shape in options.inputs.items():
        if name not in ranks:
            known = ", ".join(quoted(n or "") for n in ranks)
            raise InputError(f"--input {quoted(name)}: no such input: inputs are {known}")
        given = shape if name in options.dims else shape[0]
        if isinstance(given, tuple) and len(given) != ranks[name]:
            raise InputError(f"--input {quoted(name)} has rank {len(given)}, the model's has {ranks[name]}")


def _require_known(names: Iterable[str], values: Sequence[ir.Value]) -> None:
    """InputError where no input has one of these names."""
    known = {value.name for value in values}
    for name in names:
        if name not in known:
            raise InputError(f"no input is called '{name}': inputs are {', '.join(sorted(map(str, known)))}")


def _repeated(
    sample: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The sample's integers and text at these shapes; nothing where any input is smaller than the sample's."""
    sample = {name: array for name, array in sample.items() if name in shapes}
    pairs = [(array.shape, shapes[name]) for name, array in sample.items()]
    if any(len(a) != len(b) or any(x > y for x, y in zip(a, b, strict=True)) for a, b in pairs):
        return {}
    return {n: np.resize(a, shapes[n]) for n, a in sample.items() if a.dtype.kind in "iubOUS"}


def _learn_names(value: ir.Value, given: Sequence[int] | None, known: dict[str, int]) -> None:
    """Take the sizes of named dimensions from a shape that the user gave."""
    if given is None or value.shape is None or len(given) != len(value.shape):
        return
    for axis, dim in enumerate(value.shape):
        if not is_fixed(dim):
            known[dim_key(value, axis)] = given[axis]


def _shape(
    value: ir.Value, given: Sequence[int] | None, known: Mapping[str, int], default: int
) -> tuple[int, ...]:
    if value.shape is None:
        if given is None:
            raise InputError(
                f"input '{value.name}' has no declared shape: give it with --input {value.name}:1x3x224x224"
            )
        return tuple(given)
    declared = [
        dim if is_fixed(dim) else _size(dim_key(value, axis), known, default)
        for axis, dim in enumerate(value.shape)
    ]
    if given is None:
        return tuple(declared)
    fits = len(given) == len(declared) and all(
        not is_fixed(dim) or dim == size for dim, size in zip(value.shape, given, strict=True)
    )
    if not fits:
        raise InputError(
            f"input '{value.name}' is declared as {value.shape}, not {list(given)}: give a shape that fits"
        )
    return tuple(given)


def _size(name: str, known: Mapping[str, int], default: int) -> int:
    """The size of a named dimension; sums and products of other names are worked out."""
    if name in known or not _SUM.fullmatch(name):
        return known.get(name, default)
    total = 0
    for term in name.split("+"):
        product = 1
        for factor in term.split("*"):
            factor = factor.strip()
            product *= int(factor) if factor.isdecimal() else known.get(factor, default)
        total += product
    return total


def _draw(
    value: ir.Value,
    shapes: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
    model: ir.Model,
    integers: tuple[int, int],
    plain: int | None,
) -> np.ndarray:
    name, dtype = value.name or "", value.dtype
    if dtype is None or isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        raise InputError(f"input '{name}' is no plain tensor: give samples of yours, file.py:function")
    shape = shapes[name]
    if dtype == ir.DataType.STRING:
        return np.full(shape, "text", dtype=object)
    use = _use_of(value, model)
    if plain is not None:
        return _plain(dtype, shape, generator, plain if use.rows is None else min(plain, use.rows - 1))
    if use.rows is not None:
        return _typed(generator.integers(0, max(1, use.rows), size=shape), dtype)
    if use.equals is not None and int(np.prod(shape)) == 1:
        return _typed(np.full(shape, use.equals), dtype)
    if _MASK.search(name) or use.is_mask:
        return _typed(_mask(shape), dtype)
    if dtype.is_floating_point() or dtype in {ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}:
        if not shape:
            return _plain(dtype, shape, generator, 1)
        narrow = dtype.is_floating_point() and dtype != ir.DataType.DOUBLE
        return _typed(generator.standard_normal(shape, np.float32 if narrow else np.float64), dtype)
    if use.is_size or not shape:
        return _typed(np.ones(shape), dtype)
    if _LENGTH.search(name):
        longest = max(
            (other[1] for key, other in shapes.items() if key != name and len(other) > 1), default=1
        )
        return _typed(np.full(shape, longest), dtype)
    bytes_ = {ir.DataType.UINT8: (0, 256), ir.DataType.INT8: (-128, 128)}
    return _typed(generator.integers(*bytes_.get(dtype, integers), size=shape), dtype)


def _plain(
    dtype: ir.DataType, shape: tuple[int, ...], generator: np.random.Generator, number: int
) -> np.ndarray:
    is_float = dtype.is_floating_point() or dtype in {ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}
    return _typed(generator.uniform(size=shape) if is_float else np.full(shape, number), dtype)


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    """Ones; every second row ends in zeros, but never a whole row."""
    mask = np.ones(shape)
    if len(shape) >= 2 and shape[-1] >= 4:
        mask[1::2, ..., -(shape[-1] // 4) :] = 0
    return mask


def _typed(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    if dtype == ir.DataType.BFLOAT16:
        return np.asarray(array).astype(ml_dtypes.bfloat16)
    return np.asarray(array).astype(object if dtype == ir.DataType.STRING else dtype.numpy())


def _use_of(value: ir.Value, model: ir.Model) -> _Use:
    """What the operators downstream of an input take its values for; the smallest table counts."""
    rows: list[int] = []
    equals: list[int] = []
    is_mask = is_size = False
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, index in current.uses():
            rows += _rows(node, index)
            equals += _compared_with(node, index)
            is_mask = is_mask or (node.op_type in {"Where", "And", "Not"} and index == 0)
            is_size = is_size or _is_size(node, index)
            waiting += _followed(node, index, model)
    return _Use(min(rows, default=None), equals[0] if equals else None, is_mask, is_size)


def _followed(node: ir.Node, index: int, model: ir.Model) -> list[ir.Value]:
    """The values that carry an operator's input onwards: its outputs, or inputs of the function it calls."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        return [function.inputs[index]] if index < len(function.inputs) else []
    moves = bool(traits_of(node) & Trait.MOVES) or node.op_type in _BOUNDED
    return list(node.outputs) if (moves and index == 0) or node.op_type in _JOINED else []


def _rows(node: ir.Node, index: int) -> list[int]:
    """The number of entries that an operator's input may select from."""
    if (node.op_type, index) in _TABLE_INPUTS:
        return _dim(node.inputs[_TABLE_INPUTS[node.op_type, index]], 0)
    if index == 1 and node.op_type in {"Gather", "GatherElements", "GatherBlockQuantized"}:
        default = 0
        return _dim(
            node.inputs[0], node.attributes.get_int("gather_axis", node.attributes.get_int("axis", default))
        )
    if index == 0 and node.op_type == "OneHot":
        depth = node.inputs[1].const_value if node.inputs[1] is not None else None
        return [int(depth.numpy().reshape(-1)[0])] if depth is not None else []
    if index == 1 and node.op_type in {"GatherND", "ScatterND"}:
        return _dim(node.inputs[0], 0)
    return []


def _dim(table: ir.Value | None, axis: int) -> list[int]:
    if table is None or table.shape is None or axis >= len(table.shape):
        return []
    size = table.shape[axis]
    return [size] if isinstance(size, int) else []


def _compared_with(node: ir.Node, index: int) -> list[int]:
    if node.op_type != "Equal":
        return []
    other = node.inputs[1 - index]
    constant = ir.convenience.get_const_tensor(other) if other is not None else None
    if constant is None or constant.size != 1 or constant.dtype == ir.DataType.STRING:
        return []
    return [int(constant.numpy().reshape(-1)[0])]


def _is_size(node: ir.Node, index: int) -> bool:
    shapes = {"Reshape": 1, "Expand": 1, "Tile": 1, "Resize": 3, "ConstantOfShape": 0, "TopK": 1, "Loop": 0}
    return shapes.get(node.op_type) == index or node.op_type == "Range"

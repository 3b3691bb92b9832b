"""Caches of decoders: what an attention has kept of earlier calls comes in as a graph input and leaves, longer, as an
output. Both are one axis of heads and one of widths, so these may shrink as any inner axis may.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsecc.axes.algebra import Space
from sparsecc.axes.sizes import is_static
from sparsecc.ir.graph_editor import BORDER
from sparsecc.rules.site import Record
from sparsecc.rules.table import caches_of
from sparsecc.shapes.contrib_ops import ShapeTable
from sparsecc.shapes.dynamic_dims import dim_key, input_values, is_fixed
from sparsecc.shapes.infer import Shapes, infer

LENGTHS = (
    ((1, 4, 8), (2, 1, 19), (1, 5, 0)),
    ((1, 4, 8), (1, 1, 19), (1, 5, 0)),
    ((1, 4, 8), (2, 1, 19)),
    ((1, 4, 8), (1, 6, 19)),
    ((1, 1, 8), (2, 1, 19)),
)
"""(batch, new positions, cached ones) of the probes: in the middle of a text, a step of two texts, the start of one.
Kernels that take several new positions behind a cache take one text alone."""
ENCODED = 2
"""So many more positions than new ones has what an encoder gave."""
CROSS = "cross"
"""The mark of what an encoder hands on as the cache of a decoder whose runtime knows one size for all layers."""
_CARRIER = "sparsecc.left_out"
"""What a node is marked with that hands a cache back: an input that a file of its own hands out is none."""


@dataclass(frozen=True)
class Cache:
    """One cache: the graph input, the graph output that it leaves as, the node that reads it as which operand, and
    which of its axes counts positions. `room` is how many of them it has at least, from the start on, where it holds
    the last ones alone (`sliding_window_cache`); 0 where it grows."""

    past: ir.Value
    present: ir.Value
    node: ir.Node
    operand: int
    positions: int
    room: int = 0

    @property
    def batch(self) -> int:
        """The axis of texts."""
        return self.heads - 1 if self.heads < self.positions else self.positions - 1

    @property
    def heads(self) -> int:
        """The axis of heads: before the positions, or behind them where these follow on the batch."""
        return 2 if self.positions == 1 else self.positions - 1

    @property
    def width(self) -> int:
        """The axis of widths, the last."""
        return 3 if self.positions == 1 else self.positions + 1


def caches(model: ir.Model | ir.Graph) -> list[Cache]:
    """The caches of a model, in the order of its nodes.

    Of attention operators by their table; elsewhere a Concat of a graph input (batch, heads, positions, width), or
    (batch, positions, heads, width) of dynamic length, with new positions that is an output. Identities may stand
    before the output.
    """
    graph = model.graph if isinstance(model, ir.Model) else model
    return [cache for node in graph for cache in _caches_at(node)]


def _caches_at(node: ir.Node) -> Iterator[Cache]:
    kept = dict(caches_of(node))
    if node.op_type == "Concat" and node.domain in ("", "ai.onnx"):
        kept = {0: 0}
    for operand, output in kept.items():
        past = node.inputs[operand] if operand < len(node.inputs) else None
        present = node.outputs[output] if output < len(node.outputs) else None
        present = None if present is None else _as_it_leaves(present)
        if past is None or present is None or past.shape is None:
            continue
        rank = len(past.shape)
        if not _comes_in(past) or rank < 4:
            continue
        positions = rank - 2
        if node.op_type == "Concat":
            positions = node.attributes.get_int("axis", 0) % 4 if rank == 4 else -1
            if positions not in (1, 2) or (positions == 1 and is_fixed(past.shape[1])):
                continue  # a fixed size is one of channels
        slides = node.attributes.get_int("sliding_window_cache", 0)
        room = node.attributes.get_int("local_window_size", 0) if slides else 0
        yield Cache(past, present, node, operand, positions, max(room, 0))


def _as_it_leaves(value: ir.Value) -> ir.Value | None:
    """The graph output that a value is, or that Identities make of it."""
    if value.is_graph_output():
        return value
    made, marks = value.producer(), (BORDER, _CARRIER)
    handed = (
        use.node
        for use in value.uses()
        if (use.node.op_type, use.node.domain) == ("Identity", "")
        and made is not None
        and use.node.graph is made.graph
        and not any(mark in use.node.metadata_props for mark in marks)
    )
    return next((found for node in handed if (found := _as_it_leaves(node.outputs[0]))), None)


def _comes_in(value: ir.Value) -> bool:
    """Whether a value is fed: by the caller, or by another file of the package."""
    if value.is_graph_input():
        return not value.is_initializer()
    node = value.producer()
    return node is not None and BORDER in node.metadata_props


def hand_back(cache: Cache) -> None:
    """What went in comes out: the cache of an attention that is left out, whose input and output are still there."""
    graph, old = cache.node.graph, cache.present
    assert isinstance(graph, ir.Graph)
    carrier = ir.node("Identity", [cache.past], name=f"{cache.node.name}.{cache.past.name}")
    carrier.metadata_props[_CARRIER] = cache.node.name or ""
    graph.insert_before(cache.node, carrier)
    new = carrier.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.name, old.name = old.name, f"{old.name}.left_out"
    place = next(i for i, value in enumerate(graph.outputs) if value is old)
    graph.outputs[place] = new


def left_out(model: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """(input, output) of the caches whose attention was left out."""
    nodes = (value.producer() for value in model.graph.outputs)
    carriers = [node for node in nodes if node is not None and _CARRIER in node.metadata_props]
    return [(past, node.outputs[0]) for node in carriers if (past := node.inputs[0]) is not None]


def relate(found: Sequence[Cache], space: Space, record: Record) -> None:
    """What comes in is what went out: heads and widths of both are the same, and the positions stay."""
    for cache in found:
        space.cause = cache.node
        past, present = record.axes.get(cache.past), record.axes.get(cache.present)
        if past is None or present is None or len(past) != len(present):
            for axis in (*(past or ()), *(present or ())):
                space.pin(axis, f"cache '{cache.past.name}', which is not followed")
            continue
        for place, (before, after) in enumerate(zip(past, present, strict=True)):
            if place == cache.positions or not is_static(before.size):
                space.pin(before, f"the positions of cache '{cache.past.name}'")
                space.pin(after, f"the positions of cache '{cache.past.name}'")
            else:
                space.unify(before, after)


def relate_crosses(model: ir.Model, space: Space, record: Record) -> None:
    """Caches that a runtime makes of one size for all layers lose the same heads and widths."""
    marked = [node for node in model.graph if node.metadata_props.get(BORDER) == CROSS]
    found = [axes for node in marked if len(axes := record.axes.get(node.outputs[0], [])) == 4]
    for node, axes in zip(marked, found, strict=False):
        space.cause = node
        for place in (1, 3):
            space.unify(found[0][place], axes[place])


def cache_sizes(model: ir.Model, found: Sequence[Cache]) -> Iterator[list[dict[str, tuple[int, ...]]]]:
    """Input sizes that a model with caches runs at, likeliest first: one dict per probe.

    Positions in all are those cached and the new ones. A cache with room of its own is full: what its operator has
    not written is not defined.
    """
    values = [value for value in input_values(model) if value.shape is not None]
    if not found:
        return
    rooms = {dim_key(cache.past, cache.positions): cache.room for cache in found}
    batches = [dim_key(cache.past, cache.batch) for cache in found]
    full = max(rooms.values())
    for settings in LENGTHS:
        probes = []
        for batch, new, more in settings:
            past = full + more
            known = {**dict.fromkeys(batches, batch), **{key: room or past for key, room in rooms.items()}}
            probes.append({v.name or "": _sizes(v, known, (batch, new, past)) for v in values})
        yield probes


def _sizes(value: ir.Value, known: dict[str, int], setting: tuple[int, int, int]) -> tuple[int, ...]:
    """The sizes of an input; what its names mean is kept for the inputs behind it."""
    batch, new, past = setting
    sizes = []
    for place, dim in enumerate(value.shape or ()):
        key = dim_key(value, place)
        if "encoder" in key:
            other = new + ENCODED
        else:
            whole = "total" in key or "+" in key or "mask" in (value.name or "")
            other = batch if place == 0 else past + new if whole else new
        sizes.append(dim if is_fixed(dim) else known.setdefault(key, other))
    return tuple(sizes)


def size_caches(model: ir.Model, table: ShapeTable) -> None:
    """Write the numbers of heads and the widths that follow from the attentions into the declared shapes of caches.

    Exporters write names there, which tell nobody what the operators demand. `table` as shape inference takes it.
    """
    named = [c for c in caches(model) if c.past.shape is not None and not all(map(is_fixed, _widths_of(c)))]
    if not named:
        return
    rough = infer(model, table)
    for cache in named:
        for value in (cache.past, cache.present):
            if value.shape is None or len(value.shape) != len(cache.past.shape or ()):
                continue
            dims: list[int | ir.SymbolicDim] = list(value.shape)
            for place, size in _widths(cache, rough).items():
                dims[place] = dims[place] if is_fixed(dims[place]) else size
            value.shape = ir.Shape(dims)


def _widths_of(cache: Cache) -> list[int | ir.SymbolicDim]:
    """The declared number of heads and width."""
    dims = list(cache.past.shape or ())
    return [dims[cache.heads], dims[cache.width]]


def _widths(cache: Cache, rough: Shapes) -> dict[int, int]:
    """Heads and width of a cache as far as the attention that reads it says, by axis."""
    node, attributes = cache.node, cache.node.attributes
    heads = attributes.get_int("kv_num_heads", 0) or attributes.get_int("num_heads", 0)
    if not heads or cache.positions != 2:
        return {}
    is_packed = len(node.inputs) < 2 or node.inputs[1] is None
    value = node.inputs[0 if is_packed else 1 + (cache.operand != min(caches_of(node)))]
    shape = rough.of(value) if value is not None else None
    width = shape[-1] if shape else None
    if shape is None or not isinstance(width, int):
        return {}
    if len(shape) == 3:
        width //= attributes.get_int("num_heads", 0) + 2 * heads if is_packed else heads
    return {1: heads, 3: width}

"""Reorder channels so that an N:M pattern keeps more: every tensor of a coupled group follows, exactly.

The groups are those that pruning finds: where slots may go together they may move together, through
residual sums, gates and heads alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Cat, Mul, atoms_of, parts_of, resolve
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.mapped import Spool
from sparsecc.passes.sparsity.pattern import Pattern

Orders = Mapping[Atom, np.ndarray]


@dataclass(frozen=True)
class Movable:
    """Channels that may change places, and the layers that read them along their reduction axis."""

    atom: Atom
    readers: list[LinearLayer]


def find_movable(analysis: Analysis, layers: Sequence[LinearLayer]) -> tuple[list[Movable], dict[str, str]]:
    """The channels that layers read and that may move; by node name, why the channels of the others may not."""
    free = {group.atom: group for group in find_groups(analysis)}
    found: dict[Atom, list[LinearLayer]] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        axis = analysis.record.uses.get((layer.node, 1), [])
        inner = _innermost(axis[layer.in_axis]) if layer.group == 1 and axis else None
        group = free.get(inner) if inner is not None else None
        if layer.group != 1:
            reasons[layer.name] = "a grouped convolution"
        elif inner is None or group is None:
            reasons[layer.name] = "its channels are joined or split between layers"
        elif not group.is_free or group.least > 1:
            reasons[layer.name] = group.pinned or "some are chosen by their number at run time"
        else:
            found.setdefault(inner, []).append(layer)
    return [Movable(atom, readers) for atom, readers in found.items()], reasons


def _innermost(axis: Axis) -> Atom | None:
    """The atom whose slots lie side by side on an axis, if there is one."""
    axis = resolve(axis)
    while isinstance(axis, Mul):
        axis = resolve(axis.factors[-1])
    return axis if isinstance(axis, Atom) else None


def channel_scores(layer: LinearLayer, channels: int) -> np.ndarray:
    """(rows, channels): magnitudes; every output, kernel position and head is a row."""
    weight = np.moveaxis(np.abs(layer.array()), layer.in_axis, -1)
    return np.asarray(weight.reshape(-1, channels))


def best_order(scores: np.ndarray, n: int, m: int, seed: int, rounds: int = 4000) -> np.ndarray:
    """An order (channels,) of the columns of `scores` (rows, channels) under which N:M keeps more of them.

    Greedy: the best exchange between two random groups, if it gains. Never worse than the order given.
    """
    rng = np.random.default_rng(seed)
    channels = scores.shape[1]
    order = np.arange(channels)
    groups = channels // m
    if groups < 2:
        return order
    if len(scores) > 512:
        scores = scores[rng.choice(len(scores), 512, replace=False)]

    def kept(columns: np.ndarray) -> float:
        return float(np.partition(scores[:, columns], m - n, axis=1)[:, m - n :].sum())

    totals = [kept(order[g * m : (g + 1) * m]) for g in range(groups)]
    for _ in range(min(rounds, 30 * groups)):
        left, right = rng.choice(groups, 2, replace=False)
        a, b = order[left * m : (left + 1) * m].copy(), order[right * m : (right + 1) * m].copy()
        best = (totals[left] + totals[right] + 1e-9, -1, -1, 0.0, 0.0)
        for i in range(m):
            for j in range(m):
                a[i], b[j] = b[j], a[i]
                first, second = kept(a), kept(b)
                a[i], b[j] = b[j], a[i]
                best = max(best, (first + second, i, j, first, second))
        _, i, j, first, second = best
        if i >= 0:
            order[left * m + i], order[right * m + j] = b[j], a[i]
            totals[left], totals[right] = first, second
    return order


def apply_orders(analysis: Analysis, orders: Orders, spool: Spool) -> None:
    """Give every constant the slots of the atoms in their new order; the function of the model does not change."""
    editor = GraphEditor(analysis.model, spool)
    for value in list(analysis.model.graph.initializers.values()):
        by_index: dict[tuple[bytes, ...], tuple[list[np.ndarray | None], list[tuple[ir.Node, int]]]] = {}
        for use in value.uses():
            axes = analysis.record.uses.get((use.node, use.idx), [])
            moved = [_index(axis, orders) if _moves(axis, orders) else None for axis in axes]
            key = tuple(b"" if index is None else index.tobytes() for index in moved)
            by_index.setdefault(key, (moved, []))[1].append((use.node, use.idx))
        alone = len(by_index) == 1 and not value.is_graph_output()
        for moved, uses in by_index.values():
            if any(index is not None for index in moved):
                _store(editor, spool, value, _taken(value, moved), None if alone else uses)


def _moves(axis: Axis, orders: Orders) -> bool:
    return any(atom in orders for atom in atoms_of(axis))


def _index(axis: Axis, orders: Orders) -> np.ndarray:
    """Where each slot of an axis comes from."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        assert isinstance(axis.size, int)
        return orders[axis] if axis in orders else np.arange(axis.size)
    if isinstance(axis, Cat):
        total = np.zeros(0, np.int64)
        for part in parts_of(axis):
            total = np.concatenate([total, _index(part, orders) + len(total)])
        return total
    assert isinstance(axis, Mul)
    total = np.zeros(1, np.int64)
    for factor in axis.factors:
        index = _index(factor, orders)
        total = (total[:, None] * len(index) + index[None, :]).ravel()
    return total


def _taken(value: ir.Value, moved: Sequence[np.ndarray | None]) -> np.ndarray:
    assert value.const_value is not None
    array = value.const_value.numpy()
    for axis, index in enumerate(moved):
        array = array if index is None else np.take(array, index, axis=axis)
    return np.ascontiguousarray(array)


def _store(
    editor: GraphEditor,
    spool: Spool,
    value: ir.Value,
    array: np.ndarray,
    uses: Sequence[tuple[ir.Node, int]] | None,
) -> None:
    """The reordered constant under its own name where all its readers see that order, else a copy for `uses`."""
    assert value.const_value is not None
    tensor = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)
    if uses is None:
        value.const_value = spool.keep(tensor)
        return
    copy = editor.constant(f"{value.name}_ordered", tensor)
    for node, operand in uses:
        node.replace_input_with(operand, copy)


def reorder(
    model: ir.Model, layers: Sequence[LinearLayer], pattern: Pattern, seed: int, spool: Spool
) -> dict[str, str]:
    """Move the channels that `layers` read so that an N:M pattern keeps more of them; why some did not."""
    try:
        analysis = analyse(model)
    except InputError as e:
        return {layer.name: str(e) for layer in layers}
    movable, reasons = find_movable(analysis, layers)
    orders: dict[Atom, np.ndarray] = {}
    for one in movable:
        assert isinstance(one.atom.size, int)
        scores = np.concatenate([channel_scores(layer, one.atom.size) for layer in one.readers])
        orders[one.atom] = best_order(scores, pattern.n, pattern.m, seed)
    apply_orders(analysis, orders, spool)
    for layer in layers:
        layer.refresh()
    return reasons

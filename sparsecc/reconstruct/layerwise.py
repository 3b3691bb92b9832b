"""Repair, layer after layer in graph order, each from the inputs that the already repaired layers give it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.calibrate.moments import Moments, together
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.graph.linear_layers import LinearLayer, own_layer_of
from sparsecc.reconstruct import blockwise as wide
from sparsecc.reconstruct import solve
from sparsecc.reconstruct.bias_sites import Outlet, feeds_norm, outlet_of
from sparsecc.reconstruct.damping import Halves, balanced, damping_for, in_second_half
from sparsecc.reconstruct.dense_values import DenseValues
from sparsecc.reconstruct.norms import shift_offset, shift_statistics
from sparsecc.reconstruct.shared import sharers_of, side_by_side
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.remarks import Remark
from sparsecc.runtime.segments import Walk

Kept = Callable[[str, int], np.ndarray | None]
"""(value of the dense model, axis) -> boolean mask of its slots that are left, None where all are."""

UNCHANGED = 1e-5
"""Relative error below which a layer is left as it is."""


@dataclass
class Repair:
    """What repair did: initializers changed, one row per layer, and what was left alone."""

    changed: list[str] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)


def repair(
    compilation: Compilation,
    dense: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    samples: Samples,
    method: str,
    known: DenseValues | None = None,
) -> Repair:
    """Edit the weights of `pruned` in place so that its layers give what those of `dense` do.

    `method` is one of RECOVERIES but `auto`, `none` and `distill`. `known` are of this dense model on these samples.
    """
    return _Sweep(compilation, dense, pruned, kept, samples, method, known).run()


class _Sweep:
    """Both models walked side by side."""

    def __init__(
        self,
        compilation: Compilation,
        dense: ir.Model,
        pruned: ir.Model,
        kept: Kept,
        samples: Samples,
        method: str,
        known: DenseValues | None,
    ) -> None:
        self.kept = kept
        self.method = method
        self.seed, self.memory = compilation.options.seed, compilation.options.working_memory
        self.progress, scratch = compilation.progress, compilation.scratch
        self.found = Repair()
        self.outlets = self._outlets(pruned)
        self.sharers = sharers_of(list(self.outlets))
        made = {v.name for node in dense.graph for v in node.outputs}
        norms = [n.inputs[0] for n in pruned.graph if n.op_type == "BatchNormalization"]
        ends = [value for outlet in self.outlets.values() for value in (outlet.own, outlet.total)]
        shared = [self.outlets[node].consumer.data for node in self.sharers]
        targets, whole = (
            [v.name for v in values if v is not None and v.name and v.name in made]
            for values in (ends, [*norms, *shared])
        )
        self.wanted: Counter[str | None] = Counter([*targets, *whole])
        """How many layers are still to ask for a value of the dense model."""
        self.lengths = [Samples((batch,), samples.real).number for batch in samples.batches]
        half, threads = self.memory // 2, compilation.options.threads
        self.values = (known or DenseValues(lasts=False)).sweep(
            dense, samples.batches, targets, whole, scratch.dense_walk, threads=threads, memory=half
        )
        smaller = Narrowed.by(pruned.graph, kept)
        self.pruned = Walk(
            pruned,
            [smaller.feeds(batch) for batch in samples.batches],
            scratch.pruned_walk,
            threads=threads,
            memory=half,
            order=side_by_side(pruned.graph, self.sharers),
        )

    @property
    def dense(self) -> Walk:
        """Over the dense model."""
        return self.values.walk

    def _outlets(self, pruned: ir.Model) -> dict[ir.Node, Outlet]:
        outlets = {}
        for node in pruned.graph:
            consumer = own_layer_of(node, may_share=True)
            outlet = outlet_of(consumer) if isinstance(consumer, LinearLayer) else consumer
            if isinstance(outlet, Outlet) and not (self.method == "bias" and feeds_norm(outlet)):
                outlets[node] = outlet
            elif isinstance(outlet, str):
                self.found.remarks.append(Remark(node.name or "", outlet))
        return outlets

    def run(self) -> Repair:
        done: set[ir.Node] = set()
        for number, node in enumerate(self.pruned.nodes):
            if node in self.outlets:
                self.pruned.advance(number)
                if node not in self.sharers:
                    self._mend(self.outlets[node])
                elif node not in done:
                    others = [self.outlets[one] for one in self.sharers[node] if one is not node]
                    self._mend_shared([self.outlets[node], *others])
                    done.update(self.sharers[node])
                self.progress("repair", number / len(self.pruned.nodes))
            elif node.op_type == "BatchNormalization":
                self.pruned.advance(number)
                self._restate(node)
        return self.found

    def _mend(self, outlet: Outlet) -> None:
        consumer = outlet.consumer
        if self.method == "reconstruct" and self._is_wide(consumer):
            self._mend_in_parts(outlet)
            return
        target, other = self._target(outlet)
        if target not in self.dense.made_at:
            self.found.remarks.append(
                Remark(consumer.name, "its result has no counterpart in the dense model")
            )
            return
        halves = self._halves(consumer, target, other)
        self._done_with(outlet.own, outlet.total)
        if halves is None:
            self.found.remarks.append(
                Remark(consumer.name, "its result has another shape than in the dense model")
            )
            return
        self._settle([outlet], [halves], matched=not other)

    def _mend_shared(self, outlets: Sequence[Outlet]) -> None:
        """One weight for several layers, from the moments of all, and a bias for each.

        Those that run later, on what this weight makes, are asked for what the dense model hands them.
        """
        first = outlets[0]
        alike, uses = all(outlet.has_bias == first.has_bias for outlet in outlets), []
        fits = alike and not self._is_wide(first.consumer)
        for outlet in outlets:
            target = outlet.own.name or ""
            if fits and target in self.dense.made_at:
                self.dense.reach(target)
                uses.append(self._halves(outlet.consumer, target, ""))
            self._done_with(outlet.consumer.data, outlet.own, outlet.total)
        known = [use for use in uses if use is not None]
        if len(known) == len(outlets):
            self._settle(outlets, known, matched=True)
            return
        why = (
            "whose inputs or results have no counterpart in the dense model"
            if alike
            else "of which only some can have a bias"
        )
        reason = f"its weight is shared by {len(outlets)} nodes, {why}"
        self.found.remarks += [Remark(outlet.consumer.name, reason) for outlet in outlets]

    def _done_with(self, *values: ir.Value | None) -> None:
        """Let go of dense values that no other layer asks for."""
        for name in (value.name for value in values if value is not None):
            self.wanted[name] -= 1
            if name and self.wanted[name] <= 0:
                self.dense.release(name)

    def _is_wide(self, consumer: LinearLayer) -> bool:
        groups, outputs, columns = consumer.sizes
        half = self.memory // 2
        return groups == 1 and wide.needs_parts(outputs, columns, self._rows(consumer), half)

    def _rows(self, consumer: LinearLayer) -> int:
        """Rows of a batch that are looked at."""
        data = self.pruned.value(consumer.source, 0)
        return len(consumer.picks(data, 0, self.pruned.batches, self.seed))

    def _mend_in_parts(self, outlet: Outlet) -> None:
        """As `_mend`, for a layer too large to be held: to its own output, from the dense layer's inputs."""
        consumer = outlet.consumer
        layer = self._wide_layer(consumer)
        if layer is None:
            self.found.remarks.append(
                Remark(consumer.name, "its result has no counterpart in the dense model")
            )
            return
        bias = outlet.bias(layer.outputs)
        new = wide.refit_in_parts(layer, bias, rows=self._rows(consumer), memory=self.memory // 2)
        self._done_with(outlet.own, outlet.total)
        offset = None if bias is None else new.bias
        errors = (new.error(new.before), new.error(new.after))
        self._write([outlet], new.weight[None], [offset], errors, new.damping)

    def _wide_layer(self, consumer: LinearLayer) -> wide.LayerPair | None:
        """A layer beside that of the dense model, whose inputs are then at hand; None where there is none."""
        same_node = next((n for n in self.dense.nodes if n.name == consumer.name), None)
        dense = own_layer_of(same_node) if same_node is not None else None
        place = outlet_of(dense) if isinstance(dense, LinearLayer) else None
        if not isinstance(dense, LinearLayer) or not isinstance(place, Outlet):
            return None
        _, outputs, columns = consumer.sizes
        left = self.kept(place.own.name or "", 1 if consumer.is_conv else -1)
        chosen = np.arange(dense.sizes[1]) if left is None else np.flatnonzero(left)
        if dense.group > 1 or len(chosen) != outputs:
            return None
        self.dense.reach(dense.source)
        bias = place.bias(dense.sizes[1])
        return wide.LayerPair(
            consumer.part,
            lambda chunk: dense.part(chosen[chunk]),
            np.zeros(outputs) if bias is None else bias[chosen],
            lambda: self._pairs(consumer, dense),
            outputs,
            columns,
        )

    def _odd(self, consumer: LinearLayer, data: np.ndarray, picks: np.ndarray, batch: int) -> np.ndarray:
        """Which of the rows picked belong to the second half of the samples."""
        rows, first = math.prod(consumer.places(data)), sum(self.lengths[:batch])
        return in_second_half(picks, rows, self.lengths[batch], first, sum(self.lengths))

    def _pairs(self, consumer: LinearLayer, dense: LinearLayer) -> Iterator[wide.Rows]:
        """A pass over the batches: the same rows of the pruned and of the dense layer's inputs."""
        for batch in range(self.pruned.batches):
            data = self.pruned.value(consumer.source, batch)
            picks = consumer.picks(data, batch, self.pruned.batches, self.seed)
            before = self.dense.value(dense.source, batch)
            odd = self._odd(consumer, data, picks, batch)
            yield consumer.rows(data, picks)[0], dense.rows(before, picks)[0], odd

    def _target(self, outlet: Outlet) -> tuple[str, str]:
        """The dense value to match, and the pruned model's other summand of a sum that is at hand."""
        total, other = outlet.total, outlet.other
        if self.method != "reconstruct":
            return outlet.own.name or "", ""
        if total is None or other is None or not self.pruned.has(other.name or ""):
            return outlet.own.name or "", ""
        return total.name or "", other.name or ""

    def _halves(self, consumer: LinearLayer, target: str, other: str) -> Halves | None:
        groups, outputs, columns = consumer.sizes
        halves, fitting = Halves.empty(groups, columns, outputs), 0

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            nonlocal fitting
            for batch in range(self.pruned.batches):
                part = self._part(consumer, target, other, batch)
                if part is None:
                    return
                fitting += 1
                yield part

        for rows, targets, odd in together(parts(), (1, 1, 0)):
            halves.add(rows, targets, odd)
        return halves if fitting == self.pruned.batches else None

    def _part(
        self, consumer: LinearLayer, target: str, other: str, batch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Of a batch: rows (groups, rows, columns), what they should give (groups, rows, outputs), which are of odd
        samples; None where shapes do not fit."""
        groups, outputs, _ = consumer.sizes
        data = self._data(consumer, batch)
        if data is None:
            return None
        axis, shape = 1 if consumer.is_conv else -1, list(self.values.shape(consumer, target, batch))
        left = self.kept(target, axis)
        shape[axis] = shape[axis] if left is None else int(left.sum())
        partner = self.pruned.value(other, batch) if other else None
        if shape[axis] != groups * outputs or (partner is not None and list(partner.shape) != shape):
            return None
        picks = self.values.picks(consumer, data, batch, self.seed)
        targets = self.values.rows(consumer, target, batch, picks)
        if left is not None:
            targets = targets[:, left]
        if partner is not None:
            targets = targets - consumer.outputs(partner, picks)
        targets = targets.reshape(len(picks), groups, outputs).transpose(1, 0, 2)
        return consumer.rows(data, picks), targets, self._odd(consumer, data, picks, batch)

    def _data(self, consumer: LinearLayer, batch: int) -> np.ndarray | None:
        """What a layer multiplies; before it can run, what the dense one does; None where that does not fit."""
        if self.pruned.has(consumer.source):
            return self.pruned.value(consumer.source, batch)
        if not self.dense.has(consumer.source):
            return None
        axis = 1 if consumer.is_conv else -1
        data = self._left(self.dense.value(consumer.source, batch), consumer.source, axis)
        width = consumer.shape[consumer.in_axis] * consumer.group
        return data if data.shape[axis] == width else None

    def _left(self, array: np.ndarray, name: str, axis: int) -> np.ndarray:
        mask = self.kept(name, axis)
        return array if mask is None else np.compress(mask, array, axis=axis)

    def _settle(self, outlets: Sequence[Outlet], uses: Sequence[Halves], matched: bool) -> None:
        """Decide the new weight of one layer, or of all that share it, and the bias of each, and write them down."""
        weight, wholes = outlets[0].consumer.matrices(), [use.whole() for use in uses]
        biases = [outlet.bias(weight.shape[0] * weight.shape[1]) for outlet in outlets]
        shaped = [None if bias is None else bias.reshape(weight.shape[:2]) for bias in biases]
        has_bias = biases[0] is not None
        halves = uses[0] if len(uses) == 1 else balanced(uses, intercept=has_bias)
        products = solve.Products(wholes[0]) if len(uses) == 1 else None
        before = _mean_error(weight, shaped, wholes, products)
        if before < UNCHANGED:
            return
        method, damping, new = self.method, None, weight
        moments = wholes[0] if len(uses) == 1 else halves.whole()
        if method == "reconstruct":
            damping = damping_for(weight, halves, intercept=has_bias)
            new = solve.refit(weight, moments, intercept=has_bias, damping=damping, products=products)
        if has_bias and (method == "bn" or (method == "reconstruct" and matched)):
            new = solve.rescaled(new, moments, products)
        bias_for = solve.faded_bias_for if method == "bias" else solve.bias_for
        offsets = [bias_for(new, whole) if has_bias else None for whole in wholes]
        errors = (before, _mean_error(new, offsets, wholes, products))
        self._write(outlets, None if new is weight else new, offsets, errors, damping)

    def _write(
        self,
        outlets: Sequence[Outlet],
        new: np.ndarray | None,
        offsets: Sequence[np.ndarray | None],
        errors: tuple[float, float],
        damping: float | None,
    ) -> None:
        """Store what is new, unless a layer was fine before or its samples are not numbers."""
        consumer, (before, after) = outlets[0].consumer, errors
        if before < UNCHANGED:
            return
        if not all(part is None or np.isfinite(part).all() for part in (new, *offsets)):
            self.found.remarks.append(Remark(consumer.name, "its calibration inputs hold NaN or infinity"))
            return
        if new is not None:
            consumer.store(new)
            self.found.changed.append(consumer.weight.name or "")
        for outlet, offset in zip(outlets, offsets, strict=True):
            if offset is not None:
                self.found.changed.append(outlet.store_bias(offset.ravel()))
        row = {
            "error_before": before,
            "error_after": after,
            **({} if damping is None else {"damping": damping}),
        }
        self.found.layers += [{"layer": outlet.consumer.name, **row} for outlet in outlets]

    def _restate(self, node: ir.Node) -> None:
        data = node.inputs[0]
        name = (data.name or "") if data is not None else ""
        if name not in self.dense.made_at:
            return
        self.dense.reach(name)
        pairs = (
            (self._left(self.dense.value(name, b), name, 1), self.pruned.value(name, b))
            for b in range(self.pruned.batches)
        )
        restated = shift_offset if self.method == "bias" else shift_statistics
        self.found.changed += restated(node, pairs)
        self._done_with(data)


def _mean_error(
    weight: np.ndarray,
    biases: Sequence[np.ndarray | None],
    moments: Sequence[Moments],
    products: solve.Products | None,
) -> float:
    """The relative error of a weight with each of its biases on the moments of that use, which count the same;
    `products` are of the only use."""
    pairs = zip(biases, moments, strict=True)
    return float(np.mean([solve.relative_error(weight, bias, of, products) for bias, of in pairs]))

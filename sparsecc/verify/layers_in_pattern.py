"""Every layer whose weight got a pattern against what it was: the pattern holds along the axis that is summed over,
what stays is what a mask leaves, and a refit is no worse than the plainest mask.

Read from the graphs before and after alone, by counting and by running the layers: nothing is shared with the pass
that made the pattern but the reading of its name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InternalError
from sparsecc.escaping import quoted
from sparsecc.ir.subgraphs import show
from sparsecc.passes.base import Patterned
from sparsecc.passes.sparsity.pattern import Pattern, parse_pattern
from sparsecc.runtime.runner import Feeds, Runs

MASKING = frozenset({"magnitude", "wanda"})
"""Methods that set numbers to zero and change no other."""
EXACT, ABOUT = 1 - 1e-3, 0.8
"""The share of what the best mask keeps that one by the same scores keeps, and one by other samples or in another
order: a mask at the next channel keeps some two thirds."""
WORSE = 2.0
"""So many times the error of the plainest mask, in amplitude, may a refit leave."""
_SLACK = 1e-3
"""Of a layer's output, in amplitude."""
_ROUNDS = 0.02
"""The share of blocks by which parts of a layer, each rounded by itself, may keep more."""
_TYPED = ("_fp16", "_bf16", "_quantized")
"""What a name of a weight in another type ends in."""
_BATCHES = 4
"""Batches of samples that layers are run on."""


@dataclass(frozen=True)
class _Layer:
    """A layer in both graphs: its node behind the pattern, what it reads before, its weight before and now."""

    name: str
    node: ir.Node
    reads: str
    pattern: Pattern
    before: ir.TensorProtocol
    now: ir.TensorProtocol

    @property
    def old(self) -> np.ndarray:
        """The weight before, as float32: read when it is asked for."""
        return self.before.numpy().astype(np.float32, copy=False)

    @property
    def new(self) -> np.ndarray:
        """The weight now, as float32."""
        return self.now.numpy().astype(np.float32, copy=False)

    @property
    def groups(self) -> int:
        return self.node.attributes.get_int("group", 1) if self.node.op_type == "Conv" else 1

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """(groups, outputs, columns) of a weight: what is summed over lies last, channels of a cell side by side."""
        if self.node.op_type == "Conv":
            return np.moveaxis(weight, 1, -1).reshape(self.groups, weight.shape[0] // self.groups, -1)
        turned = self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) == 1
        return (weight if turned else weight.T)[None]

    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`."""
        if self.node.op_type == "Conv":
            out, channels, *cells = self.before.shape.numpy()
            return np.ascontiguousarray(np.moveaxis(matrix.reshape(out, *cells, channels), -1, 1))
        turned = self.node.op_type == "Gemm" and self.node.attributes.get_int("transB", 0) == 1
        return np.ascontiguousarray(matrix[0] if turned else matrix[0].T)

    def sizes(self, data: Sequence[np.ndarray]) -> np.ndarray:
        """The root mean square of its inputs, (groups, 1, columns)."""
        axis = 1 if self.node.op_type == "Conv" else -1
        flat = [np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64) for x in data]
        square = sum(np.square(x).sum(axis=1) for x in flat) / sum(x.shape[1] for x in flat)
        each = np.sqrt(square).reshape(self.groups, 1, -1)
        shape = self.before.shape.numpy()
        return np.tile(each, math.prod(shape[2:]) if self.node.op_type == "Conv" else 1)


def require_patterns(
    found: Patterned,
    patterns: Mapping[str, Mapping[str, Any]],
    feeds: Sequence[Feeds],
    opened: Callable[[ir.Model], Runs] | None,
) -> tuple[int, list[str]]:
    """How many layers were compared, and what is told of those that are not what their method explains, a clause each.

    InternalError where a pattern does not hold, or a mask changed a number. Without `opened`, or samples, layers are
    not run, and what inputs would say is not asked.
    """
    layers = list(_layers(found, patterns))
    if missing := sorted(set(patterns) - {layer.name for layer in layers}):
        raise InternalError(f"the pattern of {quoted(missing[0])} is read by no layer any more")
    for layer in layers:
        _require_held(layer)
        if patterns[layer.name]["axis"] != _summed(layer):
            raise InternalError(
                f"the pattern of {quoted(layer.name)} runs along an axis that its layer does not sum over"
            )
        _require_unchanged(found, found.after, layer.name)
        if found.method in MASKING:
            _require_masked(layer)
    told = []
    by_size = found.method != "magnitude"
    if not by_size:
        least = [EXACT if layer.pattern.is_grouped else ABOUT for layer in layers]
        told += [
            clause for layer, one in zip(layers, least, strict=True) for clause in _chosen(layer, None, one)
        ]
    elif feeds and opened is not None:
        told += list(_by_inputs(found, layers, feeds[:_BATCHES], opened))
    return len(layers), told


def _layers(found: Patterned, patterns: Mapping[str, Mapping[str, Any]]) -> Iterator[_Layer]:
    earlier = found.before.graph.initializers
    for node in found.after.graph:
        weight, data = (node.inputs[1], node.inputs[0]) if len(node.inputs) > 1 else (None, None)
        name = (weight.name or "") if weight is not None else ""
        if name not in patterns or weight is None or data is None or weight.const_value is None:
            continue
        before = earlier[name].const_value if name in earlier else None
        if before is None or list(before.shape) != list(weight.const_value.shape):
            raise InternalError(f"the weight {quoted(name)} has another shape than before its pattern")
        pattern = parse_pattern(patterns[name]["pattern"])
        yield _Layer(name, node, data.name or "", pattern, before, weight.const_value)


def _require_held(layer: _Layer) -> None:
    """InternalError unless the pattern holds along what the layer sums over."""
    new, pattern = layer.matrix(layer.new), layer.pattern
    if pattern.is_grouped:
        if new.shape[2] % pattern.m or layer.before.shape.numpy()[_summed(layer)] % pattern.m:
            raise InternalError(f"{quoted(layer.name)} sums over no multiple of {pattern.m} channels")
        wrong = int((np.count_nonzero(_runs(new, pattern.m), axis=-1) > pattern.n).sum())
        if wrong:
            raise InternalError(
                f"{quoted(layer.name)} holds more than {pattern.n} numbers in {wrong} of {new.size // pattern.m} runs "
                f"of {pattern.m} along what it sums over"
            )
        return
    old_blocks, new_blocks = (_blocks(layer.matrix(w), pattern) for w in (layer.old, layer.new))
    left, total = int((new_blocks > 0).sum()), new_blocks.size
    if left > max(len(new), pattern.keep * total + _ROUNDS * total + len(new)):
        raise InternalError(f"{quoted(layer.name)} keeps {left} of {total} blocks, not {pattern.text}")
    torn = (new_blocks > 0) & (_blocks((layer.matrix(layer.old) != 0) & (new == 0), pattern) > 0)
    if pattern.block != (1, 1) and torn.any() and (old_blocks[torn] > 0).any():
        raise InternalError(f"{quoted(layer.name)} has {int(torn.sum())} blocks of which only a part is zero")


def _summed(layer: _Layer) -> int:
    if layer.node.op_type == "Conv":
        return 1
    return 1 if layer.node.op_type == "Gemm" and layer.node.attributes.get_int("transB", 0) == 1 else 0


def require_unchanged(found: Patterned, model: ir.Model) -> None:
    """InternalError where a weight of the graph that is built is not what the pattern made of it; for graphs that no
    other pass changed."""
    for name in found.checksums:
        _require_unchanged(found, model, name)


def _require_unchanged(found: Patterned, model: ir.Model, name: str) -> None:
    value = model.graph.initializers.get(name)
    tensor = value.const_value if value is not None else None
    if tensor is None or zlib.crc32(np.ascontiguousarray(tensor.numpy()).data) != found.checksums.get(name):
        raise InternalError(f"the weight {quoted(name)} is not what its pattern made of it")


def require_in_built(built: ir.Model, patterns: Mapping[str, Mapping[str, Any]]) -> None:
    """InternalError where a weight that stands in what was built, in whatever type, lost its N:M pattern."""
    for name, entry in patterns.items():
        pattern = parse_pattern(entry["pattern"])
        value = next(
            (v for n in (name, *(name + s for s in _TYPED)) if (v := built.graph.initializers.get(n))), None
        )
        if not pattern.is_grouped or value is None or value.const_value is None:
            continue
        array, zero = value.const_value.numpy(), _zero_of(value)
        if zero is None or array.ndim <= entry["axis"] or array.shape[entry["axis"]] % pattern.m:
            continue
        runs = np.moveaxis(array != zero, entry["axis"], -1).reshape(-1, pattern.m)
        if (np.count_nonzero(runs, axis=1) > pattern.n).any():
            raise InternalError(f"the weight {quoted(name)} of what was built is not {pattern.text} any more")


def _zero_of(value: ir.Value) -> Any:
    """The number that stands for zero in a weight; None where its readers do not tell."""
    if value.dtype is not None and value.dtype.is_floating_point():
        return 0
    readers = [use.node for use in value.uses()]
    if not readers or any(node.op_type != "DequantizeLinear" or len(node.inputs) < 2 for node in readers):
        return None
    zero = readers[0].inputs[2] if len(readers[0].inputs) > 2 else None
    if zero is None:
        return 0
    numbers = None if zero.const_value is None else zero.const_value.numpy()
    return (
        numbers.reshape(-1)[0] if numbers is not None and (numbers == numbers.reshape(-1)[0]).all() else None
    )


def _require_masked(layer: _Layer) -> None:
    """InternalError where a number is neither zero nor what it was."""
    wrong = int(((layer.new != layer.old) & (layer.new != 0)).sum())
    if wrong:
        raise InternalError(f"{quoted(layer.name)} holds {wrong} numbers that a mask changed")


def _runs(matrix: np.ndarray, m: int) -> np.ndarray:
    """(groups, outputs, runs, m)."""
    return matrix.reshape(*matrix.shape[:2], -1, m)


def _blocks(matrix: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The sum of magnitudes of every block, (groups, rows of blocks, columns of blocks); the last may be smaller."""
    height, width = pattern.block
    lacking = (-matrix.shape[1] % height, -matrix.shape[2] % width)
    padded = np.pad(np.abs(matrix).astype(np.float64), ((0, 0), (0, lacking[0]), (0, lacking[1])))
    groups, rows, columns = padded.shape
    parts = padded.reshape(groups, rows // height, height, columns // width, width)
    return np.asarray(parts.sum(axis=(2, 4)))


def _chosen(layer: _Layer, sizes: np.ndarray | None, least: float) -> Iterator[str]:
    """A clause where what was kept weighs less than `least` of what the best mask of the pattern keeps."""
    scores = np.abs(layer.matrix(layer.old)).astype(np.float64) * (1.0 if sizes is None else sizes)
    kept = layer.matrix(layer.new) != 0
    pattern = layer.pattern
    if pattern.is_grouped:
        best = np.sort(_runs(scores, pattern.m), axis=-1)[..., pattern.m - pattern.n :].sum()
        share = float((scores * kept).sum() / max(best, 1e-30)) if best > 0 else 1.0
    else:
        each, left = _blocks(scores, pattern), _blocks(kept, pattern) > 0
        numbers = left.reshape(len(left), -1).sum(axis=1)
        best = sum(
            np.sort(part.reshape(-1))[::-1][:number].sum() for part, number in zip(each, numbers, strict=True)
        )
        share = float(each[left].sum() / best) if best > 0 else 1.0
    if share < least:
        yield f"the pattern of {quoted(layer.name)} keeps {100 * share:.3g} % of what the best one by its scores does"


def _by_inputs(
    found: Patterned, layers: Sequence[_Layer], feeds: Sequence[Feeds], opened: Callable[[ir.Model], Runs]
) -> Iterator[str]:
    """What the inputs of the layers say of their masks, and of the numbers that make up for zeros."""
    data = _read(found, layers, feeds, opened)
    for layer in layers:
        sizes = layer.sizes(data[layer.name])
        if found.method != "sparsegpt":
            yield from _chosen(layer, sizes, ABOUT)
        if found.method not in MASKING:
            yield from _worse(layer, data[layer.name], sizes, opened)


def _worse(
    layer: _Layer, data: Sequence[np.ndarray], sizes: np.ndarray, opened: Callable[[ir.Model], Runs]
) -> Iterator[str]:
    """A clause where numbers that make up for zeros leave more of an error than the plainest mask."""
    old = layer.matrix(layer.old)
    plain = layer.weight(np.where(_plain_mask(np.abs(old) * sizes, layer), old, 0))
    inputs = np.concatenate([x.astype(np.float32, copy=False) for x in data])
    outputs = opened(_beside(layer.node, (layer.old, layer.new, plain))).run({"x": inputs})
    whole, now, least = (outputs[f"y{part}"].astype(np.float64) for part in range(3))
    energy, error, allowed = (
        float(np.sqrt(np.square(a).mean())) for a in (whole, now - whole, least - whole)
    )
    if not error <= WORSE * allowed + _SLACK * energy:
        yield (
            f"layer {quoted(layer.node.name or layer.name)} in {layer.pattern.text} is off by "
            f"{100 * error / max(energy, 1e-30):.2g} %, where the plainest mask explains "
            f"{100 * allowed / max(energy, 1e-30):.2g} %"
        )


def _plain_mask(scores: np.ndarray, layer: _Layer) -> np.ndarray:
    """The best mask of the pattern by scores: as many numbers or blocks as the layer keeps."""
    pattern = layer.pattern
    if pattern.is_grouped:
        order = np.argsort(-_runs(scores, pattern.m), axis=-1, kind="stable")
        mask = np.zeros(order.shape, bool)
        np.put_along_axis(mask, order[..., : pattern.n], True, axis=-1)
        return mask.reshape(scores.shape)
    each, left = _blocks(scores, pattern), _blocks(layer.matrix(layer.new), pattern) > 0
    chosen = np.zeros(each.shape, bool)
    for part, values, number in zip(chosen, each, left.reshape(len(left), -1).sum(axis=1), strict=True):
        part.reshape(-1)[np.argsort(-values.reshape(-1), kind="stable")[:number]] = True
    height, width = pattern.block
    whole = chosen.repeat(height, axis=1).repeat(width, axis=2)
    return whole[:, : scores.shape[1], : scores.shape[2]]


def _read(
    found: Patterned, layers: Sequence[_Layer], feeds: Sequence[Feeds], opened: Callable[[ir.Model], Runs]
) -> dict[str, list[np.ndarray]]:
    """What every layer reads, batch by batch: in the dense graph where a method looks at that."""
    source = found.before if found.method in MASKING else found.after
    shown = source.clone()
    made = {value.name for node in shown.graph for value in node.outputs}
    known = {value.name for value in shown.graph.outputs}
    reads = {layer.name: layer.reads for layer in layers}
    if source is found.before:
        reads |= {
            node.inputs[1].name or "": node.inputs[0].name or ""
            for node in source.graph
            if len(node.inputs) > 1 and node.inputs[0] is not None and node.inputs[1] is not None
            if node.inputs[1].name in reads
        }
    show(shown, dict.fromkeys(name for name in reads.values() if name in made and name not in known))
    runner = opened(shown)
    values = [{**feed, **runner.run(feed)} for feed in feeds]
    return {name: [np.asarray(one[read]) for one in values] for name, read in reads.items()}


def _beside(node: ir.Node, weights: Sequence[np.ndarray]) -> ir.Model:
    """A layer with each of these weights, without a bias: from `x` to `y0`, `y1` and so on."""
    data = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([data], [], nodes=[], opset_imports={"": 17}, name="layers")
    for part, weight in enumerate(weights):
        constant = ir.Value(
            name=f"w{part}",
            shape=ir.Shape(weight.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.Tensor(np.ascontiguousarray(weight, dtype=np.float32), name=f"w{part}"),
        )
        graph.register_initializer(constant)
        made = ir.Node("", node.op_type, [data, constant], list(node.attributes.values()), num_outputs=1)
        made.outputs[0].name, made.outputs[0].type = f"y{part}", ir.TensorType(ir.DataType.FLOAT)
        graph.append(made)
        graph.outputs.append(made.outputs[0])
    return ir.Model(graph, ir_version=8)

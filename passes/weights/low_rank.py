"""EoRA: a thin path beside a layer gives back what its coarser weights lose on the inputs that it really gets.

"EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation" (Liu et al., 2025).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.measure.interleave import Budget, compare
from sparsecc.passes.weights.input_moments import InputMoments, output_error
from sparsecc.passes.weights.linear_layers import find_layers, trailing_bias
from sparsecc.remarks import Remark
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.session import open_session

MULTIPLE = 8
"""Ranks are multiples of this, as kernels want them."""
_LEAST = 1e-9
"""Directions in which the inputs have less than this share of their largest energy count as that."""
_BUDGET = Budget(pairs=15, seconds=1.0, warmup_seconds=0.05)

Run = Callable[[], object]


@dataclass(frozen=True)
class Path:
    """y + up (down x): `down` (rank, k) in the columns of `LinearLayer.matrix`, `up` (out, rank)."""

    down: np.ndarray
    up: np.ndarray

    @property
    def rank(self) -> int:
        return len(self.down)

    def matrix(self) -> np.ndarray:
        """What it adds to the layer's matrix."""
        return np.asarray(self.up @ self.down)


def eora(change: np.ndarray, gram: np.ndarray, rank: int) -> Path:
    """The path of that rank which comes closest to `change` (out, k) on inputs with X^T X `gram` (k, k).

    A singular value decomposition where the inputs' directions are as long as the inputs are there: what is left
    is the tail of the singular values.
    """
    energy, directions = np.linalg.eigh(gram.astype(np.float64))
    length = np.sqrt(np.maximum(energy, max(float(energy[-1]) * _LEAST, 1e-30)))
    left, size, right = np.linalg.svd((change @ directions) * length, full_matrices=False)
    root = np.sqrt(size[:rank])
    return Path((root[:, None] * right[:rank] / length) @ directions.T, left[:, :rank] * root)


def require_share(share: float) -> None:
    """InputError for what is no share of a layer's time."""
    if not 0 <= share <= 1:
        raise InputError(f"eora={share:g}: give the share of a layer's time that a path may add, from 0 to 1")


def rank_within(inputs: int, outputs: int, share: float, speed: float = 1.0) -> int:
    """The largest rank whose multiply-accumulates are at most this share of the layer's; 0 where none is.

    `speed` is how much faster than these the layer's own run (2:4 twice at best).
    """
    rank = share * inputs * outputs / (speed * (inputs + outputs))
    return min(int(rank) // MULTIPLE * MULTIPLE, min(inputs, outputs) // MULTIPLE * MULTIPLE)


@dataclass(frozen=True)
class Timed:
    """Ratios of times: the layer with its path to the layer alone, and to the layer in float."""

    to_layer: float
    to_float: float


def timed_rank(rank: int, share: float, clock: Callable[[int], Timed]) -> tuple[int, str]:
    """The largest rank, halved from `rank`, with which the layer takes at most `share` longer and no longer than in
    float; 0 and the reason where there is none."""
    reason = ""
    while rank >= MULTIPLE:
        found = clock(rank)
        if found.to_float > 1:
            reason = f"with a path of rank {rank} it takes {found.to_float:.2f}x the time it takes in float"
        elif found.to_layer > 1 + share:
            reason = f"a path of rank {rank} adds {found.to_layer - 1:.0%} to its time"
        else:
            return rank, ""
        rank = rank // 2 // MULTIPLE * MULTIPLE
    return 0, reason


Clock = Callable[[LinearLayer, int, int], Timed]
"""(layer, rows, rank) -> how long it takes with a path of that rank."""


@dataclass
class Paths:
    """The paths of a model's compressed layers: made while their inputs are known, added when all are.

    A path may take `share` of a layer's time: by `clock` (layer, rows, rank), or without one by its
    multiply-accumulates, of which the layer does `speed` in the time of one.
    """

    editor: GraphEditor
    share: float
    speed: float = 1.0
    clock: Clock | None = None
    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    left: list[Remark] = field(default_factory=list)
    _stored: list[tuple[LinearLayer, tuple[ir.Value, ir.Value]]] = field(default_factory=list)

    def make(
        self, layer: LinearLayer, dense: np.ndarray, coarse: np.ndarray, moments: InputMoments, rows: int
    ) -> np.ndarray | None:
        """What a path adds to the matrix `coarse` (out, k) of a layer, to be nearer to `dense`; None without one.

        `rows` is how many it multiplies at a time.
        """
        rank, reason = self._rank(layer, dense.shape, moments, rows)
        if not rank:
            self.left.append(Remark(layer.name, f"no low-rank path: {reason}"))
            return None
        gram = moments.blocks[0].gram[0]
        path = eora(dense - coarse, gram, rank)
        added = path.matrix()
        self.facts[layer.name] = {
            "rank": rank,
            "output_error": output_error(coarse - dense, dense, gram),
            "output_error_with_path": output_error(coarse + added - dense, dense, gram),
        }
        self._stored.append((layer, store_path(self.editor, layer, path)))
        return added

    def _rank(
        self, layer: LinearLayer, shape: tuple[int, ...], moments: InputMoments, rows: int
    ) -> tuple[int, str]:
        outputs, inputs = shape
        if layer.group != 1:
            return 0, "a grouped convolution"
        if not moments.is_whole:
            return 0, "too many inputs for --working-memory"
        rank = rank_within(inputs, outputs, self.share, self.speed)
        if not rank:
            return 0, f"one of rank {MULTIPLE} does more than {self.share:.0%} of the layer's work"
        if self.clock is None:
            return rank, ""
        clock = self.clock
        return timed_rank(rank, self.share, lambda tried: clock(layer, rows, tried))

    def add(self, results: Mapping[str, ir.Value] | None = None) -> None:
        """Write all paths, behind what the layers of these names now give."""
        for layer, factors in self._stored:
            add_path(self.editor, layer, factors, (results or {}).get(layer.name))


def layer_clock(compilation: Compilation, compress: Callable[[ir.Model], object]) -> Clock:
    """Times a matrix product of a layer's sizes on this machine: in float, as `compress` leaves it, and that with a
    path. Sizes that were timed are remembered."""

    @functools.cache
    def timed(rows: int, inputs: int, outputs: int, rank: int) -> Timed:
        generator = np.random.default_rng(0)
        feeds = {"x": generator.standard_normal((rows, inputs)).astype(np.float32)}
        in_float = _product(rows, inputs, outputs)
        coarse, whole = in_float.clone(), in_float.clone()
        compress(coarse)
        (layer,) = find_layers(whole)[0]
        compress(whole)
        editor, path = GraphEditor(whole), Path(np.ones((rank, inputs)), np.ones((outputs, rank)))
        add_path(editor, layer, store_path(editor, layer, path), whole.graph.outputs[0])
        runs = [_runner(model, feeds, compilation) for model in (in_float, coarse, whole)]
        return Timed(
            *(math.exp(compare(one, runs[2], budget=_BUDGET).ratio().median) for one in (runs[1], runs[0]))
        )

    def clock(layer: LinearLayer, rows: int, rank: int) -> Timed:
        return timed(rows, layer.shape[layer.in_axis], layer.shape[layer.out_axis], rank)

    return clock


def _product(rows: int, inputs: int, outputs: int) -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        layer (float[{rows},{inputs}] x, float[{inputs},{outputs}] w) => (float[{rows},{outputs}] y) {{
            y = MatMul(x, w)
        }}"""
    )
    weight = model.graph.inputs.pop()
    numbers = np.random.default_rng(1).standard_normal((inputs, outputs)).astype(np.float32)
    weight.const_value = ir.tensor(numbers, name="w")
    model.graph.register_initializer(weight)
    model.graph.node(0).name = "layer"
    return model


def _runner(model: ir.Model, feeds: Feeds, compilation: Compilation) -> Run:
    return open_session(model).prepared(feeds)


def store_path(editor: GraphEditor, layer: LinearLayer, path: Path) -> tuple[ir.Value, ir.Value]:
    """The two factors as constants in the layout and type of the layer's weight."""
    name, dtype = layer.weight.name or "", layer.dtype.numpy()
    if layer.op_type == "Conv":
        out, channels, *kernel = layer.shape
        down = np.moveaxis(path.down.reshape(path.rank, *kernel, channels), -1, 1)
        up = path.up.reshape(out, path.rank, *(1 for _ in kernel))
    else:
        down, up = path.down.T, path.up.T
    return (
        editor.constant(f"{name}_down", np.ascontiguousarray(down, dtype)),
        editor.constant(f"{name}_up", np.ascontiguousarray(up, dtype)),
    )


def add_path(
    editor: GraphEditor, layer: LinearLayer, factors: Sequence[ir.Value], result: ir.Value | None = None
) -> None:
    """Add the path to `result`, by default what the layer gives with its bias: two products and an Add."""
    if result is None:
        result = layer.node.outputs[0] if layer.op_type != "MatMul" else trailing_bias(layer.node)[1]
    producer = result.producer()
    assert producer is not None
    readers = tuple(result.uses())
    down, up = factors
    kind = "Conv" if layer.op_type == "Conv" else "MatMul"
    attributes = dict(layer.node.attributes) if kind == "Conv" else {}
    base, dtype = layer.name, layer.dtype
    narrow = editor.add(
        kind, [layer.data, down], attributes, base=f"{base}_down", after=producer, dtype=dtype
    )
    wide = editor.add(
        kind, [narrow, up], base=f"{base}_up", after=narrow.producer(), dtype=dtype, like=result
    )
    total = editor.add(
        "Add", [result, wide], base=f"{base}_whole", after=wide.producer(), dtype=dtype, like=result
    )
    for node, index in readers:
        node.replace_input_with(index, total)
    if result.is_graph_output():
        editor.replace_output(result, total)

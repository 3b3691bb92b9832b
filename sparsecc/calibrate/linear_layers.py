"""Layers that sum over channels with constant weights, as matrices: (groups, outputs, inputs) and their rows.

A convolution is a matrix product of unfolded patches: its columns are (channel, *kernel), row-major.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

ROWS = 16384
"""Rows a layer's moments are taken over, if it has that many; wide layers take ROWS_PER_COLUMN per column."""
ROWS_PER_COLUMN = 6
_CHUNK = 64 << 20
"""Bytes of rows at once."""
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})


@dataclass(frozen=True)
class Consumer:
    """A Conv, Gemm or MatMul whose operand 1 is a constant weight of its own.

    `groups` is that of the convolution, `cells` the number of kernel positions; `transposed` is True where
    the stored weight is (in, out).
    """

    node: ir.Node
    weight: ir.Value
    groups: int
    cells: int
    transposed: bool

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def data(self) -> str:
        """The name of the activation it reads."""
        value = self.node.inputs[0]
        return value.name or "" if value is not None else ""

    @property
    def is_conv(self) -> bool:
        return self.node.op_type == "Conv"

    def matrix(self) -> np.ndarray:
        """The weight as float64 (groups, outputs per group, columns)."""
        tensor = self.weight.const_value
        assert tensor is not None
        array = tensor.numpy().astype(np.float64)
        flat = array.T if self.transposed else array.reshape(array.shape[0], -1)
        return flat.reshape(self.groups, -1, flat.shape[1])

    def part(self, outputs: slice | np.ndarray) -> np.ndarray:
        """Some rows of the matrix of a layer without groups: float64 (outputs, columns)."""
        tensor = self.weight.const_value
        assert tensor is not None
        array = tensor.numpy()
        flat = array.T if self.transposed else array.reshape(array.shape[0], -1)
        return np.asarray(flat[outputs].astype(np.float64))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The shape of `matrix()`: groups, outputs per group, columns."""
        tensor = self.weight.const_value
        assert tensor is not None
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        outputs = shape[1] if self.transposed else shape[0]
        return self.groups, outputs // self.groups, math.prod(shape) // outputs

    def store(self, matrix: np.ndarray) -> None:
        """Replace the weight by a matrix of the shape of `matrix()`, in the weight's own type."""
        tensor = self.weight.const_value
        assert tensor is not None
        flat = matrix.reshape(-1, matrix.shape[2])
        array = flat.T if self.transposed else flat
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        stored = np.ascontiguousarray(array.reshape(shape).astype(tensor.dtype.numpy()))
        self.weight.const_value = ir.Tensor(stored, name=self.weight.name)

    def places(self, data: np.ndarray) -> tuple[int, ...]:
        """The batch and spatial (or leading) sizes of its output: one row each."""
        if not self.is_conv:
            return data.shape[:-1]
        sizes = _Window(self.node, data.shape[2:])
        return (data.shape[0], *sizes.outputs)

    def picks(self, data: np.ndarray, batch: int, batches: int, seed: int) -> np.ndarray:
        """Which rows of a batch to look at: all, or as many random ones as memory and use suggest."""
        number = math.prod(self.places(data))
        columns = data.shape[1] * self.cells // self.groups if self.is_conv else data.shape[-1]
        wanted = -(-max(ROWS, ROWS_PER_COLUMN * columns) // batches)
        wanted = max(1, min(wanted, _CHUNK // (4 * columns * self.groups)))
        if number <= wanted:
            return np.arange(number)
        generator = np.random.default_rng((seed, batch, zlib.crc32(self.name.encode())))
        return np.sort(generator.choice(number, wanted, replace=False))

    def rows(self, data: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """The rows its matrix multiplies: float32 (groups, rows, columns)."""
        if not self.is_conv:
            return np.asarray(data.reshape(-1, data.shape[-1])[picks], dtype=np.float32)[None]
        return self._patches(data, picks)

    def outputs(self, result: np.ndarray, picks: np.ndarray) -> np.ndarray:
        """The same rows of an output: float32 (rows, channels)."""
        if not self.is_conv:
            return np.asarray(result.reshape(-1, result.shape[-1])[picks], dtype=np.float32)
        places = np.unravel_index(picks, (result.shape[0], *result.shape[2:]))
        at: tuple[Any, ...] = (places[0], slice(None), *places[1:])
        found: np.ndarray = result[at].astype(np.float32)
        return found

    def _patches(self, data: np.ndarray, picks: np.ndarray) -> np.ndarray:
        window = _Window(self.node, data.shape[2:])
        padded = np.pad(data, [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)])
        sample, *place = np.unravel_index(picks, self.places(data))
        cells = []
        for offset in np.ndindex(*window.kernel):
            steps = zip(place, window.strides, offset, window.dilations, strict=True)
            at: tuple[Any, ...] = (sample, slice(None), *(p * s + o * d for p, s, o, d in steps))
            cells.append(padded[at])
        rows = np.stack(cells, axis=-1).astype(np.float32, copy=False)  # (rows, channels, cells)
        grouped = rows.reshape(len(picks), self.groups, -1)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))


class _Window:
    """Where a convolution's kernel lies over its input: padding, steps, and how many places there are."""

    def __init__(self, node: ir.Node, sizes: tuple[int, ...]) -> None:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        self.kernel = tuple(int(d) for d in weight.const_value.shape[2:])  # type: ignore[arg-type]
        rank = len(self.kernel)
        self.strides = list(node.attributes.get_ints("strides") or [1] * rank)
        self.dilations = list(node.attributes.get_ints("dilations") or [1] * rank)
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            totals = [
                max(0, (-(-size // step) - 1) * step + span - size)
                for size, span, step in zip(sizes, spans, self.strides, strict=True)
            ]
            small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
            self.before, self.after = (small, large) if mode == "SAME_UPPER" else (large, small)
        else:
            pads = node.attributes.get_ints("pads") if mode == "NOTSET" else None
            pads = list(pads or [0] * (2 * rank))
            self.before, self.after = list(pads[:rank]), list(pads[rank:])
        padded = [b + n + a for b, n, a in zip(self.before, sizes, self.after, strict=True)]
        self.outputs = tuple(
            (n - span) // step + 1 for n, span, step in zip(padded, spans, self.strides, strict=True)
        )


def consumer_of(node: ir.Node) -> Consumer | str | None:
    """A node as a consumer; why not where its kind could be one; None for other operators."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None if node.op_type == "MatMul" else "its weight is computed by other nodes"
    if not weight.is_initializer() or weight.is_graph_input() or weight.is_graph_output():
        return "its weight is not an initializer of its own"
    if weight.const_value.dtype not in _TYPES:
        return f"its weight is {weight.const_value.dtype.name.lower()}"
    if len(weight.uses()) > 1:
        return f"its weight is shared by {len(weight.uses())} nodes"
    shape = tuple(int(d) for d in weight.const_value.shape)  # type: ignore[arg-type]
    if node.op_type == "Conv":
        return Consumer(node, weight, node.attributes.get_int("group", 1), math.prod(shape[2:]), False)
    if len(shape) != 2:
        return f"its weight has {len(shape)} axes"
    if node.op_type == "MatMul":
        return Consumer(node, weight, 1, 1, True)
    plain = all(node.attributes.get_float(n, 1.0) == 1.0 for n in ("alpha", "beta"))
    if not plain or node.attributes.get_int("transA", 0) != 0:
        return "it scales or transposes its input"
    return Consumer(node, weight, 1, 1, node.attributes.get_int("transB", 0) == 0)

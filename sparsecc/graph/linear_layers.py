"""Layers that multiply activations by a constant matrix: what calibration, repair, quantization and sparsity patterns
work on.

A convolution is a matrix product of unfolded patches.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.rules import Trait, traits_of

ROWS = 16384
"""Rows a layer's moments are taken over, if it has that many; wide layers take ROWS_PER_COLUMN per column."""
ROWS_PER_COLUMN = 6
_CHUNK = 64 << 20
"""Bytes of rows at once."""
SINGLE = (ir.DataType.FLOAT,)
SINGLE_OR_HALF = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
FLOATS = (*SINGLE_OR_HALF, ir.DataType.DOUBLE)
ACTIVATIONS = "both operands are activations"
CONSTANT_FIRST = "its constant is the left operand, and the right one no weight"
"""As the adjacency of a graph convolution: a product over places, not over channels."""
KINDS = ("Conv", "Gemm", "MatMul")
"""Operators that are one matrix. Einsum, ConvTranspose and what runtimes fuse are products of other forms."""


@dataclass(eq=False)
class LinearLayer:
    """One Conv, Gemm or MatMul with a constant float weight.

    The weight is (out, in/group, *kernel) for Conv; where it is `transposed`, as for MatMul and for Gemm unless it has
    transB, it is (in, out), else (out, in). `data` is the activation that the node read when it was found.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    group: int
    transposed: bool

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def source(self) -> str:
        """The name of the activation it reads."""
        return self.data.name or ""

    @property
    def input_now(self) -> ir.Value:
        """The activation that the node reads now: the layer before it may have been replaced since."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def op_type(self) -> str:
        return self.node.op_type

    @property
    def is_conv(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def out_axis(self) -> int:
        """The axis of the weight that its outputs are."""
        return 1 if self.transposed else 0

    @property
    def in_axis(self) -> int:
        """The axis of the weight that its inputs are."""
        return 0 if self.transposed else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(int(d) for d in self._tensor.shape)  # type: ignore[arg-type]

    @property
    def dtype(self) -> ir.DataType:
        """Of the weight."""
        return self._tensor.dtype

    @property
    def cells(self) -> int:
        """The number of kernel positions."""
        return math.prod(self.shape[2:])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The shape of `matrices()`: groups, outputs per group, columns."""
        outputs = self.shape[self.out_axis]
        return self.group, outputs // self.group, math.prod(self.shape) // outputs

    @property
    def reads(self) -> tuple[object, ...]:
        """Layers with the same key multiply the same rows."""
        if not self.is_conv:
            return (self.source, "product")
        attributes = self.node.attributes
        lists = tuple(tuple(attributes.get_ints(n) or ()) for n in ("pads", "strides", "dilations"))
        return (self.source, self.group, self.shape[2:], attributes.get_string("auto_pad", "NOTSET"), *lists)

    @property
    def _tensor(self) -> ir.TensorProtocol:
        assert self.weight.const_value is not None
        return self.weight.const_value

    def refresh(self) -> None:
        """Look up weight and bias again, after operands of the node were replaced."""
        weight = self.node.inputs[1]
        assert weight is not None
        self.weight = weight
        self.bias = self.node.inputs[2] if len(self.node.inputs) > 2 else None

    # the weight ---------------------------------------------------------------------------------------

    def array(self) -> np.ndarray:
        """The weight as float32, in its own layout."""
        return self._tensor.numpy().astype(np.float32, copy=False)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """A weight as (out, reduction); for Conv the reduction is (*kernel, in/group), channels fastest."""
        if self.is_conv:
            return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
        return weight.T if self.transposed else weight

    def from_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`: back to the layout of the weight."""
        if self.is_conv:
            out, channels, *kernel = self.shape
            return np.ascontiguousarray(np.moveaxis(matrix.reshape(out, *kernel, channels), -1, 1))
        return np.ascontiguousarray(matrix.T if self.transposed else matrix)

    def matrices(self) -> np.ndarray:
        """The weight as float64 (groups, outputs per group, columns); columns are (channel, *kernel), row-major."""
        array = self._tensor.numpy().astype(np.float64)
        flat = array.T if self.transposed else array.reshape(array.shape[0], -1)
        return flat.reshape(self.group, -1, flat.shape[1])

    def part(self, outputs: slice | np.ndarray) -> np.ndarray:
        """Some rows of the matrix of a layer without groups: float64 (outputs, columns)."""
        array = self._tensor.numpy()
        flat = array.T if self.transposed else array.reshape(array.shape[0], -1)
        return np.asarray(flat[outputs].astype(np.float64))

    def store(self, matrix: np.ndarray) -> None:
        """Replace the weight by a matrix of the shape of `matrices()`, in the weight's own type."""
        flat = matrix.reshape(-1, matrix.shape[2])
        array = flat.T if self.transposed else flat
        stored = np.ascontiguousarray(array.reshape(self.shape).astype(self.dtype.numpy()))
        self.weight.const_value = ir.Tensor(stored, name=self.weight.name)

    # its rows on samples -------------------------------------------------------------------------------

    def places(self, data: np.ndarray) -> tuple[int, ...]:
        """The batch and spatial (or leading) sizes of its output: one row each."""
        if not self.is_conv:
            return data.shape[:-1]
        sizes = _Window(self.node, data.shape[2:])
        return (data.shape[0], *sizes.outputs)

    def picks(
        self,
        data: np.ndarray,
        batch: int,
        batches: int,
        seed: int,
        like: tuple[int, int, int] | None = None,
    ) -> np.ndarray:
        """Which rows of a batch to look at: all, or as many random ones as memory and use suggest for a layer of these
        `sizes`, or of its own."""
        number = math.prod(self.places(data))
        group, _, columns = like or self.sizes
        wanted = -(-max(ROWS, ROWS_PER_COLUMN * columns) // batches)
        wanted = max(1, min(wanted, _CHUNK // (4 * columns * group)))
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
        margins = list(zip(window.before, window.after, strict=True))
        padded = np.pad(data, [(0, 0), (0, 0), *margins]) if any(map(any, margins)) else data
        sample, *place = np.unravel_index(picks, self.places(data))
        rank = len(window.kernel)
        spans = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
        starts = (p * step for p, step in zip(place, window.strides, strict=True))
        at: tuple[Any, ...] = (
            sample,
            slice(None),
            *starts,
            *(slice(None, None, d) for d in window.dilations),
        )
        rows = windows[at].astype(np.float32, copy=False)  # (rows, channels, *kernel)
        grouped = rows.reshape(len(picks), self.group, -1)
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


def layer_of(node: ir.Node, types: Collection[ir.DataType] = SINGLE) -> LinearLayer | str | None:
    """A node as a layer whose weight has one of these types; why it is none; None for other operators."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in KINDS:
        return None
    data, weight = node.inputs[:2]
    if weight is None or weight.const_value is None:
        first = data is not None and data.const_value is not None
        reason = _why_not_constant(weight, types)
        return CONSTANT_FIRST if first and reason == ACTIVATIONS else reason
    if not is_float_constant(weight, types):
        known = " or ".join(dtype.numpy().name for dtype in types)
        return f"its weight '{weight.name}' is not a fixed {known} initializer"
    if data is None or data.const_value is not None:
        return "its data operand is constant"
    rank = len(weight.const_value.shape)
    if not weight.const_value.size:
        return "its weight is empty"
    if node.op_type != "Conv" and rank != 2:
        return f"its weight has {rank} axes, not 2"
    if node.op_type == "Gemm" and (reason := _why_not_plain(node)):
        return reason
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Conv":
        return LinearLayer(node, data, weight, bias, node.attributes.get_int("group", 1), False)
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return LinearLayer(node, data, weight, bias, 1, not turned)


def own_layer_of(node: ir.Node, *, may_share: bool = False) -> LinearLayer | str | None:
    """As `layer_of`, for weights that nothing else reads, which can be changed; None for products without a weight.

    With `may_share`, layers of the same form may read the weight too: a change then changes them all.
    """
    layer = layer_of(node, FLOATS)
    if not isinstance(layer, LinearLayer):
        return None if layer in (ACTIVATIONS, CONSTANT_FIRST) else layer
    if layer.weight.is_graph_output():
        return "its weight is an output of the model"
    uses = list(layer.weight.uses())
    if len(uses) == 1 or (may_share and all(use.idx == 1 and _is_alike(layer, use.node) for use in uses)):
        return layer
    return f"its weight is shared by {len(uses)} nodes"


def _is_alike(layer: LinearLayer, node: ir.Node) -> bool:
    """Whether a node multiplies by its weight as a layer does."""
    other = layer_of(node, FLOATS)
    if not isinstance(other, LinearLayer):
        return False
    return (layer.op_type, layer.group, layer.transposed) == (other.op_type, other.group, other.transposed)


def _why_not_constant(weight: ir.Value | None, types: Collection[ir.DataType]) -> str:
    producer = None if weight is None else weight.producer()
    if producer is not None and traits_of(producer) & Trait.INTEGER:
        return "already quantized"
    source = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else None
    if source is not None and is_float_constant(source, types):
        return f"its weight is '{source.name}' turned, which other nodes read too"
    return ACTIVATIONS


def _why_not_plain(node: ir.Node) -> str:
    if node.attributes.get_int("transA", 0):
        return "Gemm with transA"
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "Gemm with alpha or beta other than 1"
    return ""


def is_float_constant(value: ir.Value | None, types: Collection[ir.DataType] = SINGLE) -> bool:
    """Whether a value is an initializer of one of these types that no caller can override."""
    return (
        value is not None
        and value.const_value is not None
        and value.is_initializer()
        and not value.is_graph_input()
        and value.const_value.dtype in types
    )


def added_bias(node: ir.Node, width: int) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads a product of `width` columns, and the constant of as many numbers that it adds."""
    found = sum_behind(node.outputs[0])
    tensor = found[1].const_value if found is not None else None
    if found is None or tensor is None or not found[1].is_initializer() or found[1].is_graph_input():
        return None
    return found if tensor.size == width == int(tensor.shape[-1]) else None  # type: ignore[arg-type]


def sum_behind(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads a value, and its other operand."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    return None if other is None or other is value else (uses[0].node, other)

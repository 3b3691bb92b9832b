"""A model in Quantize/DequantizeLinear pairs as the float model under them, and the ranges that the pairs say.

What another tool, or training, wrote for one runtime is then written anew for another, and layers that it left in
float are quantized too. Numbers of weights are those that their integers stand for; scales and ranges are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.ir.versions import raise_opset
from sparsecc.passes.quantize.expand_qoperators import expand, is_expandable
from sparsecc.passes.quantize.layer_scale import GRID
from sparsecc.passes.quantize.select_layers import SAME_SCALE
from sparsecc.passes.quantize.spec import FP8_MAX, along
from sparsecc.passes.weights.linear_layers import constant_array

Ranges = dict[str, tuple[float, float]]

OPSET = 13
"""The first with scales per channel."""
_WIDE = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.FLOAT8E4M3FN)
_STORED = (*_WIDE, ir.DataType.INT32)
_READ_STORED = frozenset({"Gather", "LSTM", "GRU", "RNN", "ConvTranspose"})
"""What reads weights of 8 bits through a DequantizeLinear only to have them small."""
_KEEP_SIGN = SAME_SCALE | {"AveragePool", "GlobalAveragePool", "Identity"}
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid"})


def lift(model: ir.Model) -> Ranges | None:
    """Take the pairs out, in place, and those that integer operators stand for; the range of every value that had one.
    None where there is no pair.

    Integers that anything but a DequantizeLinear, or what moves numbers, reads stay as they are. Where integers begin
    at zero, tools leave out the Relu or Clip before them: it is put back.
    """
    if not has_pairs(model):
        return None
    raise_opset(model, OPSET)
    expand(model)
    lifting = _Lifting(model)
    for node in list(model.graph):
        if node.domain in ("", "com.microsoft") and node.op_type == "DequantizeLinear":
            lifting.restore_constant(node)
    for node in list(model.graph):
        if node.domain in ("", "com.microsoft") and node.op_type == "QuantizeLinear":
            lifting.take_out(node)
    return lifting.finish()


def has_pairs(model: ir.Model) -> bool:
    """Whether there is anything to lift."""
    return any(node.op_type == "DequantizeLinear" or is_expandable(node) for node in model.graph)


@dataclass
class _Lifting:
    model: ir.Model
    ranges: dict[ir.Value, tuple[float, float]] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.editor = GraphEditor(self.model)

    def finish(self) -> Ranges | None:
        if not self.count:
            return None
        self.editor.finish()
        return {value.name or "": found for value, found in self.ranges.items()}

    def restore_constant(self, node: ir.Node) -> None:
        """A constant behind a DequantizeLinear, or behind both, becomes the numbers that it stands for."""
        grid, stored = _Grid.of(node), node.inputs[0]
        producer = None if stored is None else stored.producer()
        if (
            grid is None
            or stored is None
            or "block_size" in node.attributes
            or node.outputs[0].is_graph_output()
        ):
            return
        if producer is not None and producer.op_type == "QuantizeLinear" and _is_constant(producer.inputs[0]):
            assert producer.inputs[0] is not None
            levels = grid.levels(constant_array(producer.inputs[0]))
        elif _is_constant(stored) and stored.dtype in _STORED:
            levels = constant_array(stored)
        else:
            return
        value = self.editor.constant(_weight_name(node, stored, producer), grid.real(levels))
        value.meta[GRID] = grid.spread(levels.shape)
        node.outputs[0].replace_all_uses_with(value)
        self.count += 1

    def take_out(self, node: ir.Node) -> None:
        """A QuantizeLinear of an activation with all that DequantizeLinear makes of it."""
        grid, source = _Grid.of(node), node.inputs[0]
        if grid is None or source is None or grid.scale.size != 1 or _is_constant(source):
            return
        movers: list[tuple[ir.Node, int]] = []
        restored: list[ir.Value] = []
        pending = [node.outputs[0]]
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                return
            for reader, place in value.uses():
                if reader.op_type == "DequantizeLinear" and _Grid.of(reader) == grid:
                    restored.append(reader.outputs[0])
                elif reader.op_type in SAME_SCALE and place == 0 and reader.graph is node.graph:
                    pending += reader.outputs
                    movers.append((reader, place))
                else:
                    return
        if any(value.is_graph_output() for value in restored) and not _may_be_output(source):
            return
        low, high = grid.range()
        if _is_never_negative(source):
            low = 0.0
        elif low == 0.0:
            source = self._clip(source, high)
        self._float(node.outputs[0], source, movers, restored)
        self.ranges[source] = low, high
        self.count += 1

    def _clip(self, value: ir.Value, high: float) -> ir.Value:
        """The activation that the integers, of which none is negative, made needless."""
        ends = [
            self.editor.constant(f"{value.name}_{end}", np.float32(at))
            for end, at in (("0", 0.0), ("1", high))
        ]
        return self.editor.add_behind(
            value, "Clip", [value, *ends], base=f"{value.name}_clipped", dtype=ir.DataType.FLOAT, like=value
        )

    def _float(
        self,
        integers: ir.Value,
        source: ir.Value,
        movers: list[tuple[ir.Node, int]],
        restored: list[ir.Value],
    ) -> None:
        """Let floats flow where integers did."""
        carried = {integers: source}
        for mover, _ in movers:
            for output in mover.outputs:
                output.type = ir.TensorType(ir.DataType.FLOAT)
                carried[output] = output
        for value in restored:
            node = value.producer()
            assert node is not None
            assert node.inputs[0] is not None
            self.editor.replace_value(value, carried[node.inputs[0]])
        for mover, place in movers:
            if mover.inputs[place] is integers:
                mover.replace_input_with(place, source)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Real = (integer - zero) * scale, along `axis` where there are several."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int

    @staticmethod
    def of(node: ir.Node) -> _Grid | None:
        """That of a node, None where it is not constant or of a type that is not taken apart."""
        scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if not _is_constant(scale) or (zero is not None and not _is_constant(zero)):
            return None
        assert scale is not None
        steps = constant_array(scale)
        if zero is None:
            data = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
            dtype = None if data is None else data.dtype
            dtype = ir.DataType.UINT8 if dtype is None and node.op_type == "QuantizeLinear" else dtype
            if dtype not in _STORED:
                return None
            zeros = np.zeros(steps.shape, dtype.numpy())
        else:
            zeros = constant_array(zero)
            if ir.DataType.from_numpy(zeros.dtype) not in _STORED:
                return None
        if steps.dtype != np.float32 or steps.ndim > 1:
            return None
        return _Grid(steps.reshape(-1), zeros.reshape(-1), node.attributes.get_int("axis", 1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Grid):
            return NotImplemented
        same = self.zero.dtype == other.zero.dtype and self.scale.shape == other.scale.shape
        return same and bool((self.scale == other.scale).all() and (self.zero == other.zero).all())

    def spread(self, shape: tuple[int, ...]) -> np.ndarray:
        """The scales as they lie over a tensor of this shape."""
        scale = self.scale.reshape(()) if self.scale.size == 1 else self.scale
        return np.asarray(along(scale, self.axis % len(shape) if shape else None, len(shape)))

    def real(self, levels: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for."""
        zero = self.zero.astype(np.float32)
        offset = along(zero, self.axis % levels.ndim, levels.ndim) if zero.size > 1 else zero.reshape(())
        return np.asarray((levels.astype(np.float32) - offset) * self.spread(levels.shape), np.float32)

    def levels(self, real: np.ndarray) -> np.ndarray:
        """The integers of numbers."""
        scaled = real / self.spread(real.shape)
        if self.zero.dtype == ml_dtypes.float8_e4m3fn:
            return np.asarray(np.clip(scaled, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn))
        info, zero = np.iinfo(self.zero.dtype), self.zero.astype(np.float32)
        offset = along(zero, self.axis % real.ndim, real.ndim) if zero.size > 1 else zero.reshape(())
        return np.asarray(np.clip(np.rint(scaled) + offset, info.min, info.max), self.zero.dtype)

    def range(self) -> tuple[float, float]:
        """What one scale covers."""
        step, zero = float(self.scale[0]), float(self.zero[0])
        if self.zero.dtype == ml_dtypes.float8_e4m3fn:
            return -FP8_MAX * step, FP8_MAX * step
        info = np.iinfo(self.zero.dtype)
        low = -info.max if zero == 0 and info.min < 0 else info.min - zero
        return float(low) * step, (info.max - zero) * step


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def _may_be_output(source: ir.Value) -> bool:
    return not source.is_graph_input() and not source.is_graph_output()


def _weight_name(node: ir.Node, stored: ir.Value, producer: ir.Node | None) -> str:
    """What a weight was called before it was quantized, as far as its names tell."""
    if producer is not None and producer.inputs[0] is not None:
        return producer.inputs[0].name or ""
    name = stored.name or node.outputs[0].name or ""
    return next(
        (name.removesuffix(end) for end in ("_quantized", "_int8", "_int32") if name.endswith(end)), name
    )


def _is_never_negative(value: ir.Value | None) -> bool:
    """Whether what computes a value gives no number below zero: its range begins there then."""
    pending, seen = [value], set[ir.Value | None]()
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        node = None if one is None else one.producer()
        if node is None or node.domain:
            return False
        if node.op_type in _KEEP_SIGN:
            pending.append(node.inputs[0])
        elif node.op_type in ("Add", "Concat"):
            pending += node.inputs
        elif node.op_type == "Clip" and len(node.inputs) > 1 and _is_constant(node.inputs[1]):
            assert node.inputs[1] is not None
            if constant_array(node.inputs[1]) < 0:
                return False
        elif node.op_type not in _NEVER_NEGATIVE:
            return False
    return True

"""Every layer whose weights got another type against its float form, on the inputs that it really has.

What the type explains is measured, not assumed: the float layer runs once more with its weights and inputs rounded to
that type in the plainest way. A scale that stands at the wrong channel, or a constant that was clipped, is far above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.escaping import quoted
from sparsecc.ir.apart import FED
from sparsecc.ir.subgraphs import show
from sparsecc.passes.quantize.float16_range import saturates
from sparsecc.passes.quantize.scale_inputs import SCALED
from sparsecc.runtime.block_floats import FORMATS
from sparsecc.runtime.numerics import TOLERANCE
from sparsecc.runtime.part_errors import part_errors
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.rounding import AMPLIFIED, moved_by_rounding
from sparsecc.runtime.runner import Feeds, Runs
from sparsecc.verify.activation_levels import round_activations

EXPLAINED = 4.0
"""So many times what plain rounding does, in amplitude: calibration, or a rounding that learns, may trade one error
for another."""

_FEW = 16
"""Numbers of a channel: fewer say too little of what is usual."""

_SLACK = {"fp16": 1e-2, "bf16": 5e-2}
_PLAIN_SLACK = 2e-3
"""Of the layer's mean channel, in amplitude: what sums in the type, and the kernel, may do besides."""

_HALF_OUTPUT, _BYTE_OUTPUT = 0.1, 0.5
"""Of the largest output: what rounded activations may do besides rounded weights, in 16 bits and in fewer."""

_CHANNELS = {"Conv": 1, "ConvTranspose": 1, "MatMul": -1, "Gemm": -1}
_LARGEST_HALF = 65504.0
_STEPS = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
_BITS = {"int4": 4, "uint4": 4}


@dataclass(frozen=True)
class Layer:
    """A layer of the float graph, how its weight is represented now, the value that it reads in the new graph, and the
    batch norm behind it that the new graph has no more."""

    node: ir.Node
    how: Mapping[str, Any]
    reads: str
    norm: ir.Node | None = None
    grid: tuple[np.ndarray, np.ndarray] | None = None
    """(scale, zero point) where what it reads are integers."""

    def data(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """What it reads, as float32."""
        found = np.asarray(values[self.reads], dtype=np.float32)
        return found if self.grid is None else (found - np.float32(self.grid[1])) * np.float32(self.grid[0])

    @property
    def output(self) -> str:
        return self.node.outputs[0].name or ""


def losses_in_layers(
    before: ir.Model,
    after: ir.Model,
    quantization: Mapping[str, Any],
    feeds: Feeds,
    opened: Callable[[ir.Model], Runs],
) -> tuple[int, list[str]]:
    """How many layers were compared, and what their types do not explain, a clause each.

    Weights are rounded as they are read, and of a graph that is run by parts only the values of a part are held.
    """
    layers = list(_layers(before, after, quantization))
    shown = after.clone()
    outputs = {value.name or "" for value in shown.graph.outputs}
    wanted = dict.fromkeys(name for layer in layers for name in (layer.reads, layer.output))
    show(shown, [name for name in wanted if name not in outputs | set(feeds)])
    found: dict[str, np.ndarray] = {}
    told: list[str] = []
    for ready, values in _in_turn(opened(shown), layers, feeds):
        found |= {name: array for name, array in values.items() if name in outputs}
        told += _beyond_types(before, ready, values, opened)
    is_rounded = bool(quantization) or _halvings(after) > _halvings(before)
    beyond = _beyond_outputs(before, found, quantization, feeds, opened, is_rounded=is_rounded)
    return len(layers), [*_clipped(before, after), *beyond, *told]


def _halvings(model: ir.Model) -> int:
    """How many values are rounded to 16 bits: activations may be where no weight is."""
    casts = (node for node in model.graph.all_nodes() if node.op_type == "Cast")
    return sum(node.attributes.get_int("to", 0) in _STEPS for node in casts)


def _in_turn(
    runner: Runs, layers: Sequence[Layer], feeds: Feeds
) -> Iterator[tuple[list[Layer], dict[str, np.ndarray]]]:
    """The layers whose values are known, with these and the outputs: all at once, or part by part."""
    waiting, values = list(layers), dict(feeds)
    for made in runner.in_turn(feeds) if isinstance(runner, PartedRunner) else (runner.run(feeds),):
        values |= made
        ready = [layer for layer in waiting if layer.output in values]
        yield ready, values
        waiting = [layer for layer in waiting if layer.output not in values]
        read = {layer.reads for layer in waiting}
        values = {name: array for name, array in values.items() if name in read}


def _beyond_types(
    before: ir.Model,
    layers: Sequence[Layer],
    values: Mapping[str, np.ndarray],
    opened: Callable[[ir.Model], Runs],
) -> list[str]:
    """What the types of these layers do not explain."""
    if not layers:
        return []
    inputs: dict[str, np.ndarray] = {}
    for number, layer in enumerate(layers):
        data = layer.data(values)
        inputs |= {f"x{number}": data, f"rounded_x{number}": _rounded_data(data, layer.how["type"])}
    plain = opened(_float_layers(before, layers)).run(inputs)
    told: list[str] = []
    for number, layer in enumerate(layers):
        now = np.asarray(values[layer.output], dtype=np.float32)
        told += _beyond(layer, now, plain[f"y{number}"], plain[f"rounded_y{number}"])
    return told


def moved_wrongly(
    before: ir.Model, after: ir.Model, feeds: Feeds, opened: Callable[[ir.Model], Runs]
) -> Iterator[str]:
    """A clause for each output that moving numbers between layers changed, by more than rounding does."""
    runner = opened(before)
    wanted = runner.run(feeds)
    moved, found = moved_by_rounding(runner, feeds, wanted), opened(after).run(feeds)
    for name, error in part_errors(wanted, found).items():
        if error[0] > max(_PLAIN_SLACK, AMPLIFIED * moved):
            percent = 100 * float(error[0])
            yield f"scales that were moved between layers changed output {quoted(name)} by {percent:.2g} %"


def _beyond_outputs(
    before: ir.Model,
    now: Mapping[str, np.ndarray],
    quantization: Mapping[str, Any],
    feeds: Feeds,
    opened: Callable[[ir.Model], Runs],
    *,
    is_rounded: bool,
) -> Iterator[str]:
    """Outputs that moved by far more than rounding weights and activations in the float graph moves them.

    A range of a value is that of all samples, and in a body of all runs: on one that stays far within it much is lost,
    and nothing is wrong.
    """
    rounded = before.clone()
    for name, how in quantization.items():
        constants = rounded.graph.initializers
        value = constants.get(name) or constants.get(name + SCALED)
        if how.get("role") == "weight" and value is not None and value.dtype == ir.DataType.FLOAT:
            assert value.const_value is not None
            value.const_value = _lazily(value.const_value, how)
    plain = opened(before).run(feeds)
    explained = part_errors(plain, opened(rounded).run(feeds))
    halves = {how["type"] for how in quantization.values()} <= {"fp16", "bf16"}
    slack = (_HALF_OUTPUT if is_rounded else TOLERANCE) if halves else _BYTE_OUTPUT
    beyond = {
        name: error[0]
        for name, error in part_errors(plain, now).items()
        if error[0] > slack and error[0] > AMPLIFIED * explained[name][0]
    }
    if beyond and round_activations(rounded, quantization):
        explained = part_errors(plain, opened(rounded).run(feeds))
        beyond = {name: error for name, error in beyond.items() if error > EXPLAINED * explained[name][0]}
    for name, error in beyond.items():
        yield (
            f"output {quoted(name)} is off by {100 * float(error):.2g} %, where rounding to the types explains "
            f"{100 * float(explained[name][0]):.2g} %"
        )


def _lazily(tensor: ir.TensorProtocol, how: Mapping[str, Any] | None) -> ir.TensorProtocol:
    """A constant in float32, in its type where `how` says that; made anew whenever it is read."""

    def made() -> ir.TensorProtocol:
        array = tensor.numpy().astype(np.float32, copy=False)
        return ir.Tensor(array if how is None else _rounded(array, how), name=tensor.name)

    if how is None and tensor.dtype == ir.DataType.FLOAT:
        return tensor
    return ir.LazyTensor(
        made, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name
    )


def _layers(before: ir.Model, after: ir.Model, quantization: Mapping[str, Any]) -> Iterator[Layer]:
    """Layers with a weight of another type, as far as both graphs have their output."""
    made = {value.name: value for node in after.graph for value in node.outputs}
    known = set(made) | {value.name for value in after.graph.inputs}
    for node in before.graph:
        weight = node.inputs[1] if node.op_type in _CHANNELS and len(node.inputs) > 1 else None
        name = (weight.name or "") if weight is not None and weight.is_initializer() else ""
        how = quantization.get(name) or quantization.get(name.removesuffix(SCALED))
        data, output = node.inputs[0], made.get(node.outputs[0].name)
        if how is None or data is None or data.is_initializer() or output is None or weight is None:
            continue
        if weight.dtype not in FED:
            continue
        producer, reads = output.producer(), data
        if producer is not None and producer.op_type == node.op_type and producer.inputs[0] is not None:
            reads = producer.inputs[0]
        grid = _grid(producer)
        if producer is not None and grid is not None and producer.inputs[0] is not None:
            reads = producer.inputs[0]
        if reads.name in known:
            readers = list(node.outputs[0].consumers())
            norm = readers[0] if len(readers) == 1 and readers[0].op_type == "BatchNormalization" else None
            gone = norm is not None and norm.outputs[0].name not in known
            yield Layer(node, how, reads.name or "", norm if gone else None, grid)


def _grid(node: ir.Node | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The constant scale and zero point of the data of an integer product with float result."""
    if node is None or node.op_type != "MatMulIntegerToFloat":
        return None
    scale, zero = (node.inputs[i].const_value if node.inputs[i] is not None else None for i in (2, 4))  # type: ignore[union-attr]
    return (scale.numpy(), zero.numpy()) if scale is not None and zero is not None else None


def _float_layers(model: ir.Model, layers: Sequence[Layer]) -> ir.Model:
    """The layers side by side: from `x<n>` with their float weights to `y<n>`, rounded both to `rounded_y<n>`."""
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(model.opset_imports), name="layers")
    for number, layer in enumerate(layers):
        _put(graph, layer, f"x{number}", f"y{number}", rounds=False)
        _put(graph, layer, f"rounded_x{number}", f"rounded_y{number}", rounds=True)
    return ir.Model(graph, ir_version=max(model.ir_version or 8, 8))


def _put(graph: ir.Graph, layer: Layer, data: str, output: str, *, rounds: bool) -> None:
    """One layer from `data` to `output`, with the batch norm that was folded into it."""
    value = ir.Value(name=data, type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    for node in (layer.node, *([layer.norm] if layer.norm else [])):
        operands: list[ir.Value | None] = [value]
        for place, operand in enumerate(node.inputs[1:], 1):
            tensor = operand.const_value if operand is not None else None
            if tensor is None:
                operands.append(None)
                continue
            how = layer.how if rounds and place == 1 and node is layer.node else None
            name = f"{output}.{node.op_type}.{place}"
            constant = ir.Value(
                name=name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(ir.DataType.FLOAT),
                const_value=_lazily(tensor, how),
            )
            graph.register_initializer(constant)
            operands.append(constant)
        made = ir.Node("", node.op_type, operands, list(node.attributes.values()), num_outputs=1)
        graph.append(made)
        value = made.outputs[0]
    value.name, value.type = output, ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(value)


def _rounded(weight: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """A weight in its type, to the nearest number of the plainest scale."""
    type_, axis = how["type"], how.get("axis")
    if type_ in ("fp16", "bf16"):
        return _halved(weight, type_)
    if type_ in FORMATS:
        return FORMATS[type_].rounded(weight, how["axis"])
    bits, block = _BITS.get(type_, 8), how.get("block")
    if axis is None:
        return _on_grid(weight, bits, None)
    axis %= weight.ndim
    if not block:
        return _on_grid(weight, bits, tuple(i for i in range(weight.ndim) if i != axis))
    before, length, after = weight.shape[:axis], weight.shape[axis], weight.shape[axis + 1 :]
    lacking = -length % block
    if lacking:
        weight = np.concatenate([weight, np.zeros((*before, lacking, *after), np.float32)], axis=axis)
    blocks = _on_grid(weight.reshape(*before, -1, block, *after), bits, (axis + 1,))
    return (
        np.take(blocks.reshape(weight.shape), np.arange(length), axis)
        if lacking
        else blocks.reshape(weight.shape)
    )


def _halved(array: np.ndarray, type_: str) -> np.ndarray:
    """In 16 bits; what is too large for them stays what it is."""
    if type_ == "bf16":
        scaled = np.ldexp(*(lambda m, e: (np.round(m * 256) / 256, e))(*np.frexp(array)))
        return np.asarray(scaled, np.float32)
    fits = np.abs(array) <= _LARGEST_HALF
    return np.where(fits, np.where(fits, array, 0).astype(np.float16).astype(np.float32), array)


def _on_grid(array: np.ndarray, bits: int, axes: tuple[int, ...] | None) -> np.ndarray:
    """To the nearest of the steps that the largest entry over these axes asks for; one copy is made."""
    upper, lower = (of(array, axis=axes, keepdims=True, initial=0) for of in (np.max, np.min))
    largest = np.maximum(upper, -lower)
    step = np.maximum(largest / (2 ** (bits - 1) - 1), np.finfo(np.float32).tiny).astype(np.float32)
    found: np.ndarray = np.divide(array, step, dtype=np.float32)
    np.round(found, out=found)
    found *= step
    return found


def _rounded_data(data: np.ndarray, type_: str) -> np.ndarray:
    """A layer's input as the type may round it: halves, small floats in blocks, or 8 bits over its range."""
    if type_ in FORMATS:
        return FORMATS[type_].rounded(data, -1)
    return _halved(data, type_) if type_ in ("fp16", "bf16") else _on_grid(data, 8, None)


def _beyond(layer: Layer, now: np.ndarray, plain: np.ndarray, rounded: np.ndarray) -> Iterator[str]:
    """A clause where a channel differs by more than its type explains."""
    if now.shape != plain.shape:
        return
    axis = _CHANNELS[layer.node.op_type] % plain.ndim
    others = tuple(i for i in range(plain.ndim) if i != axis)
    energy, error, explained = (
        np.sqrt(np.square(a, dtype=np.float64).mean(axis=others))
        for a in (plain, now - plain, rounded - plain)
    )
    slack = _SLACK.get(layer.how["type"], _PLAIN_SLACK) * float(energy.mean())
    usual = float(np.sqrt(np.square(explained).mean()))
    times = EXPLAINED if plain.size >= _FEW * plain.shape[axis] else 2 * EXPLAINED
    allowed = times * np.maximum(explained, usual) + slack
    worst = int(np.argmax(np.nan_to_num(error / np.maximum(allowed, 1e-30), nan=np.inf)))
    if not error[worst] <= allowed[worst]:
        size = max(float(energy[worst]), 1e-30)
        yield (
            f"layer {quoted(layer.node.name or layer.output)} in {layer.how['type']} is off by "
            f"{100 * float(error[worst]) / size:.2g} % at channel {worst}, where the type explains "
            f"{100 * float(explained[worst]) / size:.2g} %"
        )


def _clipped(before: ir.Model, after: ir.Model) -> Iterator[str]:
    """Constants that 16 bits do not hold."""
    for name, value in before.graph.initializers.items():
        names = (name, *(f"{name}_{type_}" for type_ in _SLACK))
        now = next((after.graph.initializers[n] for n in names if n in after.graph.initializers), None)
        if value.const_value is None or now is None or now.const_value is None or now.dtype not in _STEPS:
            continue
        old, new = value.const_value.numpy(), now.const_value.numpy()
        if old.dtype != np.float32 or old.shape != new.shape:
            continue
        with np.errstate(invalid="ignore"):
            held = np.abs(old - new.astype(np.float32)) <= _STEPS[now.dtype] * np.abs(old) + 1e-7
        as_good = value.uses() and all(saturates(use.node, old) for use in value.uses())  # to a softmax, say
        if not (held | (old == new.astype(np.float32))).all() and not as_good:
            yield f"constant {quoted(name)} holds numbers that {now.dtype.name.lower()} does not: it is clipped"

"""Reorder input channels so that an N:M pattern keeps more, where producer and consumers can follow."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsecc.passes.quantize.editor import GraphEditor
from sparsecc.passes.quantize.sites import Site, constant_array, is_float_constant

CHANNELWISE = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Elu", "HardSigmoid", "HardSwish", "Gelu", "Softplus",
     "Clip", "Mul", "Add", "Sub", "Div", "Pow", "Sqrt", "Neg", "Identity"}
)  # fmt: skip
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclass
class Region:
    """Channels that one site writes and others read, with only channelwise operators between them."""

    producer: Site
    readers: list[Site]
    vectors: list[tuple[ir.Node, int]] = field(default_factory=list)


def find_region(data: ir.Value, sites: dict[ir.Node, Site]) -> Region | str:
    """The region that `data` belongs to, or why its channels may not be reordered."""
    producer = _producing_site(data, sites)
    if isinstance(producer, str):
        return producer
    region = Region(producer, [])
    inside = {producer.node.outputs[0]}
    pending = [producer.node.outputs[0]]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return f"channels of '{value.name}' leave the model"
        for node, index in value.uses():
            problem = _enter(region, node, index, inside, pending, sites)
            if problem:
                return problem
    for value in inside:
        for node in value.consumers():
            outside = [v for v in node.inputs if v is not None and v not in inside and v.const_value is None]
            if outside and node not in sites:
                return f"'{node.name}' also reads '{outside[0].name}'"
    return region


def _producing_site(data: ir.Value, sites: dict[ir.Node, Site]) -> Site | str:
    value = data
    while True:
        node = value.producer()
        if node is None:
            return f"'{value.name}' is an input of the model"
        if node in sites:
            site = sites[node]
            return site if site.group == 1 else f"'{site.name}' is a grouped convolution"
        if node.op_type not in CHANNELWISE | POOLS:
            return f"{node.op_type} '{node.name}' comes between"
        varying = [v for v in node.inputs if v is not None and v.const_value is None]
        if not varying:
            return f"'{node.name}' reads only constants"
        value = varying[0]


def _enter(
    region: Region,
    node: ir.Node,
    index: int,
    inside: set[ir.Value],
    pending: list[ir.Value],
    sites: dict[ir.Node, Site],
) -> str:
    """Take one consumer into the region; the reason when that is impossible."""
    if node in sites and index == 0:
        if sites[node].group != 1 or (sites[node].op_type == "Conv") != (region.producer.op_type == "Conv"):
            return f"'{node.name}' reads the channels in groups"
        region.readers.append(sites[node])
        return ""
    spatial = region.producer.op_type == "Conv"
    if node.op_type not in CHANNELWISE and not (spatial and node.op_type in POOLS):
        return f"{node.op_type} '{node.name}' reads the channels"
    for position, value in enumerate(node.inputs):
        if value is None or value.const_value is None or constant_array(value).size == 1:
            continue
        channels = region.producer.array().shape[region.producer.out_axis]
        is_vector = constant_array(value).shape == (channels,) and is_float_constant(value)
        if spatial or not is_vector:
            return f"'{node.name}' has a constant along the channels"
        region.vectors.append((node, position))
    for output in node.outputs:
        if output not in inside:
            inside.add(output)
            pending.append(output)
    return ""


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


def apply_order(editor: GraphEditor, region: Region, order: np.ndarray) -> None:
    """Reorder the producer's outputs and every reader's inputs; the function of the model does not change."""
    producer = region.producer
    _replace(editor, producer.node, 1, np.take(producer.array(), order, axis=producer.out_axis))
    producer.weight = _operand(producer.node, 1)
    if producer.bias is not None:
        _replace(editor, producer.node, 2, np.take(constant_array(producer.bias).reshape(-1), order))
        producer.bias = _operand(producer.node, 2)
    for node, position in region.vectors:
        _replace(editor, node, position, np.take(constant_array(_operand(node, position)), order))
    for reader in region.readers:
        _replace(editor, reader.node, 1, np.take(reader.array(), order, axis=reader.in_axis))
        reader.weight = _operand(reader.node, 1)


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _replace(editor: GraphEditor, node: ir.Node, index: int, numbers: np.ndarray) -> None:
    """A reordered constant for this one use; the name stays when nothing else reads the old one."""
    old = _operand(node, index)
    if len(old.uses()) == 1:
        tensor = ir.tensor(np.ascontiguousarray(numbers), name=old.name)
        old.const_value = tensor
    else:
        node.replace_input_with(index, editor.constant(f"{old.name}_ordered", np.ascontiguousarray(numbers)))

"""A cost model in milliseconds: matrix products from the table, everything else by the bytes it writes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.axes.counting import Kept, slots
from sparsecc.cost.latency_table import LatencyTable
from sparsecc.cost.model import CostModel, Term
from sparsecc.cost.shape_class import ShapeClass
from sparsecc.graph.analysis import Analysis
from sparsecc.runtime.kernel_census import CONVOLUTION_KERNELS, PRODUCT_KERNELS
from sparsecc.system.temp_folders import temporary_folder

PRODUCTS = CONVOLUTION_KERNELS | PRODUCT_KERNELS
"""Kernels whose time comes from the table."""

OVERHEAD = "(overhead)"
"""What a run takes beside its kernels, whatever their sizes."""

_RUNS = 10
_TRUSTED = (0.3, 10.0)

Kernel = tuple[str, str, float]
"""(name, operator, milliseconds)"""


@dataclass(frozen=True)
class Placed:
    """A node in its shape class: how many channels it reads and writes, and how often it runs, as axes."""

    one: ShapeClass
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    times: tuple[Axis, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (*self.inputs, *self.outputs, *self.times)

    def ms(self, table: LatencyTable, kept: Kept) -> float:
        """Milliseconds when the atoms keep so many slots."""
        a, b, n = (_size(axes, kept) for axes in (self.inputs, self.outputs, self.times))
        if self.one.op == "Grouped":
            return (
                table.ms(self.one, self.one.inputs, self.one.outputs)
                * a
                * b
                / (self.one.inputs * self.one.outputs)
            )
        return table.ms(self.one, a, 1 if self.one.op == "Depthwise" else b) * n


def latency_model(analysis: Analysis, table: LatencyTable) -> CostModel:
    """Milliseconds of a run as a function of what is kept.

    Convolutions and matrix products cost what the table says at their channel counts, scaled to what they
    take in this very model; the time of all other kernels is shared out by the bytes that nodes write.
    """
    placed = {node: found for node in analysis.record.macs if (found := place(analysis, node)) is not None}
    table.learn(found.one for found in placed.values())
    kernels = _profiled(analysis, table)
    scales = _scales(placed, table, [k for k in kernels if k[1] in PRODUCTS])
    terms = [Term(_scaled(p, table, scales[node]), _atoms(p.axes)) for node, p in placed.items()]
    fixed = math.fsum(ms for _, op, ms in kernels if op == OVERHEAD)
    others = math.fsum(ms for _, op, ms in kernels if op not in PRODUCTS and op != OVERHEAD)
    return CostModel("ms", [*terms, *_by_bytes(analysis, placed, others), Term(lambda kept: fixed, ())])


def _scales(
    placed: Mapping[ir.Node, Placed], table: LatencyTable, kernels: Sequence[Kernel]
) -> dict[ir.Node, float]:
    """What a node takes in this very model over what the table says.

    Kernels that fusion renamed are compared as a whole with the nodes that are not found by name.
    """
    told = {node: found.ms(table, {}) for node, found in placed.items()}
    real = {name: ms for name, _, ms in kernels}
    found = {node: real.pop(name) for node in placed if (name := _kernel_name(node, real)) is not None}
    rest = math.fsum(ms for node, ms in told.items() if node not in found)
    scale = _trusted(math.fsum(real.values()) / rest) if rest and real else 1.0
    return {n: _trusted(found[n] / told[n]) if n in found and told[n] else scale for n in placed}


def _kernel_name(node: ir.Node, kernels: Mapping[str, float]) -> str | None:
    """Kernels carry the name of their node, or of its output where the layout was blocked."""
    return next((name for name in (node.outputs[0].name, node.name) if name in kernels), None)


def _trusted(scale: float) -> float:
    return min(_TRUSTED[1], max(_TRUSTED[0], scale))


def _scaled(found: Placed, table: LatencyTable, scale: float) -> Callable[[Kept], float]:
    """What goes beyond the table is the work of what was fused into the node: by the elements it writes."""
    if scale <= 1:
        return lambda kept: scale * found.ms(table, kept)
    written = (*found.outputs, *found.times)
    each = (scale - 1) * found.ms(table, {}) / max(_size(written, {}), 1)
    return lambda kept: found.ms(table, kept) + each * _size(written, kept)


def _by_bytes(analysis: Analysis, placed: Mapping[ir.Node, Placed], ms: float) -> list[Term]:
    """The time of all other kernels, in proportion to the elements that the other nodes write."""
    written = [
        analysis.record.axes[value]
        for node in analysis.model.graph
        if node not in placed
        for value in node.outputs
        if analysis.record.axes.get(value) and value not in analysis.record.constant
    ]
    total = sum(_size(axes, {}) for axes in written) or 1
    return [Term(_share(tuple(axes), ms / total), _atoms(axes)) for axes in written]


def _share(axes: tuple[Axis, ...], each: float) -> Callable[[Kept], float]:
    return lambda kept: each * _size(axes, kept)


def place(analysis: Analysis, node: ir.Node) -> Placed | None:
    """The shape class of a convolution or matrix product; None for any other node."""
    if node.op_type in CONVOLUTION_KERNELS:
        return _convolution(analysis, node)
    if node.op_type in ("MatMul", "Gemm"):
        return _product(analysis, node)
    return None


def _convolution(analysis: Analysis, node: ir.Node) -> Placed | None:
    data, weight, out = _axes(analysis, node, 0), _axes(analysis, node, 1), _outputs(analysis, node)
    if not data or not weight or not out:
        return None
    groups = _int(node, "group", 1)
    inputs, outputs = _size(data[1:2], {}), _size(out[1:2], {})
    op = "Conv" if groups == 1 else "Depthwise" if groups == inputs == outputs else "Grouped"
    sizes = tuple(_size([axis], {}) for axis in (data[0], *data[2:]))
    kernel = tuple(_size([axis], {}) for axis in weight[2:])
    kept = ("strides", "pads", "dilations")
    attributes = tuple((name, _ints(node, name)) for name in kept if name in node.attributes)
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in ("NOTSET", "VALID"):
        attributes = (*(a for a in attributes if a[0] != "pads"), ("pads", _same_pads(kernel)))
    one = ShapeClass(op, inputs, outputs, sizes, kernel, attributes, groups if op == "Grouped" else 1)
    return Placed(one, (data[1],), (out[1],), ())


def _product(analysis: Analysis, node: ir.Node) -> Placed | None:
    """Rows by k, k by n; batch axes of two activations count as so many products."""
    left, right, out = _axes(analysis, node, 0), _axes(analysis, node, 1), _outputs(analysis, node)
    if len(left) < 2 or len(right) < 2 or len(out) < 2:
        return None
    swapped = node.op_type == "Gemm" and _int(node, "transA", 0) == 1
    inner = left[-2] if swapped else left[-1]
    second = node.inputs[1]
    constant = second is not None and second in analysis.record.constant and len(right) == 2
    batch, rows = ((), out[:-1]) if constant else (tuple(out[:-2]), out[-2:-1])
    sizes = _size(rows, {}), _size([inner], {}), _size(out[-1:], {})
    one = ShapeClass("MatMul", sizes[1], sizes[2], (sizes[0],), constant=constant)
    return Placed(one, (inner,), (out[-1],), batch)


def _profiled(analysis: Analysis, table: LatencyTable) -> list[Kernel]:
    """The kernels of a run of the model as it is. Kept by its structure: the weights do not matter."""
    key = table.key("run/" + _structure(analysis))
    stored = table.cache.get(key)
    if stored is not None:
        return [(str(name), str(op), float(ms)) for name, op, ms in json.loads(stored)]
    kernels = profile_kernels(analysis, table.threads)
    table.cache.put(key, json.dumps(kernels).encode())
    return kernels


def profile_kernels(analysis: Analysis, threads: int) -> list[Kernel]:
    """(name, operator, milliseconds of its fastest run) of every kernel, last of what lies between them."""
    from sparsecc.data.random_inputs import random_feeds
    from sparsecc.ir.save import write
    from sparsecc.measure.interleave import shortest_ms
    from sparsecc.measure.pair import session_start
    from sparsecc.runtime.layer_times import shortest_kernels

    feeds = random_feeds(analysis.model, seed=0, sizes=analysis.shapes.inputs[0])
    with temporary_folder("scratch") as scratch:
        path = write(analysis.model, Path(scratch) / "model.onnx")
        found = shortest_kernels(path, feeds, threads=threads, runs=_RUNS)
        whole = shortest_ms(session_start(path, feeds, threads)(), 3 * _RUNS)
    kernels = [(k.name.removesuffix("_nchwc"), k.op_type, k.microseconds / 1e3) for k in found]
    return [*kernels, ("", OVERHEAD, max(0.0, whole - math.fsum(ms for _, _, ms in kernels)))]


def _structure(analysis: Analysis) -> str:
    digest = hashlib.sha256(repr(analysis.shapes.inputs[0]).encode())
    for node in analysis.model.graph.all_nodes():
        sizes = [_size([axis], {}) for value in node.outputs for axis in analysis.record.axes.get(value, [])]
        digest.update(
            repr(
                (node.op_type, sizes, [v.name for v in (*node.inputs, *node.outputs) if v is not None])
            ).encode()
        )
    return digest.hexdigest()


def _axes(analysis: Analysis, node: ir.Node, operand: int) -> list[Axis]:
    value = node.inputs[operand]
    return analysis.record.uses.get((node, operand)) or analysis.record.axes.get(value, []) if value else []


def _outputs(analysis: Analysis, node: ir.Node) -> list[Axis]:
    return analysis.record.axes.get(node.outputs[0], [])


def _size(axes: tuple[Axis, ...] | list[Axis], kept: Kept) -> int:
    return math.prod(slots(axis, kept) for axis in axes)


def _atoms(axes: tuple[Axis, ...] | list[Axis]) -> tuple[Atom, ...]:
    return tuple(dict.fromkeys(atom for axis in axes for atom in atoms_of(axis)))


def _int(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in node.attributes[name].as_ints())


def _same_pads(kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Close to what SAME gives; the time does not depend on which side is padded."""
    return (*((k - 1) // 2 for k in kernel), *(k // 2 for k in kernel))

"""Shapes inside the bodies of If, Loop and Scan, and of what comes out of them, at one probe.

A body is inferred with the shapes its state has before the first iteration. Where an iteration gives the state
another size, that size is a number of its own and the body is inferred again, until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.shapes.assignment import Probe, dims_of, tensor_type

WalkBody = Callable[[ir.Graph], None]
"""Infers the nodes of a body whose inputs have their types."""

Kinds = list[onnx.TypeProto | None]

ROUNDS = 4
"""How often a body is inferred before its state counts as unsettled."""


class BodyError(ValueError):
    """The shapes inside a body cannot be inferred; says why."""


def infer_if(node: ir.Node, probe: Probe, _version: int, walk: WalkBody) -> None:
    """What is not equal in both branches has a size of its own."""
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        walk(branch)
    for value, *results in zip(node.outputs, *(b.outputs for b in branches), strict=False):
        first, second = (probe.types.get(r) for r in results)
        merged = _merged(first, second, probe)
        if merged is None:
            probe.failures[value] = "its branches give values of different ranks"
        probe.set_type(value, merged or _without_shape(first))


def infer_loop(node: ir.Node, probe: Probe, _version: int, walk: WalkBody) -> None:
    """Scan outputs have as many slots as there were iterations, where that is certain."""
    body = node.attributes["body"].as_graph()
    state = list(node.inputs[2:])
    _require_fit(node, body, 2 + len(state), 1 + len(node.outputs))
    for value, data in zip(body.inputs[:2], (None, np.asarray(True)), strict=True):
        probe.set_type(value, tensor_type(value.dtype, [1] * len(value.shape or ())))
        if data is not None:  # the body runs only while this is so
            probe.data[value] = data.reshape(dims_of(probe.types[value]) or ())
    after = body.outputs[1 : 1 + len(state)]
    kinds = _settled(_kinds(state, probe), body.inputs[2:], after, probe, partial(walk, body))
    trips = _trips(node, body, probe)
    made = [(out, 0) for out in body.outputs[1 + len(state) :]]
    _leave(node, kinds, made, trips, probe)


def infer_scan(node: ir.Node, probe: Probe, version: int, walk: WalkBody) -> None:
    """A scanned input loses its scan axis inside, a scan output gains one."""
    if version < 9:
        raise BodyError("a Scan of opset 8 has a batch axis of its own")
    body = node.attributes["body"].as_graph()
    number = node.attributes.get_int("num_scan_inputs", 0)
    _require_fit(node, body, len(node.inputs), len(node.outputs))
    state, scanned = list(node.inputs[: len(node.inputs) - number]), node.inputs[len(node.inputs) - number :]
    axes = node.attributes.get_ints("scan_input_axes") or [0] * number
    length = 0
    for value, inner, axis in zip(scanned, body.inputs[len(state) :], axes, strict=True):
        kind = probe.types.get(value) if value is not None else None
        dims = dims_of(kind)
        if kind is None or dims is None or not -len(dims) <= axis < len(dims):
            raise BodyError("what it scans has no known shape")
        length = dims.pop(axis)
        probe.set_type(inner, tensor_type(ir.DataType(kind.tensor_type.elem_type), dims))
    after = body.outputs[: len(state)]
    kinds = _settled(_kinds(state, probe), body.inputs[: len(state)], after, probe, partial(walk, body))
    out_axes = node.attributes.get_ints("scan_output_axes") or [0] * (len(body.outputs) - len(state))
    _leave(node, kinds, list(zip(body.outputs[len(state) :], out_axes, strict=True)), length, probe)


BODY_SHAPES = {"If": infer_if, "Loop": infer_loop, "Scan": infer_scan}
"""Operator -> how what its bodies compute is inferred."""


def _require_fit(node: ir.Node, body: ir.Graph, inputs: int, outputs: int) -> None:
    if len(body.inputs) != inputs or len(body.outputs) != outputs:
        raise BodyError(
            f"its body has {len(body.inputs)} inputs and {len(body.outputs)} outputs, "
            f"{inputs} and {outputs} were expected"
        )


def _kinds(values: Sequence[ir.Value | None], probe: Probe) -> Kinds:
    return [probe.types.get(v) if v is not None else None for v in values]


def _settled(
    kinds: Kinds,
    before: Sequence[ir.Value],
    after: Sequence[ir.Value],
    probe: Probe,
    walk: Callable[[], None],
) -> Kinds:
    """The types that the state has at every iteration; None where it is no tensor or has no fixed rank."""
    widened: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        for value, kind in zip(before, kinds, strict=True):
            probe.set_type(value, kind)
        walk()
        results = _kinds(after, probe)
        wider = [
            _widened(i, a, b, widened, probe) for i, (a, b) in enumerate(zip(kinds, results, strict=True))
        ]
        if wider == kinds:
            return kinds
        kinds = wider
    raise BodyError("the shapes of its state do not settle")


def _widened(
    number: int,
    before: onnx.TypeProto | None,
    after: onnx.TypeProto | None,
    widened: set[tuple[int, int]],
    probe: Probe,
) -> onnx.TypeProto | None:
    """The type before an iteration, with a size of its own wherever the iteration changes it."""
    old, new = dims_of(before), dims_of(after)
    if before is None or old is None or new is None or len(old) != len(new):
        return None
    for axis, (a, b) in enumerate(zip(old, new, strict=True)):
        if a != b and (number, axis) not in widened:
            widened.add((number, axis))
            old[axis] = probe.opaque()
    return tensor_type(ir.DataType(before.tensor_type.elem_type), old)


def _trips(node: ir.Node, body: ir.Graph, probe: Probe) -> int:
    """How often the body runs: the trip count where no condition can end it earlier, else a number of its own."""
    limit, condition = ((*node.inputs, None, None))[:2]
    runs_on = [probe.data.get(v) for v in (condition, body.outputs[0]) if v is not None]
    count = probe.data.get(limit) if limit is not None else None
    if count is None or count.size != 1 or any(c is None or not c.all() for c in runs_on):
        return probe.opaque()
    return max(int(count.reshape(())), 0)


def _leave(
    node: ir.Node, kinds: Kinds, made: Sequence[tuple[ir.Value, int]], length: int, probe: Probe
) -> None:
    """The outputs: the state as it was last, then what the iterations made, stacked along a new axis."""
    for value, kind in zip(node.outputs, kinds, strict=False):
        probe.set_type(value, kind)
    for value, (inner, axis) in zip(node.outputs[len(kinds) :], made, strict=True):
        kind, dims = probe.types.get(inner), dims_of(probe.types.get(inner))
        if kind is None or dims is None:
            probe.failures[value] = f"the shape of '{inner.name}' in its body is unknown"
            continue
        dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, length)
        probe.set_type(value, tensor_type(ir.DataType(kind.tensor_type.elem_type), dims))


def _merged(
    first: onnx.TypeProto | None, second: onnx.TypeProto | None, probe: Probe
) -> onnx.TypeProto | None:
    dims, others = dims_of(first), dims_of(second)
    if first is None or dims is None or others is None or len(dims) != len(others):
        return None
    sizes = [a if a == b else probe.opaque() for a, b in zip(dims, others, strict=True)]
    return tensor_type(ir.DataType(first.tensor_type.elem_type), sizes)


def _without_shape(kind: onnx.TypeProto | None) -> onnx.TypeProto | None:
    if kind is None or kind.WhichOneof("value") != "tensor_type":
        return kind
    made = onnx.TypeProto()
    made.tensor_type.elem_type = kind.tensor_type.elem_type
    return made

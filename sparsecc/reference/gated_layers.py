"""Dense models with a switch on every branch: what a model without some of them must compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.graph.caches import caches, hand_back
from sparsecc.graph.residual_blocks import goes_with
from sparsecc.runtime.session import open_session

GATE = "sparsecc.layer_gate"


def gated(model: ir.Model, branches: Sequence[str]) -> ir.Model:
    """A copy in which what each branch (`NODE:OPERAND`) adds is multiplied by a scalar input of its own.

    At gate 1 a branch is as it was, at 0 it adds zeros. The inputs are `sparsecc.layer_gate.0`, `….1`, …
    """
    twin = model.clone()
    nodes = {node.name: node for node in twin.graph}
    for number, branch in enumerate(branches):
        name, _, operand = branch.rpartition(":")
        add = nodes[name]
        value = add.inputs[int(operand)]
        assert value is not None
        gate = ir.Value(name=gate_name(number), shape=ir.Shape([]), type=ir.TensorType(_dtype(add)))
        product = ir.node("Mul", [value, gate], name=f"{gate.name}.product")
        twin.graph.inputs.append(gate)
        twin.graph.insert_before(add, product)
        add.replace_input_with(int(operand), product.outputs[0])
    return twin


def gate_name(number: int) -> str:
    """The input that switches a branch."""
    return f"{GATE}.{number}"


def _dtype(add: ir.Node) -> ir.DataType:
    """Branches add floats; where their type is not written down, it is single precision."""
    known = [v.dtype for v in (*add.outputs, *add.inputs) if v is not None and v.dtype is not None]
    return known[0] if known else ir.DataType.FLOAT


def silenced(model: ir.Model, branches: Sequence[str]) -> ir.Model:
    """A copy in which the branches add zeros; caches that only they read come out as they went in."""
    twin = gated(model, branches)
    named = {node.name: node for node in twin.graph}
    ends = [
        (named[name], int(operand)) for name, _, operand in (branch.rpartition(":") for branch in branches)
    ]
    silent = goes_with(*ends)
    for cache in caches(twin):
        if cache.node in silent:
            hand_back(cache)
    for number in range(len(branches)):
        gate = next(v for v in twin.graph.inputs if v.name == gate_name(number))
        twin.graph.inputs.remove(gate)
        zero = np.zeros((), dtype=(gate.dtype or ir.DataType.FLOAT).numpy())
        gate.const_value = ir.Tensor(zero, dtype=gate.dtype, name=gate.name)
        twin.graph.register_initializer(gate)
    return twin


class Switchboard:
    """The dense model in ONNX Runtime with a switch on every branch."""

    def __init__(self, path: Path, branches: Sequence[str], dtypes: Sequence[Any], threads: int) -> None:
        """`path` holds the gated model, `dtypes` the numpy type of every gate."""
        self._runner = open_session(path, threads=threads, level="basic")
        self._branches = dict(zip(branches, dtypes, strict=True))

    def run(self, feeds: Mapping[str, np.ndarray], off: frozenset[str]) -> dict[str, np.ndarray]:
        """The outputs with the branches of `off` adding zeros."""
        gates = {
            gate_name(i): np.asarray(0.0 if branch in off else 1.0).astype(dtype)
            for i, (branch, dtype) in enumerate(self._branches.items())
        }
        return self._runner.run({**feeds, **gates})


def plugged(model: ir.Model, branches: Sequence[str], path: Path, threads: int) -> Switchboard:
    """A switchboard over these branches, its model written to `path`."""
    from sparsecc.ir.save import write

    twin = gated(model, branches)
    gates = {v.name: v.dtype for v in twin.graph.inputs}
    dtypes = [(gates[gate_name(i)] or ir.DataType.FLOAT).numpy() for i in range(len(branches))]
    return Switchboard(write(twin, path), branches, dtypes, threads)


def dropped_branches(plan: Mapping[str, Any]) -> list[str]:
    """The branches that a plan (as JSON) leaves out."""
    return [
        branch
        for group in plan["groups"]
        if group["kind"] == "layer" and group["kept"] < group["size"]
        for branch in group["branches"]
    ]

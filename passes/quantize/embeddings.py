"""Embedding tables in 8 bits for ONNX Runtime: GatherBlockQuantized looks rows up and makes only those float.

A head that is tied to its table, X E^T, reads the same numbers through MatMulNBits: the file holds them once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsecc.graph.linear_layers import is_float_constant
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.spec import QuantizationPlan, ValueSpec
from sparsecc.passes.weights.linear_layers import constant_array
from sparsecc.remarks import Remark
from sparsecc.runtime.numerics import sqnr

BLOCKS = (128, 64, 32, 16)
"""Columns per scale, the widest that divides a table's."""
RAGGED = 32
"""Where none does."""
LEAST = 4096
"""Numbers of a table under which a scale and two more nodes are no gain."""
ZERO = 128
"""What stands for zero in 8 unsigned bits: the kernels' own default."""


@dataclass(frozen=True)
class Table:
    """A table (rows, columns), the lookups of its rows, and the heads (product, what turns the table for it)."""

    value: ir.Value
    lookups: tuple[ir.Node, ...]
    heads: tuple[tuple[ir.Node, ir.Node | None], ...]

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def nodes(self) -> list[str]:
        return [node.name or "" for node in (*self.lookups, *(head for head, _ in self.heads))]


@dataclass
class Tables:
    """What `quantize_tables` did: nodes that read numbers of 8 bits now, the noise of each table in dB."""

    nodes: list[str] = field(default_factory=list)
    noise: dict[str, float] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)


def quantize_tables(model: ir.Model, plan: QuantizationPlan, exclude: Collection[str]) -> Tables:
    """Store the tables of the main graph in 8 bits, in place."""
    done, editor = Tables(), GraphEditor(model)
    for value in list(model.graph.initializers.values()):
        found = _table(value)
        if isinstance(found, str):
            done.remarks.append(Remark(value.name or "", found))
        elif found is not None and exclude and set(found.nodes) & set(exclude):
            done.remarks.append(Remark(found.name, "left in float"))
        elif found is not None:
            done.noise[found.name] = _store(editor, found, plan)
            done.nodes += found.nodes
    if done.nodes:
        editor.finish()
    return done


def _table(value: ir.Value) -> Table | str | None:
    """A constant as a table; why a table stays in float; None for other constants."""
    lookups = [use.node for use in value.uses() if use.node.op_type == "Gather" and use.idx == 0]
    if not lookups or not is_float_constant(value):
        return None
    array = constant_array(value)
    if array.ndim != 2 or array.size < LEAST or array.shape[1] < BLOCKS[-1]:
        return None
    if any(node.domain or node.attributes.get_int("axis", 0) != 0 for node in lookups):
        return "a table whose columns are looked up: only rows are, in 8 bits"
    if any(use.node.graph is not value.graph for use in value.uses()):
        return "a table that a body reads"
    heads: list[tuple[ir.Node, ir.Node | None]] = []
    for use in value.uses():
        if use.node in lookups:
            continue
        head = _head(use.node, use.idx) if array.shape[1] % BLOCKS[-1] == 0 else None
        if head is None:
            return f"a table that '{use.node.name}' reads as a whole, too"
        heads.append(head)
    if value.is_graph_output():
        return "a table that is an output of the model"
    return Table(value, tuple(lookups), tuple(heads))


def _head(node: ir.Node, index: int) -> tuple[ir.Node, ir.Node | None] | None:
    """(the product X E^T, the Transpose of E) behind a reader of the table, if that is what it is."""
    if node.op_type == "Gemm" and index == 1 and node.attributes.get_int("transB", 0) == 1:
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        return (node, None) if plain and not node.attributes.get_int("transA", 0) else None
    if node.op_type != "Transpose" or list(node.attributes.get_ints("perm") or (1, 0)) != [1, 0]:
        return None
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    (use,) = uses
    return (use.node, node) if use.node.op_type == "MatMul" and use.idx == 1 else None


def _store(editor: GraphEditor, table: Table, plan: QuantizationPlan) -> float:
    """Numbers and scales in the place of a table; its signal to noise in dB."""
    array = constant_array(table.value)
    rows, columns = array.shape
    block = next((size for size in BLOCKS if columns % size == 0), RAGGED)
    count = -(-columns // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :columns] = array
    blocks = padded.reshape(rows, count, block)
    scale = np.abs(blocks).max(axis=2) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    levels = np.rint(blocks / scale[:, :, None])
    restored = (levels * scale[:, :, None]).reshape(rows, -1)[:, :columns]
    stored = np.ascontiguousarray((levels + ZERO).astype(np.uint8).reshape(rows, -1)[:, :columns])
    numbers, steps = (
        editor.constant(f"{table.name}_int8", stored),
        editor.constant(f"{table.name}_scale", scale),
    )
    plan.quantization[table.name] = ValueSpec("int8", "weight", "block", 1, block).to_json()
    for node in table.lookups:
        attributes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        row = editor.add(
            "GatherBlockQuantized", [numbers, node.inputs[1], steps], attributes, base=f"{node.name}_int8",
            before=node, domain="com.microsoft", dtype=ir.DataType.FLOAT, like=node.outputs[0],
        )  # fmt: skip
        editor.stand_in(node.outputs[0], row)
    for product, _ in table.heads:
        _put_head(editor, product, (numbers, steps), (rows, columns, block))
    return round(sqnr(array, restored), 2)


def _put_head(
    editor: GraphEditor, product: ir.Node, stored: tuple[ir.Value, ir.Value], sizes: tuple[int, int, int]
) -> None:
    """X E^T as a product with the numbers of the table, in the shape that MatMulNBits wants."""
    (numbers, steps), (rows, columns, block) = stored, sizes
    shape = editor.constant(f"{numbers.name}_blocks", np.array([rows, columns // block, block], np.int64))
    blocks = editor.add("Reshape", [numbers, shape], base=f"{numbers.name}_3d", dtype=ir.DataType.UINT8)
    attributes = {"K": columns, "N": rows, "bits": 8, "block_size": block, "accuracy_level": 4}
    result = product.outputs[0]
    value = editor.add(
        "MatMulNBits", [product.inputs[0], blocks, steps], attributes, base=f"{product.name}_int8", before=product,
        domain="com.microsoft", dtype=ir.DataType.FLOAT, like=result,
    )  # fmt: skip
    if product.op_type == "Gemm" and len(product.inputs) > 2 and product.inputs[2] is not None:
        value = editor.add(
            "Add",
            [value, product.inputs[2]],
            base=f"{product.name}_biased",
            before=product,
            dtype=ir.DataType.FLOAT,
        )
    editor.stand_in(result, value)

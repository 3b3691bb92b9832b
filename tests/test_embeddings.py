"""Embedding tables in 8 bits: looked up row by row, and stored once where a head is tied to them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.passes.quantize import Quantize
from sparsecc.plan import Plan
from sparsecc.runtime.session import open_session
from tests.compilations import compilation
from tests.quantize_models import weighted
from tests.test_quantize import relative_error

UNTIED = """g (int64[2,5] ids, WEIGHTS) => (float[2,5,32] y) {
    e = Gather(table, ids)
    y = MatMul(e, head)
}"""
TURNED = """g (int64[2,5] ids, WEIGHTS) => (float[2,5,300] y) {
    e = Gather(table, ids)
    back = Transpose<perm = [1,0]>(table)
    y = MatMul(e, back)
}"""
GEMM = """g (int64[7] ids, WEIGHTS) => (float[7,300] y) {
    e = Gather(table, ids)
    y = Gemm<transB = 1>(e, table, bias)
}"""


def _quantized(
    text: str, type_: str, columns: int = 48, rows: int = 300, **options: object
) -> tuple[ir.Model, Plan]:
    """The model in a type; its outputs are those of before, up to rounding."""
    sizes: dict[str, tuple[int, ...]] = {"table": (rows, columns)}
    sizes |= {"head": (columns, 32)} if "head" in text else {"bias": (rows,)} if "bias" in text else {}
    model = weighted(text, sizes)
    shape = tuple(model.graph.inputs[0].shape.numpy())  # type: ignore[union-attr]
    feeds = {"ids": np.random.default_rng(0).integers(-rows, rows, shape)}
    before = open_session(model).run(feeds)["y"]
    plan = Plan({})
    Quantize(type=type_, **options).run(model, plan, compilation(feeds=[feeds]))  # type: ignore[arg-type]
    assert relative_error(before, open_session(model).run(feeds)["y"]) < (2e-2 if type_ == "int4" else 3e-4)
    return model, plan


def _stored(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


@pytest.mark.parametrize("type_", ["int8", "int8-dynamic", "int4"])
@pytest.mark.parametrize("columns", [48, 50, 256])
def test_a_table_becomes_8_bits_with_every_type_of_integers(type_: str, columns: int) -> None:
    model, plan = _quantized(UNTIED, type_, columns)
    assert Counter(node.op_type for node in model.graph)["Gather"] == 0
    assert plan.quantization["table"]["type"] == "int8"
    assert _stored(model) < 0.4 * 4 * columns * 332


@pytest.mark.parametrize("text", [TURNED, GEMM])
@pytest.mark.parametrize("type_", ["int8", "int8-dynamic", "int4"])
def test_a_tied_table_is_stored_once(text: str, type_: str) -> None:
    model, _ = _quantized(text, type_)
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["GatherBlockQuantized"], kinds["MatMulNBits"]) == (1, 1)
    assert _stored(model) < 0.35 * 4 * 48 * 300


def test_what_else_reads_a_table_leaves_it_in_float() -> None:
    model = weighted(
        """g (int64[2,5] ids, WEIGHTS) => (float[2,5,300] y, float[300] z) <int64[1] first = {0}> {
            e = Gather(table, ids)
            back = Transpose<perm = [1,0]>(table)
            y = MatMul(e, back)
            z = ReduceMax<keepdims = 0>(back, first)
        }""",
        {"table": (300, 48)},
    )
    feeds = {"ids": np.zeros((2, 5), np.int64)}
    result = Quantize(type="int8").run(model, Plan({}), compilation(feeds=[feeds]))
    assert any("reads as a whole, too" in remark.reason for remark in result.remarks)
    assert "GatherBlockQuantized" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("exclude", ["table", "type:Gather"])
def test_a_table_is_excluded_by_name_and_small_ones_stay(exclude: str) -> None:
    model, plan = _quantized(UNTIED, "int8", exclude=(exclude,))
    assert "table" not in plan.quantization
    model, plan = _quantized(UNTIED, "int8", rows=60)
    assert "table" not in plan.quantization
    assert {node.op_type for node in model.graph} >= {"Gather"}


def test_a_tied_model_is_compiled_proved_and_smaller(tmp_path: Path) -> None:
    model = weighted(TURNED, {"table": (300, 48)})
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", ids=np.random.default_rng(0).integers(0, 300, (40, 5)))
    made = sparsecc.compile(
        tmp_path / "m.onnx", quantize="int8!", calib=tmp_path / "c.npz", output=tmp_path / "o", measure=False
    )
    assert made.report["verification"]["status"] == "proved"
    assert made.report["after"]["bytes"] < 0.4 * made.report["before"]["bytes"]
    assert made.report["fidelity"]["quality_db"] > 30

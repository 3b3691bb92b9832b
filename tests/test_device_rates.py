"""Speeds that are foretold: by a table of a device, by rules of a target, and what goals make of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.cli import main
from sparsecc.cli.device_table import _convolutions, _products, _seconds
from sparsecc.cost.device_rates import RULES, DeviceRates, rates_for, types_of
from sparsecc.errors import GoalError, InputError, UnavailableError
from sparsecc.targets import Target, target_named
from sparsecc.tasks.stages import Work
from sparsecc.tasks.trial_figures import foretold

TABLE = {
    "schema": "sparsecc.device_table/1",
    "target": "tensorrt",
    "macs": {"float": 1e12, "fp16": 1.2e12, "int8": 4e12},
    "bytes": 1e12,
    "launch": 1e-7,
}


def test_seconds_are_those_of_products_weights_and_kernels() -> None:
    rates = DeviceRates("ours", {"float": 1e9, "int8": 4e9}, 1e6, 0.5)
    assert rates.seconds([("float", 1e9), ("float", 0)], 1e6) == pytest.approx(1 + 0.5 + 1)
    assert rates.seconds([("int8", 4e9)], 4e6) == pytest.approx(1 + 0.5 + 1)  # a byte for a weight of four
    assert rates.seconds([("fp16", 1e9)], 0) == pytest.approx(1.5), "a type without a rate is float"


def test_a_node_has_the_type_of_its_operands() -> None:
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[1,8] x, float[8,8] w) => (float[1,8] z) {
        one = Constant<value = float {1}>() nil = Constant<value = uint8 {0}>()
        q = QuantizeLinear(x, one, nil) d = DequantizeLinear(q, one, nil)
        v = QuantizeLinear(w, one, nil) u = DequantizeLinear(v, one, nil)
        y = MatMul(d, u) z = MatMul(y, w) }"""
    model = ir.from_onnx_text(text)
    for number, node in enumerate(node for node in model.graph if node.op_type == "MatMul"):
        node.name = f"product{number}"
    assert types_of(model) == {"product0": "int8"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("g (bfloat16[1,32] x, bfloat16[32,32] w) => (bfloat16[1,32] y) { y = MatMul(x, w) }", "fp16"),
        (
            "g (uint8[1,32] x, uint8[32,32] w) => (float[1,32] y) "
            "{ d = trt.TRT_MXFP8DequantizeLinear(x, x) u = trt.TRT_MXFP8DequantizeLinear(w, w) y = MatMul(d, u) }",
            "int8",
        ),
    ],
    ids=["bf16", "mxfp8"],
)
def test_types_have_the_rate_of_those_of_their_size(text: str, kind: str) -> None:
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["": 18, "trt": 1]> {text}')
    model.graph[-1].name = "product"
    assert types_of(model) == {"product": kind}


def test_a_model_that_came_in_halves_gains_nothing_by_staying_so() -> None:
    text = "g (float16[1,64] x, float16[64,64] w) => (float16[1,64] y) { y = MatMul(x, w) }"
    model = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["": 18]> {text}')
    model.graph[-1].name = "product"
    layer = {"name": "product", "macs_before": 4096, "macs_after": 4096}
    decision = SimpleNamespace(layers=[layer], costs={side: {"params": 4096} for side in ("before", "after")})
    dense = SimpleNamespace(dense=SimpleNamespace(model=model))
    work = SimpleNamespace(decision=decision, compilation=dense, analysis=SimpleNamespace(model=model))
    assert foretold(RULES["gpu"], cast(Work, work), 8192) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "sparsecc.device_table/2"},
        {"target": "onnxruntime-arm64"},
        {"bytes": 0},
        {"launch": "fast"},
        {"macs": {"int8": 1e9}},
        {"macs": {"float": -1}},
        {"macs": {"float": 1e9, "../x": 1e9}},
        {"macs": 5},
    ],
    ids=str,
)
def test_what_is_no_table_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps({**TABLE, **wrong}))
    with pytest.raises(InputError, match=r"table.*sparsecc devices table"):
        rates_for(target_named("tensorrt"), str(file))
    file.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        rates_for(target_named("tensorrt"), str(file))


def test_without_a_table_the_rules_of_the_kind_of_device_hold() -> None:
    assert rates_for(target_named("tensorrt"), None) is RULES["gpu"]
    assert rates_for(target_named("onnxruntime-arm64"), None) is RULES["cpu"]
    with pytest.raises(InputError, match=r"no rules foretell speeds on npu: .* --device-table"):
        rates_for(Target("npu", "npu", frozenset(), device="npu"), None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Six convolutions of 64 channels, and with samples the options of a compile for TensorRT that builds nothing."""
    folder = tmp_path_factory.mktemp("work")
    onnx.save(_convolutions(64, 16), folder / "m.onnx")
    samples = np.random.default_rng(0).standard_normal((20, 1, 64, 16, 16)).astype(np.float32)
    options = {"target": "tensorrt", "emit": "onnx", "calib": list(samples), "next_steps": False}
    return folder / "m.onnx", {"force": True, **options}


def test_a_speed_is_reached_by_the_table_of_a_device_that_is_not_here(
    work: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (model, options), table = work, tmp_path / "board.json"
    table.write_text(json.dumps(TABLE))
    made = sparsecc.compile(
        model, **options, speedup=2.0, budget=0.01, device_table=table, output=tmp_path / "a"
    )
    goal = made.report["goal"]
    assert (goal["met"], goal["foretold"]["by"]) == (None, "the table board.json")
    assert goal["foretold"]["speedup"] >= 1.95
    assert made.report["chosen"]["levers"]["quantize"] == "int8", "16 bits give 1.2x there"
    assert any("is foretold by the table board.json, not measured" in w for w in made.report["warnings"])
    recipe = (tmp_path / "a" / "recipe.yaml").read_text()
    assert "device_table" not in recipe
    table.write_text(json.dumps({**TABLE, "macs": {"float": 1e12, "fp16": 4e12, "int8": 4e12}}))
    made = sparsecc.compile(model, **options, speedup=2.0, device_table=table, output=tmp_path / "a")
    assert made.report["chosen"]["levers"] == {"quantize": "fp16"}, "another table is another question"


def test_a_speed_is_foretold_by_rules_where_there_is_no_table(
    work: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (model, options), said = work, list[str]()
    with pytest.raises(GoalError, match=r"--speedup 3 is .* out of reach"):
        sparsecc.compile(
            model,
            **{**options, "calib": None},
            speedup=3.0,
            output=tmp_path / "a",
            on_event=lambda event: said.append(str(event.get("say"))),
        )
    assert "tensorrt does not run here: speeds are foretold by rules for a GPU" in said
    goals: list[dict[str, Any]] = [{"latency": 1.0}, {"fps": 100.0}, {"speedup": 2.0, "footprint": 1e6}]
    for goal in goals:
        with pytest.raises(UnavailableError, match="give --speedup, which is foretold, or --ratio"):
            sparsecc.compile(model, **options, **goal, output=tmp_path / "b")


def test_no_table_is_made_where_the_target_does_not_run(tmp_path: Path) -> None:
    types = SimpleNamespace(types=frozenset[str](), name="npu")
    with pytest.raises(InputError, match="npu has neither fp16 nor int8"):
        _seconds(_products(4, 1), tmp_path, cast(Target, types), "local", 1)
    halves = Target("absent", "absent", frozenset({"fp16"}))
    with pytest.raises(InputError, match="absent"):
        _seconds(_products(4, 1), tmp_path, halves, "local", 1)


@pytest.mark.slow
def test_a_table_is_made_on_a_device(tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    assert main(["devices", "table", "local", "-o", str(file)]) == 0
    rates = rates_for(target_named("onnxruntime"), str(file))
    assert rates.macs["float"] > 1e8
    assert rates.macs["int8"] > 1e8
    assert 1e-8 < rates.launch < 1e-2

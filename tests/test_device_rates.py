"""Speeds that are foretold: by a table of a device, by rules of a target, and what goals make of them."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
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
from sparsecc.options import CompileOptions
from sparsecc.targets import Target, target_named
from sparsecc.tasks.stages import Work
from sparsecc.tasks.trial_figures import Products, is_foretold, products_of

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
    assert rates.seconds([("int8/2:4", 4e9)], 0) == pytest.approx(1.5), "a pattern without one is its type"
    sparse = DeviceRates("ours", {"float": 1e9, "int8": 4e9, "int8/2:4": 8e9}, 1e6, 0.5)
    assert sparse.seconds([("int8/2:4", 4e9)], 4e6) == pytest.approx(0.5 + 0.5 + 0.625)


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
    dense.records = []
    work = SimpleNamespace(decision=decision, compilation=dense, analysis=SimpleNamespace(model=model))
    before, after = products_of(RULES["gpu"], cast(Work, work), 8192)
    assert before.seconds(RULES["gpu"]) == after.seconds(RULES["gpu"])


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
    assert "speeds on tensorrt are foretold by rules for a GPU, not measured here" in said
    table = tmp_path / "slow.json"
    table.write_text(json.dumps({**TABLE, "launch": 1e-3}))
    with pytest.raises(GoalError, match=r"out of reach: .*: 100% of its time there is launches of kernels"):
        sparsecc.compile(
            model, **{**options, "calib": None}, speedup=3.0, device_table=table, output=tmp_path / "a"
        )
    goals: list[tuple[dict[str, Any], str]] = [
        ({"latency": 1.0}, "--latency 1 needs a table of such a device .* with --device-table"),
        ({"fps": 100.0}, "--fps 100 needs a table"),
        ({"throughput": 100.0}, "--throughput 100 needs a table"),
        ({"speedup": 2.0, "footprint": 1e6}, "give --size or --ratio instead"),
    ]
    for goal, why in goals:
        with pytest.raises(UnavailableError, match=why):
            sparsecc.compile(model, **options, **goal, output=tmp_path / "b")


def test_times_and_rates_of_samples_are_foretold_by_a_table(
    work: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Six convolutions of 64 * 64 * 9 * 256 multiply-accumulates, 0.9 MB of weights: 58 us in float, 15 in 8 bits."""
    (model, options), table = work, tmp_path / "board.json"
    table.write_text(json.dumps(TABLE))
    asked = {**options, "device_table": table, "budget": 0.01}
    dense = 6 * (64 * 64 * 9 * 256 / 1e12 + 1e-7) * 1e3 + 6 * 64 * 64 * 9 * 4 / 1e12 * 1e3
    goals: list[dict[str, Any]] = [{"latency": dense / 2}, {"fps": 2e3 / dense}, {"throughput": 2e3 / dense}]
    for goal in goals:
        made = sparsecc.compile(model, **asked, **goal, output=tmp_path / "a")
        told = made.report["goal"]["foretold"]
        assert told["speedup"] >= 1.95
        if "throughput" in goal:
            assert told["serving"]["rate"] == pytest.approx(told["speedup"] * 1e3 / dense, rel=0.02)
            assert any("a second is foretold by the table" in w for w in made.report["warnings"])
        else:
            assert told["ms"] == pytest.approx(dense / told["speedup"], rel=0.02)
            assert any(f"{told['ms']:.3g} ms is foretold" in w for w in made.report["warnings"])


def test_a_target_of_other_machines_is_foretold_though_its_models_run_here(tmp_path: Path) -> None:
    """ONNX Runtime runs what is made for ARM anywhere; how fast that is says nothing of a board."""
    arm = {"target": "onnxruntime-arm64"}
    elsewhere = platform.machine() not in ("aarch64", "arm64")
    assert is_foretold(CompileOptions.of(arm)) == elsewhere
    assert not is_foretold(CompileOptions.of({**arm, "device": "ssh://pi@192.0.2.7"}))
    assert is_foretold(CompileOptions.of({**arm, "device_table": str(tmp_path / "board.json")}))
    assert not is_foretold(CompileOptions())
    assert is_foretold(CompileOptions.of({"target": "tensorrt"}))


def test_the_batch_that_serves_most_is_taken_and_the_smallest_that_is_as_good() -> None:
    rates = DeviceRates("ours", {"float": 1e9}, 1e9, 1e-3, is_measured=True)
    light, heavy = Products([("float", 1e5)], 0.0), Products([("float", 1e8)], 0.0)
    assert light.serving(rates, (1, 2, 4, 8)).batch == 8, (
        "a kernel takes ten times as long as the work of a sample"
    )
    assert heavy.serving(rates, (1, 2, 4, 8)).batch == 1
    assert heavy.serving(rates, (1, 2, 4, 8)).rate == pytest.approx(1 / 0.101)


def test_two_of_four_weights_zero_are_pulled_where_the_target_has_kernels(
    work: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Random weights lose much by it: what is shown is that it is tried where 8 bits alone are too slow, and told."""
    (model, options), table = work, tmp_path / "board.json"
    table.write_text(json.dumps({**TABLE, "macs": {**TABLE["macs"], "int8/2:4": 1.6e13}}))  # type: ignore[dict-item]
    said = list[str]()
    asked = {**options, "device_table": table, "budget": 60, "output": tmp_path / "a"}
    with suppress(GoalError):
        sparsecc.compile(
            model,
            **asked,
            speedup=6.0,
            levers=["types", "patterns"],
            on_event=lambda event: said.append(str(event.get("say"))),
        )
    trials = [line for line in said if line.startswith("trial ")]
    alone, sparse = (next(t for t in trials if text in t) for text in (" int8: ", " int8, 2:4: "))
    assert _speed(sparse) > 2 * _speed(alone), trials
    said.clear()
    with suppress(GoalError):
        sparsecc.compile(
            model, **asked, speedup=6.0, levers=["types"], on_event=lambda e: said.append(str(e.get("say")))
        )
    assert not any("2:4" in line for line in said)


def _speed(line: str) -> float:
    return float(line.rpartition(": ")[2].split("x")[0])


def test_no_table_is_made_where_the_target_does_not_run(tmp_path: Path) -> None:
    types = SimpleNamespace(types=frozenset[str](), patterns=frozenset[str](), name="npu")
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

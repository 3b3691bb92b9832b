"""Statistics on known samples, timing of known work, profiles and footprints of real sessions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
from sparsecc.errors import InputError
from sparsecc.measure.footprint import footprint
from sparsecc.measure.fresh_sessions import clock_for, compare_fresh
from sparsecc.measure.interleave import Budget, compare, time_alone
from sparsecc.measure.roofline import Machine, Work, layer_work, placed_under
from sparsecc.measure.statistics import Percentiles, bootstrap_median, log_ratio, ratio_of_rounds
from sparsecc.runtime.layer_times import typical_times
from sparsecc.runtime.runner import LayerTime
from sparsecc.runtime.session import open_session

CHAIN = """
<ir_version: 9, opset_import: ["" : 17]>
chain (float[64,64] x) => (float[64,64] y) {
  h = MatMul (x, x)
  r = Relu (h)
  y = MatMul (r, x)
}
"""


def test_percentiles_are_those_of_the_samples() -> None:
    told = Percentiles.of(np.arange(1.0, 102.0))
    assert (told.p50, told.p90, told.p99, told.mean, told.n) == (51.0, 91.0, 100.0, 51.0, 101)


def test_the_ratio_is_the_median_of_paired_logs() -> None:
    before = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    ratio = log_ratio(before, before * 1.25, seed=0)
    assert ratio.median == pytest.approx(math.log(1.25))
    assert ratio.speedup == pytest.approx(0.8)
    assert ratio.to_json()["ci95"] == pytest.approx([0.8, 0.8])


def test_the_interval_of_a_speedup_is_in_order_and_contains_it() -> None:
    generator = np.random.default_rng(0)
    told = log_ratio(np.ones(80), np.exp(generator.normal(0.3, 0.1, 80)), seed=0).to_json()
    low, high = told["ci95"]
    assert low < told["estimate"] < high < 1


def test_the_interval_covers_the_true_median_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_median(generator.normal(0.05, 0.1, 60), seed=seed, resamples=500)
        covered += low <= 0.05 <= high
    assert 178 <= covered <= 199


def rounds_of(generator: np.random.Generator, rounds: int, session: float) -> list[np.ndarray]:
    """Pairs that share their round's session effect; the true ratio is 0."""
    return [generator.normal(generator.normal(0, session), 0.05, 20) for _ in range(rounds)]


def test_the_interval_over_rounds_covers_where_sessions_differ_and_that_over_pairs_does_not() -> None:
    generator = np.random.default_rng(2)
    over_rounds = over_pairs = 0
    for seed in range(200):
        drawn = rounds_of(generator, 8, 0.03)
        told = ratio_of_rounds(drawn)
        over_rounds += told.low <= 0 <= told.high
        low, high = bootstrap_median(np.concatenate(drawn), seed=seed, resamples=300)
        over_pairs += low <= 0 <= high
    assert 180 <= over_rounds <= 199
    assert over_pairs < 150


def test_more_confidence_is_a_wider_interval() -> None:
    drawn = rounds_of(np.random.default_rng(3), 6, 0.02)
    narrow, wide = ratio_of_rounds(drawn), ratio_of_rounds(drawn, confidence=0.99)
    assert narrow.median == wide.median
    assert wide.low < narrow.low < narrow.high < wide.high


def test_every_round_has_sessions_of_its_own_made_in_turn() -> None:
    made: list[str] = []

    def start(name: str) -> Callable[[], object]:
        made.append(name)
        return lambda: time.sleep(0.0002)

    budget = Budget(pairs=20, seconds=5, warmup_seconds=0)
    told = compare_fresh(lambda: start("a"), lambda: start("b"), rounds=4, budget=budget)
    assert "".join(made) == "abbaabba"
    assert told.rounds == (5, 5, 5, 5)
    assert told.to_json()["rounds"] == 4


def test_more_threads_are_timed_by_the_wall_clock() -> None:
    assert (clock_for(1), clock_for(2)) == ("cpu", "wall")


LIMITED = """
import resource
from sparsecc.measure.fresh_sessions import clock_for
resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))
print(clock_for(1))
"""


def test_a_limit_of_processor_time_makes_its_clock_too_coarse() -> None:
    told = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, check=True)
    assert told.stdout.strip() == b"wall"


def test_a_large_product_reaches_more_of_the_roofline_than_a_copy_needs() -> None:
    machine = Machine(gflops=100.0, gbytes=10.0)
    assert machine.least_ms(2e9, 1e6) == pytest.approx(20.0)
    layers = [
        LayerTime("p", "MatMul", 40_000.0),
        LayerTime("c", "Relu", 1_000.0),
        LayerTime("?", "Relu", 1.0),
    ]
    work = {"p": Work(2e9, 1e6), "c": Work(1e6, 8e6)}
    rows = placed_under(layers, work, machine)
    assert [row.get("bound") for row in rows] == ["compute", "memory", None]
    assert [row.get("of_roofline") for row in rows] == [0.5, 0.8, None]


def test_the_work_of_layers_is_read_from_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(ir.from_onnx_text(CHAIN), path)
    work = layer_work(path, {"x": np.ones((64, 64), np.float32)})
    assert sorted(w.operations for w in work.values())[-1] == 2 * 64**3
    assert all(w.moved >= 2 * 64 * 64 * 4 for w in work.values())


def test_the_interval_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_median(values, seed=3) == bootstrap_median(values, seed=3)
    assert bootstrap_median(values, seed=3) != bootstrap_median(values, seed=4)


def test_a_run_that_does_half_more_work_is_found() -> None:
    work = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)

    def run(times: int) -> object:
        for _ in range(times):
            np.sort(work, axis=0)
        return None

    told = compare(lambda: run(10), lambda: run(15), budget=Budget(pairs=60, seconds=5), seed=0)
    assert math.log(1.3) < told.ratio().low < told.ratio().high < math.log(1.75)
    assert told.to_json()["speedup"]["estimate"] == pytest.approx(1 / 1.5, rel=0.15)


def test_the_processor_clock_does_not_see_waiting() -> None:
    told = compare(
        lambda: None, lambda: time.sleep(0.002), budget=Budget(pairs=5, seconds=1, warmup_seconds=0)
    )
    assert told.ratio("wall").speedup < 0.1
    assert float(np.median(told.cpu_after)) < 1.0 < float(np.median(told.wall_after))


def test_short_runs_are_repeated_within_a_sample() -> None:
    calls = [0]

    def run() -> None:
        calls[0] += 1

    told = compare(run, run, budget=Budget(pairs=5, seconds=5, warmup_seconds=0))
    assert told.repeats > 100
    assert calls[0] >= 2 * 5 * told.repeats


def test_long_runs_are_warmed_up_once() -> None:
    calls = [0]

    def run() -> None:
        calls[0] += 1
        time.sleep(0.051)

    told = compare(run, run, budget=Budget(pairs=5, seconds=5, warmup_seconds=0))
    assert calls[0] == 2 * (1 + told.pairs)


def test_both_orders_occur_and_pairs_stay_pairs() -> None:
    order: list[str] = []

    def run(name: str) -> None:
        order.append(name)
        time.sleep(0.0015)

    compare(lambda: run("a"), lambda: run("b"), budget=Budget(pairs=20, seconds=9, warmup_seconds=0), seed=1)
    measured = order[6:]
    pairs = {"".join(measured[i : i + 2]) for i in range(0, len(measured), 2)}
    assert pairs == {"ab", "ba"}


def test_the_budget_in_seconds_ends_a_measurement() -> None:
    budget = Budget(pairs=1000, seconds=0.1, warmup_seconds=0)
    assert 5 <= compare(lambda: time.sleep(0.01), lambda: time.sleep(0.01), budget=budget).pairs < 30


def test_a_comparison_tells_its_samples_and_both_clocks() -> None:
    told = compare(lambda: None, lambda: None, budget=Budget(pairs=6, seconds=1, warmup_seconds=0), threads=2)
    data = json.loads(json.dumps(told.to_json()))
    assert set(data) >= {"before_ms", "after_ms", "speedup", "clock", "threads", "wall", "samples_ms"}
    assert data["before_ms"]["n"] == len(data["samples_ms"]["cpu_before"]) == 6
    assert data["threads"] == 2


def test_joined_comparisons_hold_all_pairs_in_order() -> None:
    one = compare(lambda: None, lambda: None, budget=Budget(pairs=5, seconds=1, warmup_seconds=0))
    both = one.joined(one)
    assert both.pairs == 10
    assert list(both.cpu_after) == [*one.cpu_after, *one.cpu_after]


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="at least 5 pairs"):
        Budget(pairs=4)


def test_warm_up_runs_of_a_trace_are_not_counted() -> None:
    def node(ts: int, dur: int) -> dict[str, object]:
        args = {"op_name": "Conv", "provider": "CPUExecutionProvider", "node_index": "0"}
        return {"cat": "Node", "name": "c_kernel_time", "ts": ts, "dur": dur, "args": args}

    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 50} for ts in (0, 100, 200)]
    layers = typical_times([*runs, node(10, 9000), node(110, 20), node(210, 30), node(220, 10)], warm_up=1)
    assert [(layer.name, layer.op_type, layer.provider) for layer in layers] == [("c", "Conv", "CPU")]
    assert layers[0].microseconds == 30


def _chain(folder: Path) -> Path:
    path = folder / "chain.onnx"
    ir.save(ir.from_onnx_text(CHAIN), path)
    return path


def test_a_profile_names_the_layers_of_a_real_session(tmp_path: Path) -> None:
    path = _chain(tmp_path)
    layers = OnnxRuntimeCpu().profile(path, {"x": np.ones((64, 64), np.float32)}, runs=10)
    assert [layer.op_type for layer in layers] == ["MatMul", "Relu", "MatMul"]
    assert all(0 < layer.microseconds < 1e6 for layer in layers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chain.onnx"]


def test_a_footprint_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    told = footprint(_chain(tmp_path), {"x": np.ones((64, 64), np.float32)})
    assert 0 < told.load_ms < 30_000
    assert 0 < told.first_inference_ms < 30_000
    assert 5_000_000 < told.peak_memory_bytes < 300_000_000
    assert 0 <= told.model_memory_bytes < 100_000_000


def test_a_footprint_of_a_broken_model_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"broken\.onnx: ONNX Runtime .* refuses it"):
        footprint(broken, {})


def test_one_model_alone_is_timed_by_both_clocks(tmp_path: Path) -> None:
    run = open_session(_chain(tmp_path)).prepared({"x": np.ones((64, 64), np.float32)})
    cpu, wall = time_alone(run, budget=Budget(pairs=10, seconds=2))
    assert len(cpu) == len(wall) == 10
    assert (cpu > 0).all()


def test_energy_is_counted_over_packages_and_wraps(tmp_path: Path) -> None:
    from sparsecc.devices.runner import energy_between, read_energy

    def count(name: str, used: int) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{used}\n")
        (folder / "max_energy_range_uj").write_text("1000\n")

    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        count(name, 900)
    (tmp_path / "intel-rapl:2").mkdir()
    before = read_energy(str(tmp_path))
    assert [name.rsplit("/", 1)[1] for name in before] == ["intel-rapl:0", "intel-rapl:1"]
    count("intel-rapl:0", 950)
    count("intel-rapl:1", 30)
    assert energy_between(before, read_energy(str(tmp_path))) == 50 + 130
    assert energy_between({}, {}) is None


def test_a_profile_tells_energy_where_it_is_counted() -> None:
    from sparsecc.report.summary import profile_rows

    assert ("energy of a run, whole processor", "12.3 mJ") in profile_rows({"energy_mj": 12.34})
    assert profile_rows({}) == []

"""Goals: the search on known curves, staircases and walls; a real compile to a speed-up and to a size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from sparsecc.decide.goal_search import MOST, TRIALS, Family, Search, Settled
from sparsecc.decide.goals import NEAR, Goal, Trial, judge, words_of
from sparsecc.errors import GoalError, InputError
from sparsecc.measure.footprint import footprint
from sparsecc.options import CompileOptions
from sparsecc.report.trials import trial_rows


def attempt_at(
    speed: Callable[[float], float], most: float = 0.99, score: Callable[[float], float] | None = None
) -> Callable[[float], Trial]:
    """A model whose dense run takes 10 ms and that is `speed(ratio)` times as fast."""

    def attempt(ratio: float) -> Trial:
        removed = min(ratio, most)
        times = speed(removed)
        return Trial(
            ratio,
            removed,
            int(1000 * (1 - removed)),
            1000,
            exhausted=ratio > most,
            held="a wall",
            speedup=times,
            ms=10 / times,
            dense_ms=10.0,
            score=None if score is None else score(removed),
            dense_score=None if score is None else score(0.0),
        )

    return attempt


def settle(goal: Goal, attempt: Callable[[float], Trial], ceiling: float | None = None) -> Settled:
    """With nothing but channels."""
    return Search(goal, lambda _, ratio: attempt(ratio), ceiling=ceiling).settle()


def ideal(ratio: float) -> float:
    return 1 / (1 - ratio)


def half_fixed(ratio: float) -> float:
    """Half of the time does not shrink."""
    return 1 / (0.5 + 0.5 * (1 - ratio))


def staircase(ratio: float) -> float:
    return 1 / (1 - math.floor(ratio * 40) / 40 * 0.9)


@pytest.mark.parametrize("curve", [ideal, half_fixed, staircase, lambda r: (1 / (1 - r)) ** 0.6])
@pytest.mark.parametrize("wanted", [1.2, 1.5, 1.9])
def test_a_speed_up_is_met_within_five_per_cent(curve: Callable[[float], float], wanted: float) -> None:
    found = settle(Goal(speedup=wanted), attempt_at(curve))
    assert abs(math.log(curve(found.ratio) / wanted)) <= NEAR
    assert not found.notes
    assert len(found.trials) <= TRIALS


def test_noise_of_two_per_cent_does_not_mislead() -> None:
    generator = np.random.default_rng(0)
    for wanted in (1.3, 2.0, 3.0):
        noisy = attempt_at(lambda r: ideal(r) * math.exp(generator.normal(0, 0.02)))
        found = settle(Goal(speedup=wanted), noisy)
        assert abs(math.log(ideal(found.ratio) / wanted)) < 0.1


def test_milliseconds_and_rates_are_reached() -> None:
    for goal in (Goal(latency=5.0), Goal(fps=200)):
        found = settle(goal, attempt_at(half_fixed, most=1.0 - 1e-9))
        assert found.excess > NEAR or 10 / half_fixed(found.ratio) <= 5.25
    found = settle(Goal(latency=6.0), attempt_at(half_fixed))
    assert 5.7 <= 10 / half_fixed(found.ratio) <= 6.3


def test_a_model_that_is_fast_enough_loses_nothing() -> None:
    assert settle(Goal(latency=20.0), attempt_at(ideal)).ratio == 0


def test_what_is_out_of_reach_says_the_best_and_why() -> None:
    found = settle(Goal(speedup=3), attempt_at(half_fixed, most=0.8))
    assert found.excess == pytest.approx(math.log(3 / half_fixed(0.8)))
    assert "the best is 1.67x with 80.0% removed: a wall" in found.notes[-1]


def test_the_size_is_met_without_a_clock() -> None:
    found = settle(Goal(size=400), attempt_at(ideal))
    assert 380 <= 1000 * (1 - found.ratio) <= 420


def test_the_loss_alone_gives_the_largest_ratio() -> None:
    found = settle(Goal(max_drop=0.1), attempt_at(ideal, score=lambda r: 1 - r**2))
    assert 0.28 <= found.ratio <= math.sqrt(0.1)
    assert "--max-drop 0.1 is kept up to" in found.notes[0]


def test_the_loss_holds_a_speed_up_back_and_both_are_told() -> None:
    found = settle(Goal(speedup=2, max_drop=0.1), attempt_at(ideal, score=lambda r: 1 - r**2))
    assert 0.25 <= found.ratio <= math.sqrt(0.1)
    assert found.excess == pytest.approx(math.log(2 / ideal(found.ratio)))
    assert any("out of reach" in note for note in found.notes)


def test_a_loss_within_bounds_changes_nothing() -> None:
    free = settle(Goal(speedup=2), attempt_at(ideal))
    held = settle(Goal(speedup=2, max_drop=0.9), attempt_at(ideal, score=lambda r: 1 - r**2))
    assert held.ratio == free.ratio


INT8: Family = {"quantize": "int8"}
LAYERS: Family = {"prune": ("channels", "layers")}
TOKENS: Family = {"tokens": 0.7}


@dataclass(frozen=True)
class Way:
    """A family of a model that takes 10 ms: its speed and quality in dB at ratio 0, and how both change with
    x = -ln(1 - ratio)."""

    speed: float
    quality: float
    slope: float = 0.7
    lost: float = 20.0


def among(ways: dict[str, Way], made: list[str] | None = None) -> Callable[[Family, float], Trial]:
    def attempt(family: Family, ratio: float) -> Trial:
        name = " ".join(words_of(family))
        if name not in ways:
            raise InputError(f"no {name}")
        if made is not None:
            made.append(f"{name} {ratio:.2f}")
        way, x = ways[name], -math.log1p(-ratio)
        speed, kept = way.speed * math.exp(way.slope * x), way.quality - way.lost * x
        return Trial(
            ratio, ratio, 1000, 1000, levers=family, speedup=speed, dense_ms=10.0, quality_db=kept
        )  # fmt: skip

    return attempt


def test_types_that_are_fast_enough_and_better_are_taken() -> None:
    ways = {"": Way(1.0, 40, lost=30), "int8": Way(2.2, 36)}
    found = Search(Goal(speedup=2), among(ways), [INT8, {}]).settle()
    assert found.best.levers == INT8
    assert found.ratio == 0


def test_pruning_is_taken_where_types_are_slow() -> None:
    made: list[str] = []
    ways = {"": Way(1.0, 40, lost=5), "int8": Way(0.83, 36)}
    found = Search(Goal(speedup=1.5), among(ways, made), [INT8, {}]).settle()
    assert found.best.levers == {}
    assert found.best.speedup == pytest.approx(1.5, rel=0.05)
    assert made.count("int8 0.00") == sum(name.startswith("int8") for name in made) == 1


def test_a_little_removed_from_types_that_are_almost_fast_enough() -> None:
    ways = {"": Way(1.0, 60, lost=60), "int8": Way(1.4, 36)}
    found = Search(Goal(speedup=1.7), among(ways), [INT8, {}]).settle()
    assert found.best.levers == INT8
    assert 0.2 < found.ratio < 0.3


def test_speed_that_nobody_asked_for_is_given_back_for_quality() -> None:
    ways = {"": Way(1.0, 40, lost=60), "int8": Way(2.2, 25), "mixed": Way(1.55, 33)}
    search = Search(Goal(speedup=1.5), among(ways), [INT8, {}], finer=lambda _: {"quantize": "mixed"})
    assert search.settle().best.levers == {"quantize": "mixed"}
    search = Search(Goal(speedup=2.2), among(ways), [INT8, {}], finer=lambda _: {"quantize": "mixed"})
    assert search.settle().best.levers == INT8


def test_layers_and_tokens_join_the_best_so_far() -> None:
    ways = {
        "": Way(1.0, 40, lost=30),
        "int8": Way(1.5, 36, lost=20),
        "int8 layers": Way(1.5, 36, slope=1.0, lost=12),
        "int8 layers tokens 0.7": Way(1.9, 30, slope=1.0, lost=12),
    }
    found = Search(Goal(speedup=2), among(ways), [INT8, {}], [LAYERS, TOKENS]).settle()
    assert found.best.levers == {**INT8, **LAYERS}
    assert found.best.speedup == pytest.approx(2, rel=0.05)
    assert len(found.trials) <= MOST


def test_where_what_is_fast_enough_loses_too_much_the_nearest_of_any_family_is_taken() -> None:
    ways = {"": Way(1.0, 40, lost=100), "int8": Way(1.6, 22), "mixed": Way(1.45, 30)}
    search = Search(Goal(speedup=1.6, min_quality=25.0), among(ways), [INT8, {}])
    search.trials.append(among(ways)({"quantize": "mixed"}, 0.0))
    found = search.settle()
    assert found.best.levers == {"quantize": "mixed"}
    assert found.excess == pytest.approx(math.log(1.6 / 1.45))


def test_a_family_that_has_no_model_is_named_and_left_out() -> None:
    search = Search(Goal(speedup=1.5), among({"": Way(1.0, 40)}), [INT8, {}])
    assert search.settle().best.levers == {}
    assert search.refused == ["no int8"]


def test_when_time_is_over_what_meets_the_goal_is_taken() -> None:
    made: list[str] = []
    ways = {"": Way(1.0, 90, lost=1), "int8": Way(2.2, 36)}
    found = Search(Goal(speedup=2), among(ways, made), [INT8, {}], is_over=lambda: True).settle()
    assert made == ["int8 0.00"]
    assert found.best.levers == INT8
    slow = {"": Way(1.0, 90, lost=1), "int8": Way(1.2, 36)}
    found = Search(Goal(speedup=2), among(slow), [INT8, {}], is_over=lambda: True).settle()
    assert found.best.speedup == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("ways", "levers"),
    [
        ({"": Way(1.0, 40, lost=30), "int8": Way(2.0, 36)}, INT8),
        ({"": Way(1.0, 40, lost=5), "int8": Way(2.0, 24)}, {}),
    ],
)
def test_within_a_limit_the_fastest_is_taken(ways: dict[str, Way], levers: Family) -> None:
    found = Search(Goal(min_quality=25.0), among(ways), [INT8, {}]).settle()
    assert found.best.levers == levers
    assert found.best.quality_db is not None
    assert 25 <= found.best.quality_db < 27


def test_limits_watch_over_orders_and_are_goals_alone(tmp_path: Path) -> None:
    calib = str(tmp_path / "x.npz")
    assert Goal.of(CompileOptions(ratio=0.3, min_quality=20.0, calib=calib)) is None
    assert Goal.of(CompileOptions(min_quality=20.0, calib=calib)) == Goal(min_quality=20.0)
    assert Goal.of(CompileOptions(quantize="int8", speedup=2.0)) == Goal(speedup=2.0)
    pulled = CompileOptions(speedup=2.0, min_quality=20.0, calib=calib).pulled(0.25, INT8)
    assert (pulled.ratio, pulled.quantize, pulled.speedup, pulled.min_quality) == (0.25, "int8", None, 20.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"speedup": 2.0, "ratio": 0.5}, "different budgets"),
        ({"speedup": 2.0, "fps": 3.0}, "different budgets"),
        ({"speedup": 2.0, "measure": False}, "no-measure"),
        ({"max_drop": 0.1}, "--eval"),
        ({"speedup": 0.5}, "--speedup: '0.5' is not a speed-up above 1"),
        ({"latency": math.nan}, "--latency: nan is no finite number"),
    ],
)
def test_goals_that_make_no_sense_are_refused(given: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Goal.of(CompileOptions.of(given))


def test_the_final_measurement_judges() -> None:
    goal = {"asked": {"speedup": 2.0}}
    latency = {"speedup": {"estimate": 1.97}, "before_ms": {"p50": 4.0}}
    sizes = {"before": 10, "after": 5}
    assert judge(goal, {"latency": latency, "bytes": sizes})["met"]
    latency["speedup"] = {"estimate": 1.8}
    assert not judge(goal, {"latency": latency, "bytes": sizes})["met"]


def perceptron(path: Path, width: int = 512, layers: int = 4) -> Path:
    """Wide enough that its time is that of its products."""
    generator = np.random.default_rng(0)
    sizes = [64, *[width] * layers, 16]
    nodes, weights = [], []
    for n, (a, b) in enumerate(pairwise(sizes)):
        values = (generator.standard_normal((a, b)) / math.sqrt(a)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{n}"))
        nodes.append(helper.make_node("MatMul", [f"h{n}", f"w{n}"], [f"m{n}"], name=f"m{n}"))
        nodes.append(helper.make_node("Relu", [f"m{n}"], [f"h{n + 1}"], name=f"r{n}"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, [32, 64])],
        [helper.make_tensor_value_info(f"h{len(sizes) - 1}", TensorProto.FLOAT, [32, 16])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_compile_reaches_a_speed_up_and_reports_every_trial(tmp_path: Path) -> None:
    made = sparsecc.compile(perceptron(tmp_path / "m.onnx"), speedup=2.0, output=tmp_path / "out")
    goal, trials = made.report["goal"], made.report["trials"]
    assert goal["asked"] == {"speedup": 2.0}
    assert 1 <= len(trials) <= TRIALS
    assert abs(math.log(trials[-1]["speedup"] / 2)) < 0.25
    assert 1.6 < made.report["latency"]["speedup"]["estimate"] < 2.5
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "speedup" not in recipe
    assert "ratio: 0." in recipe


def test_a_compile_meets_a_size(tmp_path: Path) -> None:
    source = perceptron(tmp_path / "m.onnx", width=128)
    wanted = source.stat().st_size // 2
    made = sparsecc.compile(source, size=wanted, measure=False, output=tmp_path / "out")
    assert made.report["goal"]["met"]
    assert made.report["after"]["bytes"] <= wanted * 1.05


def test_what_cannot_be_reached_writes_nothing(tmp_path: Path) -> None:
    source = perceptron(tmp_path / "m.onnx", width=64, layers=1)
    with pytest.raises(GoalError, match=r"--size 100 is out of reach: the best is [\d,]+ bytes"):
        sparsecc.compile(source, size=100, measure=False, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compile_meets_a_memory(tmp_path: Path) -> None:
    source = perceptron(tmp_path / "wide.onnx", 1024, 6)
    dense = footprint(source, {"h0": np.zeros((32, 64), np.float32)}).model_memory_bytes
    made = sparsecc.compile(source, footprint=0.6 * dense, output=tmp_path / "out")
    report = made.report
    assert report["goal"]["met"]
    assert report["after"]["memory_bytes"] < 0.66 * report["before"]["memory_bytes"]
    assert report["after"]["memory_bytes"] == report["footprint"]["after"]["model_memory_bytes"]
    assert all("memory" in trial for trial in report["trials"])
    assert "footprint" not in (tmp_path / "out" / "recipe.yaml").read_text()


def test_memory_is_a_goal_of_its_own() -> None:
    goal = Goal(footprint=100.0)
    assert goal.has_target
    assert goal.words() == "--footprint 100"
    trial = Trial(0.5, 0.5, 10, 20, memory=200, dense_memory=400)
    assert goal.excess(trial) == pytest.approx(math.log(2))
    assert goal.excess_of_dense(trial) == pytest.approx(math.log(4))
    with pytest.raises(InputError, match="--footprint needs the measurement"):
        Goal.of(CompileOptions(footprint=100.0, measure=False))
    with pytest.raises(InputError, match="--footprint is measured on this machine"):
        Goal.of(CompileOptions(footprint=100.0, device="ssh://pi@board"))


def test_with_samples_types_are_tried_first_and_what_was_chosen_is_in_the_recipe(tmp_path: Path) -> None:
    source = perceptron(tmp_path / "m.onnx", layers=3)
    samples = np.random.default_rng(1).standard_normal((24, 32, 64)).astype(np.float32)
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, one in enumerate(samples):
        np.savez(folder / f"{number:02}.npz", h0=one)
    made = sparsecc.compile(source, min_quality=20.0, calib=folder, budget=0.001, output=tmp_path / "out")
    trials, chosen = made.report["trials"], made.report["chosen"]
    assert trials[0]["levers"] == {"quantize": "int8"}
    assert all(trial["speedup"] > 0 and trial["quality_db"] > -50 for trial in trials)
    assert any(t["ratio"] == chosen["ratio"] and t.get("levers", {}) == chosen["levers"] for t in trials)
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["ratio"] == chosen["ratio"]
    is_integer = "quantize" in chosen["levers"]
    assert recipe.get("quantize") == ("int8!" if is_integer else None)
    assert made.report["asked"]["quantize"] == recipe.get("quantize"), "what a trial timed is not timed again"
    assert recipe["min_quality"] == 20.0
    assert made.report["fidelity"]["worst"]["quality_db"] >= 20
    rows = trial_rows(made.report)
    assert [row[3] for row in rows].count("chosen") == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What was tried" in page
    assert page.count("<circle") >= min(2, len(trials))


def test_a_size_is_met_in_eight_bits_before_anything_is_removed(tmp_path: Path) -> None:
    source, samples = perceptron(tmp_path / "m.onnx", layers=2), tmp_path / "samples"
    samples.mkdir()
    for number, one in enumerate(np.random.default_rng(1).standard_normal((20, 32, 64)).astype(np.float32)):
        np.savez(samples / f"{number:02}.npz", h0=one)
    size = source.stat().st_size / 3
    made = sparsecc.compile(source, size=size, calib=samples, measure=False, output=tmp_path / "out")
    assert made.report["chosen"] == {"ratio": 0.0, "levers": {"quantize": "int8!"}}
    assert made.report["after"]["bytes"] < size

"""The search to a goal over families whose speed and loss are known: what is tried, what is taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sparsecc.decide.goal_search import MOST, TRIALS, EndedError, Family, Search, Settled
from sparsecc.decide.goals import NEAR, Goal, Trial, words_of
from sparsecc.decide.type_levers import in_part
from sparsecc.errors import InputError
from sparsecc.loss.measure import quality


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
            ratio, ratio, 1000, 1000, levers=family, speedup=speed, dense_ms=10.0, quality_db=kept,
            is_useless=kept < 8,
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


PART: Family = {"quantize": "int8", "quantize_options": {"max_drop": "0.16"}}


def test_what_is_of_no_use_is_given_up_at_once_or_mended() -> None:
    made: list[str] = []
    ways = {"": Way(1.0, 60, lost=60), "int8": Way(1.4, 2), "int8 but for the worst layers": Way(1.3, 30)}
    found = Search(Goal(speedup=1.5), among(ways, made), [INT8, {}]).settle()
    assert (found.best.levers, made.count("int8 0.00")) == ({}, 1)
    assert sum(name.startswith("int8") for name in made) == 1
    mended = Search(
        Goal(speedup=1.5), among(ways), [INT8, {}], safer=lambda t: PART if t.levers == INT8 else None
    )
    best = mended.settle().best
    assert best.levers == PART
    assert best.speedup == pytest.approx(1.5, rel=0.05)


def test_spare_speed_goes_to_the_worst_layers_first() -> None:
    made: list[str] = []
    ways = {
        "": Way(1.0, 30, lost=60),
        "int8": Way(2.2, 25),
        "int8 but for the worst layers": Way(1.8, 33),
        "mixed": Way(1.5, 31),
    }
    search = Search(
        Goal(speedup=1.5),
        among(ways, made),
        [INT8, {}],
        finer=lambda _: {"quantize": "mixed"},
        safer=lambda t: PART if t.levers == INT8 else None,
    )
    assert search.settle().best.levers == PART
    assert made[:3] == ["int8 0.00", "int8 but for the worst layers 0.00", "mixed 0.00"]
    assert made.count("int8 but for the worst layers 0.00") == 1


def test_eight_bits_in_part_that_are_faster_take_the_place_of_all() -> None:
    """Conversions that a lone layer pays for can cost more than its kernel saves."""
    made: list[str] = []
    ways = {"": Way(1.0, 30, lost=60), "int8": Way(1.25, 25), "int8 but for the worst layers": Way(1.4, 29)}
    parts = {"int8": PART}

    def settle(speedup: float) -> Settled:
        safer: Callable[[Trial], Family | None] = lambda t: parts.get(" ".join(words_of(t.levers)))  # noqa: E731
        return Search(Goal(speedup=speedup), among(ways, made), [INT8, {}], safer=safer).settle()

    assert settle(1.4).best.levers == PART
    assert made[:2] == ["int8 0.00", "int8 but for the worst layers 0.00"]
    made.clear()
    found = settle(1.6)
    assert (found.best.levers, sum(name.startswith("int8 0.") for name in made)) == (PART, 1)
    assert found.best.ratio > 0


@pytest.mark.parametrize("goal", [Goal(speedup=1.5), Goal(min_quality=20.0)])
def test_eight_bits_in_part_that_are_of_no_use_either_end_there(goal: Goal) -> None:
    """What would be safer than a part is the same part once more."""
    made: list[str] = []
    ways = {"": Way(1.0, 60, lost=20), "int8": Way(3.0, 2), "int8 but for the worst layers": Way(3.0, 3)}
    found = Search(goal, among(ways, made), [INT8, {}], safer=lambda t: PART).settle()
    assert found.best.levers == {}
    assert sum(name.startswith("int8") for name in made) == 2


@pytest.mark.parametrize("goal", [Goal(speedup=1.7), Goal(min_quality=25.0)])
def test_where_channels_are_no_lever_nothing_is_removed(goal: Goal) -> None:
    made: list[str] = []
    ways = {"": Way(1.0, 90), "int8": Way(1.4, 36), "int8 layers": Way(1.4, 36)}
    search = Search(goal, among(ways, made), [INT8], [LAYERS], keeps_all=lambda family: "prune" not in family)
    assert search.settle().best.levers in (INT8, {**INT8, **LAYERS})
    assert [name for name in made if name.startswith("int8 0.")] == ["int8 0.00"]


def test_more_layers_go_back_to_float_while_speed_is_to_spare() -> None:
    """Each part gives up 0.2x for 4 dB, until less than 8 % is to spare."""

    def part(trial: Trial) -> Family:
        step = 1 + sum(t.ratio == 0 and "quantize_options" in t.levers for t in search.trials)
        return {"quantize": "int8", "quantize_options": {"max_drop": str(step)}}

    def attempt(family: Family, ratio: float) -> Trial:
        step = int(family.get("quantize_options", {}).get("max_drop", 0))
        speed, kept = (2.2 - 0.2 * step, 25 + 4 * step) if family else (1 + ratio, 30 - 60 * ratio)
        return Trial(ratio, ratio, 1, 1, levers=family, speedup=speed, dense_ms=10.0, quality_db=kept)

    search = Search(Goal(speedup=1.7), attempt, [INT8, {}], safer=part)
    assert search.settle().best.levers["quantize_options"] == {"max_drop": "2"}  # 1.8x: 6 % is left


def test_a_score_above_the_original_is_chance() -> None:
    def trial(score: float, quality: float) -> Trial:
        return Trial(0, 0, 1, 1, score=score, dense_score=0.992, quality_db=quality)

    assert trial(0.992, 38).merit > trial(0.994, 20).merit > trial(0.990, 40).merit


def test_a_little_is_removed_from_eight_bits_in_part_where_that_loses_less() -> None:
    ways = {"": Way(1.0, 60, lost=80), "int8": Way(1.5, 25), "int8 but for the worst layers": Way(1.35, 33)}
    search = Search(
        Goal(speedup=1.5), among(ways), [INT8, {}], safer=lambda t: PART if t.levers == INT8 else None
    )
    best = search.settle().best
    assert best.levers == PART
    assert 0.1 < best.ratio < 0.2
    assert best.quality_db is not None
    assert best.quality_db > 25


def test_where_only_what_is_of_no_use_is_fast_enough_the_goal_is_out_of_reach() -> None:
    ways = {"": Way(1.0, 40, lost=200), "int8": Way(1.2, 2)}
    found = Search(Goal(speedup=1.5), among(ways), [INT8, {}]).settle()
    assert not found.best.is_useless
    assert found.excess > NEAR
    assert "--speedup 1.5 is out of reach: the nearest is ratio" in found.notes[-1]
    assert "loses too much to be of use: more samples" in found.notes[-1]


def test_what_is_held_back_of_memory_is_not_the_dense_model() -> None:
    def attempt(family: Family, ratio: float) -> Trial:
        left = int(1000 * (1 - ratio))
        return Trial(ratio, ratio, left, 1000, memory=left, dense_memory=1000, quality_db=40 - 60 * ratio)

    found = Search(Goal(footprint=500.0, min_quality=25.0), attempt).settle()
    assert 0.1 < found.ratio <= 0.25
    assert found.excess == pytest.approx(math.log(2 * (1 - found.ratio)), abs=0.01)


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


def test_a_search_that_is_late_takes_what_comes_nearest() -> None:
    made: list[str] = []
    ways = {"": Way(1.0, 90, slope=0.2), "int8": Way(1.2, 36, slope=0.2)}
    found = Search(Goal(speedup=2), among(ways, made), [INT8, {}], is_late=lambda: len(made) > 1).settle()
    assert len(made) == len(found.trials) == 2
    assert found.excess == pytest.approx(math.log(2 / max(t.speedup or 0 for t in found.trials)))


def test_a_search_that_was_ended_is_settled_by_what_was_tried() -> None:
    known = among({"": Way(1.0, 40, lost=30), "int8": Way(1.2, 36)})
    tried: list[float] = []

    def attempt(family: Family, ratio: float) -> Trial:
        if len(tried) == 2:
            raise EndedError("ended")
        tried.append(ratio)
        return known(family, ratio)

    found = Search(Goal(speedup=2), attempt, [INT8, {}]).settle()
    assert (found.best.levers, found.ratio) == (INT8, tried[-1])
    assert len(found.trials) == 2
    with pytest.raises(EndedError, match="ended"):
        Search(Goal(speedup=2), attempt, [INT8, {}]).settle()


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


def test_what_loses_nothing_has_no_part_that_loses_less() -> None:
    whole = Trial(0.0, 0.0, 1, 1, levers={"quantize": "int8"}, quality_db=25.0)
    assert in_part(Goal(), whole) == {**whole.levers, "quantize_options": {"max_drop": "0.00158"}}
    assert in_part(Goal(), replace(whole, quality_db=quality(0.0))) is None

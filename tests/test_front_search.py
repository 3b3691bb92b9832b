"""The search for the whole front over ways whose speed and loss are known: which points it wants, wave by wave."""

from __future__ import annotations

import math

from sparsecc.decide.front_search import RATIOS, FrontSearch, Point
from sparsecc.decide.goal_search import Family
from sparsecc.decide.goals import Trial, words_of

INT8: Family = {"quantize": "int8"}
Ways = dict[str, tuple[float, float, float]]
"""Levers -> (speed and quality in dB where nothing is removed, dB lost by x = -ln(1 - ratio))."""


def made(search: FrontSearch, ways: Ways) -> list[list[str]]:
    """The waves of a search, whose points are made as `ways` says; a way that is not there cannot be made."""
    waves = []
    for wave in search.waves():
        waves.append([name_of(point) for point in wave])
        for family, ratio in wave:
            name, x = " ".join(words_of(family)), -math.log1p(-ratio)
            if name.startswith("mixed"):
                speed = float(family["quantize_options"]["speedup"])
                search.trials.append(Trial(ratio, 0, 1, 1, levers=family, speedup=speed, quality_db=45.0))
            elif name in ways:
                speed, quality, lost = ways[name]
                kept = quality - lost * x
                search.trials.append(
                    Trial(
                        ratio,
                        ratio,
                        1,
                        1,
                        levers=family,
                        speedup=speed * math.exp(0.8 * x),
                        quality_db=kept,
                        is_useless=kept < 8,
                    )
                )
    return waves


def name_of(point: Point) -> str:
    family, ratio = point
    return " ".join([*words_of(family), f"{ratio:g}"])


GOOD: Ways = {"": (1.0, 40, 20), "int8": (2.0, 35, 20), "int8 but for the worst layers": (1.7, 42, 20)}


def test_types_come_first_then_removal_from_what_is_fast() -> None:
    waves = made(FrontSearch([INT8, {}], rounds=0, times_types=True), GOOD)
    assert waves[0] == ["int8 0"]
    assert waves[1] == ["int8 but for the worst layers 0", "mixed 0", "0.2", "0.5"]
    assert set(waves[2]) == {
        "0.35", "0.65", "int8 0.2", "int8 0.35", "int8 but for the worst layers 0.2",
        "int8 but for the worst layers 0.35",
    }  # fmt: skip
    assert {"int8 0.5", "int8 0.65"} <= set(waves[3])


def test_types_that_do_not_pay_are_left_after_one_point() -> None:
    waves = made(FrontSearch([INT8, {}], rounds=0), {"": (1.0, 40, 20), "int8": (0.9, 35, 20)})
    assert [name for wave in waves for name in wave if name.startswith("int8")] == [
        "int8 0",
        "int8 but for the worst layers 0",
    ]


def test_what_is_of_no_use_goes_no_further() -> None:
    waves = made(FrontSearch([{}], rounds=0), {"": (1.0, 20, 40)})
    assert [name for wave in waves for name in wave] == ["0.2", "0.5"]
    waves = made(FrontSearch([{}], rounds=0), {"": (1.0, 20, 5)})
    assert sorted(name for wave in waves for name in wave) == [f"{ratio:g}" for ratio in RATIOS]


def test_layers_join_the_fastest_that_is_of_use() -> None:
    search = FrontSearch([INT8, {}], [{"prune": ("channels", "layers")}, {"tokens": 0.7}], rounds=0)
    waves = made(search, {**GOOD, "tokens 0.7": (1.2, 30, 20)})
    assert waves[0] == ["int8 0", "tokens 0.7 0"]
    assert {"int8 layers 0.2", "int8 tokens 0.7 0.2"} <= set(waves[3])


def test_without_channels_nothing_goes_but_layers() -> None:
    search = FrontSearch([INT8], [{"prune": ("layers",)}], rounds=1, removes=False)
    names = [name for wave in made(search, {**GOOD, "int8 layers": (2.0, 35, 30)}) for name in wave]
    assert names[:2] == ["int8 0", "int8 but for the worst layers 0"]
    assert len(names) > 2
    assert all("layers" in name for name in names[2:])


def test_ordered_ratios_are_all_that_is_made_of_every_way() -> None:
    search = FrontSearch([INT8, {}, {"criterion": "l1"}], [{"tokens": 0.7}], (0.0, 0.2, 0.5), rounds=0)
    assert made(search, GOOD) == [
        ["int8 0", "int8 0.2", "0.2", "criterion l1 0.2", "int8 0.5", "0.5", "criterion l1 0.5"]
    ]
    assert made(FrontSearch([{}], ratios=(0.0,), rounds=0), GOOD) == [["0"]]


def test_new_points_lie_between_neighbours_on_the_front() -> None:
    search = FrontSearch([{}], ratios=(0.2, 0.6), rounds=1)
    _, new = made(search, {"": (1.0, 40, 20)})
    assert len(new) == 2  # between the original and 0.2, and between 0.2 and 0.6
    ratios = sorted(float(name) for name in new)
    assert 0.09 < ratios[0] < 0.12
    assert 0.4 < ratios[1] < 0.46


def test_between_types_and_float_there_are_types_by_speed() -> None:
    search = FrontSearch([INT8], ratios=(0.0,), rounds=1, times_types=True)
    assert made(search, {"int8": (2.0, 35, 20)}) == [["int8 0"], ["mixed 0"]]
    assert search.trials[-1].speedup is not None
    assert math.isclose(search.trials[-1].speedup, math.sqrt(2), rel_tol=1e-3)

"""Types under a speed: what is chosen is fast enough by the whole model's time, and loses little."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.errors import GoalError, InputError
from sparsecc.measure.statistics import LogRatio
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.mixed_speed import choose_within_time, require_reach
from sparsecc.plan import Plan
from tests.compilations import compilation
from tests.quantize_models import feeds_for, transformer

LAYERS = st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0.01, 0.15)), min_size=1, max_size=6)
"""Per layer: what int8 loses, and what it saves of the float model's time."""


class Machine:
    """A model in which every conversion between float and int8 neighbours costs `toll`, and float layers hinder each
    other: `crowd` times the square of their number."""

    def __init__(self, layers: list[tuple[float, float]], toll: float = 0.0, crowd: float = 0.0) -> None:
        self.saved = {str(i): saved for i, (_, saved) in enumerate(layers)}
        self.losses = {str(i): {"float": 0.0, "int8": loss} for i, (loss, _) in enumerate(layers)}
        self.base = dict.fromkeys(self.losses, "int8")
        self.toll, self.crowd = toll, crowd

    def time(self, choice: Mapping[str, str]) -> float:
        forms = ["float", *choice.values(), "float"]
        tolls = sum(self.toll for a, b in itertools.pairwise(forms) if a != b)
        crowd = self.crowd * forms[1:-1].count("float") ** 2
        return 1 + tolls + crowd - sum(self.saved[name] for name, form in choice.items() if form == "int8")

    def loss(self, choice: Mapping[str, str]) -> float:
        return sum(self.losses[name][form] for name, form in choice.items())

    def chosen(self, speedup: float) -> dict[str, str]:
        saved = sum(self.saved.values())
        shares = {name: one / saved for name, one in self.saved.items()}
        times = {"float": self.time(dict.fromkeys(self.losses, "float")), "int8": self.fastest}
        return choose_within_time(
            self.losses, shares, times, self.base, self.time, speedup, lambda share: None
        )

    @property
    def fastest(self) -> float:
        return self.time(self.base)


@settings(max_examples=100)
@given(LAYERS, st.floats(0, 0.02), st.floats(0, 0.02), st.floats(1, 1.6))
def test_the_choice_is_fast_enough_and_loses_no_more_than_the_fastest(
    layers: list[tuple[float, float]], toll: float, crowd: float, speedup: float
) -> None:
    machine = Machine(layers, toll, crowd)
    choice = machine.chosen(speedup)
    assert machine.time(choice) <= max(1 / speedup, machine.fastest) + 1e-9
    assert machine.loss(choice) <= machine.loss(machine.base)


def test_a_speed_is_refused_only_where_the_whole_interval_is_too_slow() -> None:
    """A reading says 1.8 to 2.1 times: twice as fast may be in reach, 2.2 times is not."""
    fastest = LogRatio(-math.log(1.95), -math.log(2.1), -math.log(1.8))
    require_reach(fastest, 2.0)
    with pytest.raises(
        GoalError, match=r"2\.2 times as fast is out of reach by types alone, the fastest gives 1\.95"
    ):
        require_reach(fastest, 2.2)


def test_noise_keeps_no_layer_from_going_back() -> None:
    """Sixty layers, each reading off by more than what one of them takes: half of the time that they save is left."""
    machine = Machine([(0.01 + n / 1000, 0.01) for n in range(60)])
    exact, noise = machine.time, np.random.default_rng(0)
    machine.time = lambda choice: exact(choice) + noise.uniform(0, 0.01)  # type: ignore[method-assign]
    choice = machine.chosen(1 / 0.7)
    assert 20 <= list(choice.values()).count("float") <= 31


def test_where_layers_take_longer_together_fewer_stay_in_float() -> None:
    """Alone each takes 0.12 more and two would fit, together they do not."""
    machine = Machine([(1.0, 0.1)] * 6, crowd=0.02)
    choice = machine.chosen(1 / 0.66)
    assert list(choice.values()).count("float") == 1


@settings(max_examples=100)
@given(LAYERS, st.floats(1, 1.3))
def test_where_times_add_up_nothing_better_is_left(layers: list[tuple[float, float]], speedup: float) -> None:
    machine = Machine(layers)
    if machine.fastest > 1 / speedup:
        return
    tried = [
        dict(zip(machine.losses, forms, strict=True))
        for forms in itertools.product(("float", "int8"), repeat=len(layers))
    ]
    room = 1 / speedup - machine.fastest
    rounded = len(layers) * room / 2000  # costs are rounded up to a 2000th of the room
    best = min(machine.loss(c) for c in tried if machine.time(c) <= 1 / speedup - rounded - 1e-9)
    assert machine.loss(machine.chosen(speedup)) <= best + 1e-9


@pytest.mark.parametrize(("speedup", "in_float"), [(0.2, True), (50.0, False)])
def test_a_real_model(speedup: float, in_float: bool, tmp_path: Path) -> None:
    """At a fifth of the speed all may stay in float; fifty times as fast no type makes it."""
    model = transformer()
    given = compilation(feeds=[feeds_for(model)], folder=tmp_path)
    quantize = Quantize(type="mixed", speedup=speedup, types=("int8",))
    if not in_float:
        with pytest.raises(GoalError, match="out of reach by types alone, the fastest gives"):
            quantize.run(model, Plan({}), given)
        return
    facts = quantize.run(model, Plan({}), given).facts
    assert set(facts["types"].values()) == {"float"}
    assert facts["error"] < 1e-12
    assert facts["speedup"]["ci95"][0] > speedup
    assert facts["uniform"]["int8"]["time"] > 0


@pytest.mark.parametrize(
    ("options", "target", "measure", "message"),
    [
        ({"speedup": 2.0, "size": 1e6}, "onnxruntime", True, "one budget"),
        ({"speedup": 2.0}, "onnxruntime", False, "timed on this machine"),
        ({"speedup": 2.0}, "tensorrt", True, "timed on this machine"),
        ({}, "onnxruntime", True, "speedup=2"),
        ({"layers": ("a=int8",), "size": 1e6}, "onnxruntime", True, "layers says the types by hand"),
        ({"speedup": 0.0}, "onnxruntime", True, "speedup 0 is none"),
    ],
)
def test_what_cannot_be_asked(
    options: dict[str, Any], target: str, measure: bool, message: str, tmp_path: Path
) -> None:
    model = transformer()
    given = compilation(target, [feeds_for(model)], tmp_path, measure=measure)
    with pytest.raises(InputError, match=message):
        Quantize(type="mixed", **options).run(model, Plan({}), given)

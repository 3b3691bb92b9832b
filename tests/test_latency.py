"""The table of this machine: interpolation, cliffs, cache; the cost model against a pruned model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sparsecc.cost.latency import latency_model, place, profile_kernels
from sparsecc.cost.latency_table import LatencyTable, Staircase
from sparsecc.cost.shape_class import ShapeClass, steps, timing_model
from sparsecc.decide.channels import choose
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.system.cache import Cache
from tests.compilations import compilation

DIGITS = Path(__file__).resolve().parent.parent / "models" / "digits_resnet.onnx"
CONV = ShapeClass("Conv", 32, 48, (1, 8, 8), (3, 3), (("pads", (1, 1, 1, 1)),))


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    return LatencyTable(cache=Cache(tmp_path / "cache"))


def test_between_the_counts_the_mean_and_beyond_them_in_proportion() -> None:
    told = Staircase((8, 16), (8, 24), ((1.0, 3.0), (2.0, 6.0)))
    assert told.at(8, 8) == 1.0
    assert told.at(16, 24) == 6.0
    assert told.at(12, 16) == pytest.approx(3.0)
    assert told.at(4, 8) == pytest.approx(0.5)
    assert told.at(16, 48) == pytest.approx(12.0)


def test_a_count_beside_the_fast_path_pays_the_cliff() -> None:
    told = Staircase((8, 16), (8,), ((1.0,), (2.0,)), cliff=1.5)
    assert told.at(12, 8) == pytest.approx(1.5)
    assert told.at(13, 8) == pytest.approx(1.625 * 1.5)


@pytest.mark.parametrize(
    ("size", "counts"), [(3, [3]), (16, [4, 8, 12, 16]), (64, [8, 16, 24, 32, 40, 48, 56, 64])]
)
def test_narrow_layers_are_timed_at_every_kernel_step(size: int, counts: list[int]) -> None:
    assert steps(size) == counts


def test_wide_layers_are_timed_at_eight_places_at_most() -> None:
    for size in (100, 256, 1000, 4096):
        assert len(steps(size)) <= 9
        assert steps(size)[-1] == size


def test_every_point_of_a_class_runs(table: LatencyTable) -> None:
    for one in (
        CONV,
        ShapeClass("Depthwise", 32, 32, (1, 8, 8), (3, 3)),
        ShapeClass("Grouped", 32, 64, (1, 8, 8), (3, 3), groups=4),
        ShapeClass("MatMul", 64, 32, (16,)),
        ShapeClass("MatMul", 64, 32, (16,), constant=False),
    ):
        a, b = one.grid()
        model, feeds = timing_model(one, [(a[0], b[0]), (a[-1], b[-1])])
        assert len(model.graph.node) == 2
        assert feeds
        assert all(t > 0.001 for t in table.times(one, [(a[-1], b[-1])], 2)[:1])


def test_what_was_measured_is_kept_for_the_next_run(table: LatencyTable) -> None:
    table.learn([CONV, CONV])
    assert table.measured == 1
    again = LatencyTable(cache=table.cache)
    again.learn([CONV])
    assert again.measured == 0
    assert again.staircase(CONV) == table.staircase(CONV)
    other = LatencyTable(threads=2, cache=table.cache)
    assert other.key("x") != table.key("x")


def test_more_channels_take_longer(table: LatencyTable) -> None:
    one = ShapeClass("MatMul", 256, 256, (64,))
    table.learn([one])
    assert table.ms(one, 256, 256) > 1.5 * table.ms(one, 64, 128)


def test_the_model_of_a_network_foretells_the_pruned_one(table: LatencyTable) -> None:
    analysis = analyse(normalise(load_ir(DIGITS)))
    assert {place(analysis, node).one.op for node in analysis.record.macs if place(analysis, node)} <= {  # type: ignore[union-attr]
        "Conv",
        "Depthwise",
        "Grouped",
        "MatMul",
    }
    cost = latency_model(analysis, table)
    dense = math.fsum(ms for _, _, ms in profile_kernels(analysis, 1))
    assert cost.unit == "ms"
    assert cost.total({}) == pytest.approx(dense, rel=0.35)
    choice = choose(compilation(), analysis, find_groups(analysis), 0.6)
    kept = {atom: int(slots.sum()) for atom, slots in choice.keep.items()}
    told = cost.total({}) / cost.total(kept)
    remove(analysis, choice.keep)
    small = math.fsum(ms for _, _, ms in profile_kernels(analyse(analysis.model), 1))
    assert told == pytest.approx(dense / small, rel=0.3)


def test_a_budget_of_milliseconds_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    analysis = analyse(normalise(load_ir(DIGITS)))
    choice = choose(compilation(metric="latency"), analysis, find_groups(analysis), 0.3)
    assert choice.reached
    assert 0.3 <= choice.removed < 0.45

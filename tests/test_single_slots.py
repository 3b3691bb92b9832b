"""Constant picks in any order leave slots that may go one by one; shares are told as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsecc import api
from sparsecc.axes.algebra import Atom, Run, Space, atoms_of, cat, mask
from sparsecc.axes.counting import count
from sparsecc.axes.owners import owners_of
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.repair_models import normal
from tests.rule_checks import check
from tests.test_loading import saved

SHUFFLE = np.random.default_rng(0).permutation(16)
OTHER = np.random.default_rng(1).permutation(16)
HEAD = """<ir_version: 8, opset_import: ["" : 17]>
"""


def sizes(path: Path) -> list[int]:
    """Sizes of the free groups."""
    return sorted(g.size for g in find_groups(analyse(normalise(load_ir(path)))) if g.is_free)


def convolutions(path: Path, between: str, last: int = 16, **more: np.ndarray) -> Path:
    """3 -> 16 -> 4 channels, with something between the two convolutions."""
    text = f"""g (float[1,3,5,5] x) => (float[1,4,5,5] y) {{ h = Conv(x, w1) {between} y = Conv(r, w2) }}"""
    w1, w2 = normal(16, 3, 1, 1), normal(4, last, 1, 1, seed=2)
    return saved(path, HEAD + text, w1=w1, w2=w2, **more)


def test_a_permutation_leaves_every_slot_free(tmp_path: Path) -> None:
    path = convolutions(tmp_path / "m.onnx", "g = Gather<axis=1>(h, p) r = Relu(g)", p=SHUFFLE)
    assert sizes(path) == [16]
    plan = compiled_plan(path, tmp_path)
    kept = plan["w1"]["0"]["keep"]
    assert len(kept) == 8
    assert sorted(int(SHUFFLE[i]) for i in plan["w2"]["1"]["keep"]) == kept


def compiled_plan(path: Path, folder: Path) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Which slots stay at half of the channels; the surgery is proved."""
    made = api.compile(path, output=folder / "out", measure=False, ratio=0.5, metric="channels", align=1)
    assert made.report["verification"]["status"] == "proved"
    found: dict[str, dict[str, dict[str, list[int]]]] = made.plan["tensors"]
    return found


def test_what_is_selected_and_what_is_not_are_unlike(tmp_path: Path) -> None:
    """6 of 16 channels are read by one convolution, all by another: two kinds of slots."""
    between = "g = Gather<axis=1>(h, s) k = Conv(g, w3) t = Relu(h) r = Concat<axis=1>(k, t)"
    chosen = np.array([1, 4, 5, 9, 11, 14])
    path = convolutions(tmp_path / "m.onnx", between, last=22, s=chosen, w3=normal(6, 6, 1, 1, seed=3))
    assert sizes(path) == [6, 6, 10]
    compiled_plan(path, tmp_path)


def test_two_orders_of_the_same_slots_meet(tmp_path: Path) -> None:
    """Slot by slot the sum ties single slots of either branch: it must not take them for broadcast axes."""
    between = "a = Gather<axis=1>(h, p) g = Conv(x, w3) b = Gather<axis=1>(g, q) c = Add(a, b) r = Relu(c)"
    path = convolutions(tmp_path / "m.onnx", between, p=SHUFFLE, q=OTHER, w3=normal(16, 3, 1, 1, seed=3))
    assert sizes(path) == [16]
    plan = compiled_plan(path, tmp_path)
    first, second = (set(plan[name]["0"]["keep"]) for name in ("w1", "w3"))
    assert {i for i in range(16) if SHUFFLE[i] in first} == {i for i in range(16) if OTHER[i] in second}


def test_an_assignment_to_constant_slots_frees_both_sides(tmp_path: Path) -> None:
    """x[:, [0, 1, 2, 3]] = conv(x[:, :4]), as a ScatterND between two transposes."""
    between = """s = Slice(h, zero, four, one) k = Conv(s, w3) ht = Transpose<perm=[1,0,2,3]>(h)
        kt = Transpose<perm=[1,0,2,3]>(k) st = ScatterND(ht, places, kt) b = Transpose<perm=[1,0,2,3]>(st)
        r = Relu(b)"""
    path = convolutions(
        tmp_path / "m.onnx", between, w3=normal(4, 4, 1, 1, seed=3), places=np.arange(4)[:, None],
        zero=np.array([0]), four=np.array([4]), one=np.array([1]),
    )  # fmt: skip
    assert sizes(path) == [4, 12]
    compiled_plan(path, tmp_path)


@pytest.mark.parametrize(("places", "free"), [([[7], [2], [5]], True), ([[7], [2], [7]], False)])
def test_slots_written_once_follow_what_is_written(places: list[list[int]], free: bool) -> None:
    text = f"""(float[6, N] x, float[12, 6] w1, float[3, 6] w2, float[4, 12] w3) => (float y)
        <int64[3, 1] i = {{{", ".join(str(row[0]) for row in places)}}}> {{
        h = MatMul(w1, x) g = MatMul(w2, x) a = ScatterND(h, i, g) y = MatMul(w3, a) }}"""
    check(text, "w1:0 w2:0 w3:1" if free else "")


def grid(*places: np.ndarray) -> np.ndarray:
    """All combinations of places, as exporters write them for an assignment to a slice."""
    return np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)


EVERY = np.arange(5)


@pytest.mark.parametrize(
    ("channels", "free"),
    [(np.arange(4), [4, 12]), (np.arange(0, 16, 2), [8]), (SHUFFLE[:6], [6, 10]), (np.array([3]), [])],
    ids=["a slice", "a stride", "any", "one"],
)
def test_an_assignment_over_all_axes_frees_what_it_leaves(
    tmp_path: Path, channels: np.ndarray, free: list[int]
) -> None:
    """x[:, channels] = conv(x) written as one ScatterND with places in all four axes."""
    between = "k = Conv(x, w3) s = ScatterND(h, places, k) r = Relu(s)"
    path = convolutions(
        tmp_path / "m.onnx", between, w3=normal(len(channels), 3, 1, 1, seed=3),
        places=grid(np.arange(1), channels, EVERY, EVERY),
    )  # fmt: skip
    assert sizes(path) == free
    if free:
        compiled_plan(path, tmp_path)


@pytest.mark.parametrize(
    ("places", "free"),
    [
        (grid(np.arange(1), SHUFFLE, EVERY, EVERY), [16]),
        (grid(np.arange(1), np.arange(4), EVERY, EVERY), [4, 12]),
    ],
    ids=["a permutation", "a slice"],
)
def test_a_pick_over_all_axes_frees_what_it_leaves(
    tmp_path: Path, places: np.ndarray, free: list[int]
) -> None:
    between = "g = GatherND(h, places) r = Relu(g)"
    path = convolutions(tmp_path / "m.onnx", between, last=places.shape[1], places=places)
    assert sizes(path) == free
    compiled_plan(path, tmp_path)


def test_places_on_a_diagonal_are_no_product(tmp_path: Path) -> None:
    step = np.arange(5)
    places = np.stack([np.zeros_like(step), step, step, step], axis=-1)
    between = "g = GatherND(h, places) u = Unsqueeze(g, axes) e = Relu(u) r = Add(h, e)"
    path = convolutions(tmp_path / "m.onnx", between, places=places, axes=np.array([0, 1, 2]))
    assert sizes(path) == []


def test_the_share_that_can_go_is_that_of_the_slots(tmp_path: Path) -> None:
    """2 of 16 channels come from a pick that is followed, the others are an output."""
    text = """g (float[1,3,5,5] x) => (float[1,14,5,5] o, float[1,4,5,5] y) {
        h = Conv(x, w1) o = Slice(h, two, all, one) k = Slice(h, zero, two, one) y = Conv(k, w2) }"""
    path = saved(
        tmp_path / "m.onnx", HEAD + text, w1=normal(16, 3, 1, 1), w2=normal(4, 2, 1, 1), zero=np.array([0]),
        two=np.array([2]), all=np.array([16]), one=np.array([1]),
    )  # fmt: skip
    share = api.inspect(path)["prunable"]["params_share"]
    assert share == pytest.approx((48 * 2 / 16 + 8) / 56)


def test_runs_count_and_mask_like_the_slots_they_are() -> None:
    whole = Atom(5)
    space, x = Space(), Atom(5)
    pieces = space.pieces(x, [1, 3, 1])
    assert pieces is not None
    shuffled = cat([pieces[2], pieces[0], pieces[1]])
    for piece, start in zip(pieces, (0, 1, 4), strict=True):
        assert isinstance(piece, Atom)
        piece.bound = Run(whole, start, piece.size)  # type: ignore[arg-type]
    keep = {whole: np.array([True, False, True, True, False])}
    assert atoms_of(shuffled) == [whole]
    assert count(x, {whole: 3}) == count(shuffled, {whole: 3}) == 3
    np.testing.assert_array_equal(mask(shuffled, keep), [False, True, False, True, True])
    np.testing.assert_array_equal(owners_of(shuffled, whole), [4, 0, 1, 2, 3])

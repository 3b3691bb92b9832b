"""Repair of a weight that several layers read: one solution for what all of them are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.reconstruct.shared import sharers_of, side_by_side
from sparsecc.runtime.session import open_session
from tests.repair_models import analysed, normal
from tests.test_reconstruct import ROWS, mended

HEADS = """g (float[n,4,8,8] x) => (float[n,3,8,8] y, float[n,3,4,4] z) {
  b = Conv<pads=[1,1,1,1]>(x, w0) h = Relu(b) k = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)
  p = Conv(h, w1, b1) q = Relu(p) y = Conv<pads=[1,1,1,1]>(q, w2, b2)
  r = Conv(k, w1, b1) s = Relu(r) z = Conv<pads=[1,1,1,1]>(s, w2, b2) }"""
"""A head of two layers over two levels."""

UNROLLED = """g (float[n,32] x) => (float[n,32] y) {
  a = Gemm(x, w1) h = Relu(a) c = Gemm(h, w2) d = Gemm(c, w1) e = Relu(d) y = Gemm(e, w2) }"""
"""The same two layers twice, one after the other."""


def heads(text: str = HEADS, duplicate: bool = False) -> Analysis:
    """With `duplicate`, the first two channels that both levels read do the same."""
    w0 = normal(6, 4, 3, 3)
    if duplicate:
        w0[1] = w0[0]
    weights = {"w0": w0, "w1": normal(8, 6, 1, 1, seed=1), "w2": normal(3, 8, 3, 3, seed=2)}
    biases = {"b1": normal(8, seed=3), "b2": normal(3, seed=4), "b3": normal(8, seed=5)}
    return analysed(text, weights | {name: b for name, b in biases.items() if name in text})


def unrolled() -> Analysis:
    return analysed(UNROLLED, {"w1": normal(32, 40, seed=1), "w2": normal(40, 32, seed=3)})


def errors(model: ir.Model, dense: ir.Model, feeds: dict[str, np.ndarray]) -> list[float]:
    """Mean squared differences of the outputs, relative to the dense ones' variance."""
    wanted, found = (open_session(m, level="none").run(feeds) for m in (dense, model))
    return [float(((found[n] - wanted[n]) ** 2).mean() / wanted[n].var()) for n in wanted]


def compared(
    analysis: Analysis, slots: list[int], feeds: dict[str, np.ndarray], folder: Path
) -> tuple[list[float], list[float]]:
    """The errors without these slots of the first free group: unrepaired, and repaired."""
    dense, plain = analysis.model.clone(), analyse(analysis.model.clone())
    group = next(g for g in find_groups(plain) if g.is_free)
    remove(plain, {group.atom: ~np.isin(np.arange(group.size), slots)})
    found = mended(analysis, slots, "reconstruct", feeds, folder)
    assert not found.remarks
    return errors(plain.model, dense, feeds), errors(analysis.model, dense, feeds)


def test_one_solution_serves_all_levels(tmp_path: Path) -> None:
    plain, repaired = compared(heads(), [1, 4], {"x": normal(64, 4, 8, 8, seed=7)}, tmp_path)
    assert repaired[0] < 0.9 * plain[0]
    assert repaired[1] < 0.6 * plain[1]  # it has a quarter of the rows, and counts as much


def test_a_duplicated_channel_goes_for_free_at_every_level(tmp_path: Path) -> None:
    analysis = heads(duplicate=True)
    _, repaired = compared(analysis, [1], {"x": normal(64, 4, 8, 8, seed=7)}, tmp_path)
    assert max(repaired) < 1e-3  # the damping alone
    weights = {n.inputs[1] for n in analysis.model.graph if n.op_type == "Conv"}
    assert len(weights) == 3  # still one for both levels


def test_a_cell_that_feeds_itself_is_solved_once_for_all_steps(tmp_path: Path) -> None:
    analysis = unrolled()
    (plain,), (repaired,) = compared(analysis, [2, 5, 11, 30], {"x": normal(ROWS, 32, seed=9)}, tmp_path)
    assert repaired < 0.5 * plain
    weights = {n.inputs[1] for n in analysis.model.graph if n.op_type == "Gemm"}
    assert len(weights) == 2


@pytest.mark.parametrize("second", ["b1", "b3"])
def test_every_level_has_a_bias_of_its_own(tmp_path: Path, second: str) -> None:
    """Inputs whose means differ from level to level: one bias for all could not take both up."""
    text = HEADS.replace("Conv(k, w1, b1)", f"Conv(k, w1, {second})")
    analysis = heads(text)
    plain, repaired = compared(analysis, [1, 4], {"x": normal(64, 4, 8, 8, seed=7)}, tmp_path)
    assert repaired[0] < 0.9 * plain[0]
    assert repaired[1] < 0.6 * plain[1]
    biases = [n.inputs[2] for n in analysis.model.graph if n.op_type == "Conv" and len(n.inputs) > 2]
    assert len(biases) == len(set(biases)) == 4


def test_a_compile_says_where_repair_reached_few_layers(tmp_path: Path) -> None:
    """A tied autoencoder: one weight, read in both directions."""
    text = "g (float[n,32] x) => (float[n,32] y) { a = Gemm(x, w) h = Relu(a) y = Gemm<transB=1>(h, w) }"
    ir.save(analysed(text, {"w": normal(32, 40, seed=1)}).model, tmp_path / "tied.onnx")
    np.savez(tmp_path / "samples.npz", x=normal(64, 32, seed=9))
    made = sparsecc.compile(
        tmp_path / "tied.onnx", ratio=0.3, align=1, calib=tmp_path / "samples.npz", measure=False,
        output=tmp_path / "out",
    )  # fmt: skip
    said = "repair left 2 of 2 layers alone, most because its weight is shared by 2 nodes"
    assert any(said in warning for warning in made.report["warnings"])


@pytest.mark.parametrize("adjacent", [True, False])
def test_sharers_follow_each_other_where_they_can(adjacent: bool) -> None:
    graph = (heads() if adjacent else unrolled()).model.graph
    layers = [node for node in graph if node.op_type in ("Conv", "Gemm")]
    order = side_by_side(graph, sharers_of(layers))
    place = {node: i for i, node in enumerate(order)}
    assert set(order) == set(graph)
    for node in order:
        assert all(place[maker] < place[node] for v in node.inputs if v and (maker := v.producer()))
    shared = set(sharers_of(layers).values())
    assert len(shared) == 2
    assert all((place[b] - place[a] == 1) == adjacent for a, b in shared)

"""Slots that are places: bins, grids, and scales that lie over space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.repair_models import normal
from tests.test_loading import compiled, saved


def pins(path: Path) -> dict[str, str | None]:
    """Why the group of an initializer's axis stays, by `NAME:AXIS`; None where it is free."""
    groups = find_groups(analyse(normalise(load_ir(path))))
    return {f"{name}:{axis}": group.pinned for group in groups for name, axis in group.members}


BINS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,6,8] x) => (float[2,6,3] y) {{
    h = MatMul(x, w0) r = Relu(h) p = MatMul(r, w1) above = Greater(p, edges)
    ones = Cast<to={type}>(above) count = ReduceSum<keepdims=0>(ones, last) {index}
    e = Gather<axis=0>(table, index) y = MatMul(e, w2) }}"""


@pytest.mark.parametrize(
    ("type", "index"),
    [(7, "index = Identity(count)"), (1, "low = Sub(count, one) whole = Cast<to=7>(low) index = Abs(whole)")],
)
def test_a_count_that_is_read_as_an_index_counts_no_channels(tmp_path: Path, type: int, index: str) -> None:
    edges = np.cumsum(np.abs(normal(15, seed=1)))
    path = saved(
        tmp_path / "m.onnx", BINS.format(type=type, index=index), w0=normal(8, 24), w1=normal(24, 1),
        edges=edges.astype(np.float32), last=np.array([-1]), table=normal(16, 12), w2=normal(12, 3),
        one=np.array(1, np.float32),
    )  # fmt: skip
    found = pins(path)
    assert "counted by ReduceSum" in (found["edges:0"] or "")
    assert found["w0:1"] is found["table:1"] is None
    assert compiled(path, tmp_path, ratio=0.5, metric="channels")["removed"]


def test_the_same_sum_that_is_no_index_may_lose_slots(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,6,8] x) => (float[2,6] y) {
        p = MatMul(x, w) above = Greater(p, edges) ones = Cast<to=1>(above) y = ReduceSum<keepdims=0>(ones, last) }"""
    edges = np.cumsum(np.abs(normal(15, seed=1))).astype(np.float32)
    path = saved(tmp_path / "m.onnx", text, w=normal(8, 1), edges=edges, last=np.array([-1]))
    assert pins(path)["edges:0"] is None


GRID = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,9,1] x) => (float[2,9,5] y) {
    far = Sub(x, places) near = Abs(far) close = Sub(one, near) k = Relu(close)
    s = ReduceSum<keepdims=1>(k, last) n = Div(k, s) y = MatMul(n, table) }"""


@pytest.mark.parametrize(("even", "stays"), [(True, True), (False, False)])
def test_even_steps_are_places(tmp_path: Path, even: bool, stays: bool) -> None:
    """Hat functions around 4 places, normalised: without some of the places a point between them has no weight."""
    places = np.linspace(-1, 1, 4) if even else np.array([-1.0, 0.1, 0.4, 0.7])
    path = saved(
        tmp_path / "m.onnx", GRID, places=places.astype(np.float32), one=np.array(1, np.float32),
        last=np.array([-1]), table=normal(4, 5),
    )  # fmt: skip
    assert ("evenly spaced" in (pins(path)["places:0"] or "")) == stays


def test_scales_over_space_are_those_of_the_data(tmp_path: Path) -> None:
    """BatchNormalization with `spatial=0`: one scale per channel and place."""
    text = """<ir_version: 3, opset_import: ["" : 8]>
    g (float[1,3,4,4] x) => (float[1,5] y) {
        h = Conv(x, w) n = BatchNormalization<spatial=0>(h, s, b, m, v)
        f = Flatten(n) y = Gemm<transB=1>(f, wf, bf) }"""
    places = (12, 4, 4)
    path = saved(
        tmp_path / "m.onnx", text, w=normal(12, 3, 1, 1), s=normal(*places), b=normal(*places), m=normal(*places),
        v=np.abs(normal(*places)) + 1, wf=normal(5, 192), bf=normal(5),
    )  # fmt: skip
    found = pins(path)
    assert found["s:0"] is found["w:0"] is None
    assert found.keys().isdisjoint({"s:1", "s:2"})  # places are no groups
    report = compiled(path, tmp_path, ratio=0.5, metric="channels", align=1)
    assert report["verification"]["status"] == "proved"  # type: ignore[index]

"""Convolutions with weights of their own for each sample (StyleGAN2): as many groups as samples."""

from __future__ import annotations

from pathlib import Path

import sparsecc
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.repair_models import normal
from tests.test_loading import saved

TRACED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,6] style, float[2,5,4,4] image) => (float[2,3,4,4] y)
<int64[5] per_input = {2,1,8,1,1}, int64[4] by_sample = {24,8,3,3}, int64[4] joined = {1,16,4,4},
 int64[4] apart = {2,12,4,4}> {
  x = Conv<pads = [1,1,1,1]>(image, first)
  m = MatMul(style, modulation)
  s = Reshape(m, per_input)
  w = Mul(weight, s)
  ww = Reshape(w, by_sample)
  xx = Reshape(x, joined)
  c = Conv<group = 2, pads = [1,1,1,1]>(xx, ww)
  r = Reshape(c, apart)
  h = Relu(r)
  y = Conv(h, last)
}"""


def test_the_channels_of_a_traced_file_are_free_and_the_groups_stay(tmp_path: Path) -> None:
    weights = {
        "first": normal(8, 5, 3, 3),
        "modulation": normal(6, 8, seed=1),
        "weight": normal(1, 12, 8, 3, 3, seed=2),
        "last": normal(3, 12, 1, 1, seed=3),
    }
    path = saved(tmp_path / "m.onnx", TRACED, **weights)
    groups = find_groups(analyse(normalise(load_ir(path))))
    free = {frozenset(g.members) for g in groups if g.is_free}
    assert free == {
        frozenset({("first", 0), ("modulation", 1), ("weight", 2)}),
        frozenset({("weight", 1), ("last", 1)}),
    }
    made = sparsecc.compile(path, output=tmp_path / "out", ratio=0.5, align=1, measure=False)
    assert made.report["verification"]["status"] == "proved"

"""Channels that are the same on every input, or that nobody reads, go first, and nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import sparsecc
from sparsecc.errors import InputError
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session
from tests.repair_models import normal
from tests.test_loading import saved

HEAD = """<ir_version: 8, opset_import: ["" : 17]>
"""


def buried(path: Path, folder: Path, **options: Any) -> tuple[list[int], float]:
    """(slots that went of each group that lost some, the largest relative error of the outputs)."""
    asked = options or {"dead_only": True}
    made = sparsecc.compile(path, output=folder / "out", measure=False, **asked)
    plan, report = made.plan, made.report
    assert report["verification"]["status"] == "proved"
    dense, small = open_session(path), open_session(folder / "out" / "model.onnx")
    shape = [d.dim_value or 3 for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    x = {"x": 3 * normal(*shape, seed=9)}
    gone = [g["size"] - g["kept"] for g in plan["groups"] if g["kept"] < g["size"]]
    return sorted(gone), worst_error(dense.run(x), small.run(x))


MLP = "g (float[n,6] x) => (float[n,3] y) { a = Gemm(x, w1, b1) h = Relu(a) y = Gemm(h, w2, b2) }"
PLAIN = """g (float[n,6] x) => (float[n,3] y) {
    a = MatMul(x, w1) c = Add(a, b1) h = Sigmoid(c) z = MatMul(h, w2) y = Neg(z) }"""


def mlp(path: Path, text: str = MLP) -> Path:
    """6 -> 16 -> 3: of the hidden layer 3 channels give a constant, 2 of them not zero; nobody reads one more."""
    w1, b1, w2 = normal(6, 16), normal(16, seed=1), normal(16, 3, seed=2)
    w1[:, [2, 5, 11]] = 0
    b1[[2, 5, 11]] = [1.5, -2, 0.25]
    w2[7] = 0
    return saved(path, HEAD + text, w1=w1, b1=b1, w2=w2, b2=normal(3, seed=3))


@pytest.mark.parametrize("text", [MLP, PLAIN])
def test_dead_channels_alone_go_exactly(tmp_path: Path, text: str) -> None:
    """Biases of Gemm, and where there is none an Add, take up what the constants gave."""
    gone, error = buried(mlp(tmp_path / "m.onnx", text), tmp_path)
    assert gone == [4]
    assert error < 1e-6


def test_dead_channels_go_before_live_ones(tmp_path: Path) -> None:
    gone, error = buried(mlp(tmp_path / "m.onnx"), tmp_path, ratio=0.25, metric="channels", align=1)
    assert gone == [4]
    assert error < 1e-6
    made = sparsecc.compile(
        mlp(tmp_path / "m.onnx"),
        output=tmp_path / "more",
        measure=False,
        ratio=0.5,
        metric="channels",
        align=1,
    )
    tensor = made.plan["tensors"]["w1"]["1"]
    assert len(tensor["keep"]) == 8
    assert not {2, 5, 7, 11} & set(tensor["keep"])


CONVOLUTIONS = """g (float[1,3,7,7] x) => (float[1,4,7,7] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, s, b, m, v) h = Relu(n)
    d = Conv<pads=[1,1,1,1]>(h, w2, b2) r = Relu(d) y = Conv(r, w3) }"""


def convolutions(path: Path, text: str = CONVOLUTIONS) -> Path:
    """3 -> 16 -> 8 -> 4, the first batch norm's scale is zero in 6 channels, its offset positive in 4 of these."""
    s, b = normal(16), normal(16, seed=1)
    s[:6] = 0
    b[:6] = [1, 2, 3, 0.5, -1, -2]
    w2 = normal(8, 16, 3, 3, seed=3)
    w2[:2], b2 = 0, normal(8, seed=4)
    b2[:2] = 1, 2
    return saved(
        path, HEAD + text, w1=normal(16, 3, 3, 3, seed=2), s=s, b=b, m=normal(16, seed=5), v=np.abs(normal(16)) + 1,
        w2=w2, b2=b2, w3=normal(4, 8, 1, 1, seed=6), w0=normal(8, 16, 1, 1, seed=7),
    )  # fmt: skip


def test_where_a_convolution_pads_one_constant_channel_carries_the_others(tmp_path: Path) -> None:
    """At the borders the kernel sees fewer of a constant: no bias does that. 5 of 6 go, and both of the next layer."""
    gone, error = buried(convolutions(tmp_path / "m.onnx"), tmp_path)
    assert gone == [2, 5]
    assert error < 1e-5


def test_what_is_added_to_a_live_channel_is_not_constant(tmp_path: Path) -> None:
    text = CONVOLUTIONS.replace("h = Relu(n)", "t = Add(n, a) h = Relu(t)")
    gone, _ = buried(convolutions(tmp_path / "m.onnx", text), tmp_path)
    assert gone == [2]


def test_a_mean_over_channels_counts_constant_ones_too(tmp_path: Path) -> None:
    text = """g (float[2,6] x) => (float[2,3] y) {
        a = Gemm(x, w1, b1) n = LayerNormalization(a, s) y = Gemm(n, w2, b2) }"""
    path = mlp(tmp_path / "m.onnx", text)
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(16, np.float32), "s"))
    onnx.save(model, path)
    made = sparsecc.compile(path, output=tmp_path / "out", measure=False, dead_only=True)
    assert not made.plan["tensors"]


def test_flattened_channels_and_masks_of_zeros(tmp_path: Path) -> None:
    """A mask in the file (sparse training) silences 4 of 8 channels; a Gemm reads them place by place."""
    text = """g (float[2,3,4,4] x) => (float[2,5] y) {
        a = Conv(x, w) k = Mul(a, mask) t = Sigmoid(k) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)
        f = Flatten(p) y = Gemm<transB=1>(f, wf, bf) }"""
    mask = np.ones((1, 8, 1, 1), np.float32)
    mask[0, :4] = 0
    path = saved(
        tmp_path / "m.onnx",
        HEAD + text,
        w=normal(8, 3, 1, 1),
        mask=mask,
        wf=normal(5, 32),
        bf=normal(5, seed=2),
    )
    gone, error = buried(path, tmp_path)
    assert gone == [4]
    assert error < 1e-6


def test_dead_only_has_no_budget(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="--dead-only removes what is dead and nothing else: leave out --ratio"
    ):
        sparsecc.compile(mlp(tmp_path / "m.onnx"), output=tmp_path / "out", dead_only=True, ratio=0.3)

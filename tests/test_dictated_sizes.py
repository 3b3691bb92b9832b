"""Sizes that a model dictates are found without `--input`: ONNX Runtime accepts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import sparsecc
from sparsecc.gate.gate import _working_feeds
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.rules import shapes_of
from sparsecc.shapes.demands import unmet
from sparsecc.shapes.infer import infer
from sparsecc.tasks.inputs import feeds_of
from tests.repair_models import normal

ONE = np.array([1], np.int64)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


MODELS: Mapping[str, tuple[str, Mapping[str, np.ndarray]]] = {
    "a rectangle before Flatten and Gemm": (
        """(float[n,3,h,w] x) => (float[n,5] y) {
            a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<strides=[2,2], pads=[1,1,1,1]>(b, w2)
            d = Relu(c) f = Flatten(d) y = Gemm(f, w3) }""",
        {"w1": normal(16, 3, 3, 3), "w2": normal(8, 16, 3, 3), "w3": normal(8 * 6 * 10, 5)},
    ),
    "Reshape to a rectangle": (
        """(float[n,3,h,w] x) => (float[1,4,6,10] y) {
            a = Conv<strides=[4,4]>(x, w1) b = Relu(a) r = Reshape(b, s) y = Conv(r, w3) }""",
        {"w1": normal(8, 3, 4, 4), "s": whole(1, 8, 6, 10), "w3": normal(4, 8, 1, 1)},
    ),
    "a length through strides and pools": (
        """(float[n,2,t] x) => (float[n,5] y) {
            a = Conv<strides=[3]>(x, w1) b = Relu(a) p = MaxPool<kernel_shape=[2], strides=[2]>(b)
            f = Flatten(p) y = MatMul(f, w3) }""",
        {"w1": normal(8, 2, 5), "w3": normal(8 * 37, 5)},
    ),
    "a length of samples of sound": (
        """(float[n,t] x) => (float[n,5] y) {
            u = Unsqueeze(x, one) a = Conv<strides=[160], pads=[200,200]>(u, w1) b = Relu(a)
            f = Flatten(b) y = Gemm(f, w3) }""",
        {"one": ONE, "w1": normal(8, 1, 400), "w3": normal(8 * 83, 5)},
    ),
    "a table of positions": (
        """(float[n,t,6] x) => (float[n,t,5] y) {
            a = MatMul(x, w1) b = Add(a, places) c = Relu(b) y = MatMul(c, w2) }""",
        {"w1": normal(6, 16), "places": normal(1, 77, 16), "w2": normal(16, 5)},
    ),
    "a grid of positions": (
        """(float[n,3,h,w] x) => (float[n,4,i,j] y) {
            a = Conv<strides=[16,16]>(x, w1) b = Add(a, places) c = Relu(b) y = Conv(c, w2) }""",
        {"w1": normal(16, 3, 16, 16), "places": normal(1, 16, 14, 9), "w2": normal(4, 16, 1, 1)},
    ),
    "a constant beside": (
        """(float[1,3,h,w] x) => (float[1,4,i,j] y) {
            a = Conv<strides=[8,8]>(x, w1) b = Relu(a) c = Concat<axis=1>(b, grid) y = Conv(c, w2) }""",
        {"w1": normal(16, 3, 8, 8), "grid": normal(1, 2, 7, 12), "w2": normal(4, 18, 1, 1)},
    ),
    "sizes of a Split": (
        """(float[n,t,6] x) => (float[n,5,5] y, float[n,9,5] z) {
            a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) y, z, q = Split<axis=1>(c, s) }""",
        {"w1": normal(6, 16), "w2": normal(16, 5), "s": whole(5, 9, 2)},
    ),
    "two images": (
        """(float[n,3,h,w] x, float[n,1,h2,w2] z) => (float[n,5] y) {
            a = Conv<strides=[4,4]>(x, w1) b = Relu(a) f = Flatten(b) p = Gemm(f, w3)
            c = Conv<strides=[8,8]>(z, w2) d = Relu(c) g = Flatten(d) q = Gemm(g, w4) y = Add(p, q) }""",
        {"w1": normal(8, 3, 4, 4), "w2": normal(8, 1, 8, 8), "w3": normal(8 * 35, 5), "w4": normal(8 * 33, 5)},
    ),
    "a volume": (
        """(float[n,1,d,h,w] x) => (float[n,5] y) {
            a = Conv<strides=[8,8,8]>(x, w1) b = Relu(a) f = Flatten(b) y = Gemm(f, w3) }""",
        {"w1": normal(8, 1, 8, 8, 8), "w3": normal(8 * 2 * 4 * 4, 5)},
    ),
    "a U-Net with a dense middle": (
        """(float[n,3,h,w] x) => (float[n,4,h,w] y) {
            a = Conv<pads=[1,1,1,1]>(x, w1) p = MaxPool<kernel_shape=[4,4], strides=[4,4]>(a) f = Flatten(p)
            g = Gemm(f, w3) r = Relu(g) k = Gemm(r, w4) m = Reshape(k, s) u = ConvTranspose<strides=[4,4]>(m, w5)
            v = Add(u, a) y = Conv(v, w7) }""",
        {
            "w1": normal(8, 3, 3, 3), "w3": normal(8 * 12 * 20, 24), "w4": normal(24, 16 * 12 * 20),
            "s": whole(-1, 16, 12, 20), "w5": normal(16, 8, 4, 4), "w7": normal(4, 8, 1, 1),
        },
    ),
    "tokens and width, both mixed": (
        """(float[n,t,c] x) => (float[n,i,j] y) {
            a = Transpose<perm=[0,2,1]>(x) b = MatMul(a, w1) r = Relu(b) d = MatMul(r, w2)
            e = Transpose<perm=[0,2,1]>(d) y = MatMul(e, w3) }""",
        {"w1": normal(49, 24), "w2": normal(24, 9), "w3": normal(40, 40)},
    ),
    "what a slice leaves": (
        """(float[n,2,t] x) => (float[n,5] y) {
            a = Conv(x, w1) b = Relu(a) s = Slice(b, st, en, ax, sp) f = Flatten(s) y = Gemm(f, w3) }""",
        {
            "w1": normal(8, 2, 3), "w3": normal(8 * 41, 5), "st": whole(4), "en": whole(100_000), "ax": whole(2),
            "sp": whole(2),
        },
    ),
    "two images side by side, strides of 8 and 1": (
        """(float[n,3,h,w] x, float[n,4,i,j] z) => (float[n,2,a,b] y) {
            p = Conv<strides=[8,8]>(x, w1) c = Concat<axis=1>(p, z) y = Conv(c, w2) }""",
        {"w1": normal(5, 3, 8, 8), "w2": normal(2, 9, 1, 1)},
    ),
    "a grid of odd sides": (
        """(float[n,3,h,w] x) => (float[n,5,i,j] y) {
            a = Conv<strides=[16,16]>(x, w1) y = Add(a, places) }""",
        {"w1": normal(5, 3, 16, 16), "places": normal(1, 5, 11, 23)},
    ),
    "thirds": (
        """(float[n,t,6] x) => (float[3,5] y) {
            a = MatMul(x, w1) b = Relu(a) r = Reshape(b, s) y = Gemm(r, w2) }""",
        {"w1": normal(6, 16), "s": whole(3, -1), "w2": normal(16 * 9, 5)},
    ),
}  # fmt: skip

READER = """(float[n,1,h,w] x) => (float[t,n,7] y) {
    a = Conv<strides=[8,2], pads=[1,1,1,1]>(x, w1) b = Relu(a) p = Transpose<perm=[3,0,1,2]>(b)
    r = Reshape(p, s) l, m = LSTM<hidden_size=12>(r, w2, w3) q = Squeeze(l, one) y = MatMul(q, w4) }"""
ATTENTION = """(float[n,t,16] x, float[n,p,16] past, float[n,1,q,m] mask) => (float[n,1,t,16] y) {
    k = MatMul(x, w1) j = Concat<axis=1>(past, k) i = Transpose<perm=[0,2,1]>(j) s = MatMul(x, i)
    u = Unsqueeze(s, one) v = Add(u, mask) p2 = Softmax(v) w = Unsqueeze(j, one) y = MatMul(p2, w) }"""


def saved(path: Path, text: str, weights: Mapping[str, np.ndarray]) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_the_sizes_that_a_model_dictates_are_found(tmp_path: Path, name: str) -> None:
    """`feeds_of` has run the model at them."""
    assert feeds_of(saved(tmp_path / "m.onnx", *MODELS[name]), {})


@pytest.mark.parametrize("name", ["two images", "a table of positions"])
def test_such_models_compile_and_are_proved(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "m.onnx", *MODELS[name])
    report = sparsecc.compile(path, ratio=0.4, measure=False, output=tmp_path / "out").report
    assert report["verification"]["status"] == "proved"
    assert report["removed"]["share"] > 0.3


@pytest.mark.parametrize(
    ("text", "weights", "sides"),
    [
        (
            """(float[n,3,h,w] x, float[n,3,i,j] z) => (float[n,5,a,b] y) {
                p = Conv<strides=[4,4]>(x, w1) q = Conv<strides=[3,3]>(z, w2) y = Add(p, q) }""",
            {"w1": normal(5, 3, 4, 4), "w2": normal(5, 3, 3, 3)},
            ("x", 4, "z", 3),
        ),
        (
            """(float[n,1,t] x, float[n,5,f] z) => (float[n,5,a] y) {
                p = Conv<strides=[160], pads=[200,200]>(x, w1) q = Concat<axis=1>(p, z) y = Conv(q, w2) }""",
            {"w1": normal(5, 1, 400), "w2": normal(5, 10, 9)},
            ("x", 160, "z", 1),
        ),
    ],
    ids=["images", "sound and its frames"],
)  # fmt: skip
def test_inputs_that_must_agree_through_unlike_strides_are_not_of_one_slot(
    tmp_path: Path, text: str, weights: Mapping[str, np.ndarray], sides: tuple[str, int, str, int]
) -> None:
    """Sizes at which one of them is broadcast say little: each side is as many strides long."""
    first, stride, second, other = sides
    feeds = feeds_of(saved(tmp_path / "m.onnx", text, weights), {})
    steps = [
        (a // stride, b // other)
        for a, b in zip(feeds[first].shape[2:], feeds[second].shape[2:], strict=True)
    ]
    assert all(abs(a - b) <= 1 and a > 8 for a, b in steps)


def test_the_gate_finds_them_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", *MODELS["a grid of positions"])
    assert _working_feeds(path, 0)["x"].shape[2:] == (14 * 16, 9 * 16)


@pytest.mark.parametrize(
    ("text", "weights", "fixed", "free"),
    [
        (
            READER,
            {"w1": normal(8, 1, 3, 3), "s": whole(0, 0, -1), "w2": normal(1, 48, 40), "w3": normal(1, 48, 12),
             "one": ONE, "w4": normal(12, 7)},
            {("x", 2): 40},
            {("x", 0), ("x", 3)},
        ),
        (ATTENTION, {"w1": normal(16, 16), "one": ONE}, {}, {("x", 1), ("past", 1), ("mask", 3)}),
        (MODELS["a table of positions"][0], MODELS["a table of positions"][1], {("x", 1): 77}, {("x", 0)}),
    ],
    ids=["height is dictated, width is free", "a mask follows from lengths", "the batch is free"],
)  # fmt: skip
def test_what_is_not_dictated_stays_dynamic(
    tmp_path: Path,
    text: str,
    weights: Mapping[str, np.ndarray],
    fixed: Mapping[tuple[str, int], int],
    free: set[tuple[str, int]],
) -> None:
    """A free dimension has other sizes at the second probe, a dictated one the same."""
    model = normalise(load_ir(saved(tmp_path / "m.onnx", text, weights)))
    first, second = infer(model, shapes_of).inputs
    assert {place: first[place[0]][place[1]] for place in fixed} == fixed
    for value, axis in (*fixed, *free):
        assert (first[value][axis] == second[value][axis]) == ((value, axis) in fixed)


@pytest.mark.parametrize(
    ("node", "shapes", "pair"),
    [
        ("y = Gemm(a, b)", ([2, 8], [9, 4]), (8, 9)),
        ("y = Gemm<transB=1>(a, b)", ([2, 8], [4, 9]), (8, 9)),
        ("y = MatMul(a, b)", ([3, 2, 8], [4, 8, 5]), (4, 3)),
        ("y = Conv<group=2>(a, b)", ([1, 6, 5], [4, 4, 3]), (6, 8)),
        ("y = ConvTranspose(a, b)", ([1, 6, 5], [5, 4, 3]), (6, 5)),
        ("y = Concat<axis=-1>(a, b)", ([2, 3, 4], [2, 5, 4]), (5, 3)),
        ("y = Einsum<equation=\"ij,jk->ik\">(a, b)", ([2, 3], [4, 5]), (4, 3)),
        ("y = LSTM<hidden_size=2>(a, b)", ([5, 1, 3], [1, 8, 4]), (3, 4)),
        ("y = Add(a, b)", ([2, 3, 4], [5, 1]), (5, 3)),
        ("y = Add(a, b)", ([2, 3, 4], [3, 1]), None),
        ("y = BatchNormalization(a, b)", ([2, 3, 4], [5]), (3, 5)),
        ("y = LayerNormalization(a, b)", ([2, 3, 4], [5]), (5, 4)),
        ("y = Relu(a)", ([2],), None),
        ("y = Gemm(a, b)", ([2, 8], None), None),
    ],
)  # fmt: skip
def test_demands_of_operators(
    node: str, shapes: tuple[list[int] | None, ...], pair: tuple[int, int] | None
) -> None:
    import onnx_ir as ir

    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[n] a, float[n] b) => (float[n] y) {{ {node} }}'
    (made,) = ir.from_onnx_text(text).graph
    found = unmet(made, shapes, [None] * len(shapes))
    assert (found and found[1]) == pair


@pytest.mark.parametrize(
    ("node", "shape", "second", "pair"),
    [
        ("y = Reshape(a, b)", [2, 3, 4], [0, 13], (24, 26)),
        ("y = Reshape(a, b)", [2, 3, 4], [5, -1], None),
        ("y = Expand(a, b)", [2, 1, 4], [3, 5], (5, 4)),
        ("y, z = Split<axis=1>(a, b)", [2, 7], [3, 3], (7, 6)),
    ],
)
def test_demands_that_values_make(
    node: str, shape: list[int], second: list[int], pair: tuple[int, int] | None
) -> None:
    import onnx_ir as ir

    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[n] a, int64[m] b) => (float[n] y) {{ {node} }}'
    (made,) = ir.from_onnx_text(text).graph
    found = unmet(made, [shape, [len(second)]], [None, whole(*second)])
    assert (found and found[1]) == pair

"""A proof that can fail: faults planted in every compile, and models on which random inputs show nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from sparsecc.axes.algebra import Axis, Keep
from sparsecc.errors import InternalError
from sparsecc.graph import rewrite
from sparsecc.tasks.compile import compile_model

HEAD = (
    "float[4,16] x) => ({out}) {{ {before} a = MatMul({first}, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) "
)


def net(
    end: str, out: str = "float[4,8] y", before: str = "", first: str = "x", last: int = 8
) -> onnx.ModelProto:
    """Two hidden layers of 32 between `before` and `end`, which reads `d`; w3 is (32, last)."""
    head = HEAD.format(out=out, before=before, first=first)
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({head} {end} }}')
    generator = np.random.default_rng(3)
    for name, shape in (("w1", (16, 32)), ("w2", (32, 32)), ("w3", (32, last))):
        weights = generator.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    return model


BLIND: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "nan": lambda: net("y = MatMul(d, w3)", before="lx = Log(x)", first="lx"),
    "dead_relu": lambda: net("q = MatMul(d, w3) m = Constant<value_float = -100.0>() r = Add(q, m) y = Relu(r)"),
    "saturated": lambda: net("q = MatMul(d, w3) m = Constant<value_float = 30.0>() r = Add(q, m) y = Sigmoid(r)"),
    "threshold": lambda: net(
        "q = MatMul(d, w3) m = Constant<value_float = 50.0>() y = Greater(q, m)", out="bool[4,8] y"
    ),
    "rounded": lambda: net("q = MatMul(d, w3) m = Constant<value_float = 0.01>() r = Mul(q, m) y = Round(r)"),
    "shadowed": lambda: net(
        "q = MatMul(d, w3) m = Constant<value_float = 1e-6>() r = Mul(q, m) y = Add(x, r)",
        out="float[4,16] y",
        last=16,
    ),
    "beside_chaos": lambda: net(
        "y = MatMul(d, w3) m = Constant<value_float = 1e8>() r = Mul(x, m) z = Sin(r)",
        out="float[4,8] y, float[4,16] z",
    ),
    "beside_pixels": lambda: net(
        "q = MatMul(d, w3) m = Constant<value_float = 1e-3>() r = Mul(q, m) "
        "n = Constant<value_float = 1e4>() s = Mul(x, n) y = Concat<axis = 1>(s, r)",
        out="float[4,24] y",
    ),
}  # fmt: skip
BRANCHES = """<ir_version: 8, opset_import: ["": 17]> g (float[n,16] x) => (float[n,8] y) {
    s = Shape<start = 0, end = 1>(x)
    k = Constant<value_ints = [1000]>()
    g1 = Greater(s, k)
    c = Squeeze(g1)
    y = If (c) <
        then_branch = big () => (float[n,8] yt) { h = MatMul(x, w1) r = Relu(h) yt = MatMul(r, w3) },
        else_branch = small () => (float[n,8] ye) { h2 = MatMul(x, v1) r2 = Relu(h2) ye = MatMul(r2, v3) }
    >
}"""


def branching() -> onnx.ModelProto:
    """Another hidden layer for more than 1,000 rows."""
    model = parser.parse_model(BRANCHES)
    generator = np.random.default_rng(4)
    for name, shape in (("w1", (16, 32)), ("w3", (32, 8)), ("v1", (16, 32)), ("v3", (32, 8))):
        model.graph.initializer.append(
            numpy_helper.from_array(generator.normal(0, 0.3, shape).astype(np.float32), name)
        )
    return model


INTEGERS = """<ir_version: 8, opset_import: ["": 17]> g (float[4,16] x) => (float[4,8] y) <
    float half = {0.5}, float coarse = {7.5}, float wide = {30.5}, float last = {40.5},
    uint8 middle = {128}, uint8 none = {0}, int8 zero = {0}
> {
    xq = QuantizeLinear(x, half, middle)
    a = QLinearMatMul(xq, half, middle, w1, half, zero, coarse, none)
    b = QLinearMatMul(a, coarse, none, w2, half, zero, wide, none)
    c = QLinearMatMul(b, wide, none, w3, half, zero, last, middle)
    y = DequantizeLinear(c, last, middle)
}"""


def in_integers() -> onnx.ModelProto:
    """Two hidden layers of 32 in 8 bits, and an output of a few coarse steps."""
    model = parser.parse_model(INTEGERS)
    generator = np.random.default_rng(3)
    for name, shape in (("w1", (16, 32)), ("w2", (32, 32)), ("w3", (32, 8))):
        weights = generator.integers(-9, 10, shape).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    return model


def verification(model: onnx.ModelProto, folder: Path, **options: Any) -> dict[str, Any]:
    """What a compile at half the weights says of its proof."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    asked = {"ratio": 0.5, "measure": False, "target": "onnx", **options}
    request = {"model": str(path), "options": asked, "output": str(folder / "out"), "force": True}
    found: dict[str, Any] = compile_model(request, lambda event: None)["report"]["verification"]
    return found


def slice_wrongly(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From here on the constant `name` is cut to wrong slots of the right number."""
    right = rewrite._slice_in_place

    def cut(value: ir.Value, axes: list[Axis], keep: Keep) -> rewrite.Cut:
        made = right(value, axes, keep)
        if value.name == name:
            axis, kept = next(iter(made.slots.items()))
            wrong = np.sort((kept + 1) % np.asarray(made.dense.shape.numpy())[axis])
            array = np.take(made.dense.numpy(), wrong, axis=axis)
            for other, index in made.slots.items():
                array = np.take(array, index, axis=other) if other != axis else array
            value.const_value = ir.Tensor(np.ascontiguousarray(array), name=name)
        return made

    monkeypatch.setattr(rewrite, "_slice_in_place", cut)


@pytest.mark.parametrize("kind", BLIND)
def test_planted_faults_are_noticed(kind: str, tmp_path: Path) -> None:
    found = verification(BLIND[kind](), tmp_path)
    assert found["status"] == "proved"
    assert found["planted"]["tried"] == found["planted"]["noticed"] == 4


@pytest.mark.parametrize("name", ["w1", "w2", "w3"])
@pytest.mark.parametrize("kind", BLIND)
def test_a_constant_cut_wrongly_is_found(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_wrongly(monkeypatch, name)
    with pytest.raises(InternalError, match="differs from the masked dense one"):
        verification(BLIND[kind](), tmp_path)


def test_a_difference_of_a_few_steps_of_integers_is_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verification(in_integers(), tmp_path)["status"] == "proved"
    slice_wrongly(monkeypatch, "w1")
    found = verification(in_integers(), tmp_path)
    assert found["status"] == "not proved"
    assert "more than rounding explains for sure" in found["reason"]


def test_the_branch_that_no_probe_takes_is_turned(tmp_path: Path) -> None:
    found = verification(branching(), tmp_path)
    assert found["status"] == "proved"
    assert "the other branch" in found["probes"]
    assert found["planted"]["tried"] == found["planted"]["noticed"] == 4


@pytest.mark.parametrize("asked", [{"ratio": 0.0, "quantize": "fp16"}, {"keep": ["*"]}])
def test_branches_are_turned_where_nothing_is_removed(asked: dict[str, Any], tmp_path: Path) -> None:
    found = verification(branching(), tmp_path, **asked)
    assert found["status"] == "proved", found.get("reason")
    assert "the other branch" in found["probes"]
    assert found["oracle"] == "dense model"


@pytest.mark.parametrize("name", ["w1", "w3", "v1", "v3"])
def test_a_wrong_cut_in_either_branch_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_wrongly(monkeypatch, name)
    with pytest.raises(InternalError, match="differs from the masked dense one"):
        verification(branching(), tmp_path)


ROUNDING = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[4,64] x) => (float[4,64] y)
< uint8[64,2,16] w, float[128] s > {
    a = com.microsoft.MatMulNBits<K = 64, N = 64, bits = 4, block_size = 32, accuracy_level = 4>(x, w, s)
    y = Tanh(a)
}"""


def test_kernels_that_round_activations_do_not_where_nothing_is_removed(tmp_path: Path) -> None:
    """`accuracy_level` 4 rounds them to 8 bits: on both sides of the comparison or on none."""
    model, generator = parser.parse_model(ROUNDING), np.random.default_rng(7)
    arrays: dict[str, np.ndarray] = {
        "w": generator.integers(0, 256, (64, 2, 16)).astype(np.uint8),
        "s": np.full(128, 0.01, np.float32),
    }
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    assert verification(model, tmp_path, ratio=0.0, target="onnxruntime")["status"] == "proved"


LOOPED = """<ir_version: 8, opset_import: ["": 17]> g (float[n,16] x) => (float[n,8] y) {
    m = Constant<value = int64 {2}>()
    k = Constant<value = int64 {1000}>()
    go = Constant<value = bool {1}>()
    z0 = MatMul(x, w0)
    y = Loop (m, go, z0) <body = step (int64 i, bool on, float[n,8] z) => (bool next, float[n,8] zn) {
        next = Identity(on)
        c = Greater(i, k)
        d = If (c) <
            then_branch = big () => (float[n,8] yt) { h = MatMul(x, w1) r = Relu(h) yt = MatMul(r, w3) },
            else_branch = small () => (float[n,8] ye) { h2 = MatMul(x, v1) r2 = Relu(h2) ye = MatMul(r2, v3) }
        >
        zn = Add(z, d)
    }>
}"""


def looped() -> onnx.ModelProto:
    """As `branching`, in the body of a loop, after 1,000 rounds of two."""
    model, known = parser.parse_model(LOOPED), branching()
    model.graph.initializer.extend(known.graph.initializer)
    first = np.random.default_rng(5).normal(0, 0.3, (16, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(first, "w0"))
    return model


def test_the_branch_that_no_round_of_a_loop_takes_is_turned(tmp_path: Path) -> None:
    found = verification(looped(), tmp_path)
    assert found["status"] == "proved", found.get("reason")
    assert "the other branch" in found["probes"]
    assert found["planted"]["tried"] == found["planted"]["noticed"] > 0


@pytest.mark.parametrize("name", ["w1", "w3", "v1", "v3"])
def test_a_wrong_cut_in_either_branch_of_a_loop_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_wrongly(monkeypatch, name)
    with pytest.raises(InternalError, match="differs from the masked dense one"):
        verification(looped(), tmp_path)


NESTED = """<ir_version: 8, opset_import: ["": 17]> g (float[n,16] x) => (float[n,8] y) {
    s = Shape<start = 0, end = 1>(x)
    many = Constant<value_ints = [1000]>()
    k = Constant<value_ints = [0]>()
    g1 = Greater(s, many)
    c = Squeeze(g1)
    y = If (c) <
        then_branch = big () => (float[n,8] yt) {
            g2 = Less(s, k)
            yt = If (g2) <
                then_branch = none () => (float[n,8] yn) { h = MatMul(x, w1) r = Relu(h) yn = MatMul(r, w3) },
                else_branch = more () => (float[n,8] ym) { h3 = MatMul(x, u1) r3 = Relu(h3) ym = MatMul(r3, u3) }
            >
        },
        else_branch = small () => (float[n,8] ye) { h2 = MatMul(x, v1) r2 = Relu(h2) ye = MatMul(r2, v3) }
    >
}"""


def nested() -> onnx.ModelProto:
    """As `branching`, with a branch of its own for fewer rows than none within that for more than 1,000."""
    model, known = parser.parse_model(NESTED), branching()
    model.graph.initializer.extend(known.graph.initializer)
    generator = np.random.default_rng(6)
    for name, shape in (("u1", (16, 32)), ("u3", (32, 8))):
        weights = generator.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    return model


def test_branches_within_a_branch_that_no_probe_takes_are_turned(tmp_path: Path) -> None:
    found = verification(nested(), tmp_path)
    assert found["status"] == "proved", found.get("reason")
    assert found["planted"]["tried"] == found["planted"]["noticed"] > 0


@pytest.mark.parametrize("name", ["w1", "w3", "u1", "u3", "v1", "v3"])
def test_a_wrong_cut_in_any_branch_within_another_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_wrongly(monkeypatch, name)
    with pytest.raises(InternalError, match="differs from the masked dense one"):
        verification(nested(), tmp_path)


REFUSING = NESTED.replace("h3 = MatMul(x, u1)", "x3 = Slice(x, many, s) h3 = MatMul(x3, u1)").replace(
    "ym = MatMul(r3, u3)", "y3 = MatMul(r3, u3) j = Constant<value_ints = [7]>() ym = Gather<axis = 0>(y3, j)"
)


def test_a_branch_that_the_model_refuses_is_named(tmp_path: Path) -> None:
    """With fewer than 1,000 rows none are left to be gathered."""
    model, known = parser.parse_model(REFUSING), nested()
    model.graph.initializer.extend(known.graph.initializer)
    found = verification(model, tmp_path)
    assert found["status"] == "not proved"
    assert "no probe takes the else branch of" in found["reason"]
    assert "then branch" not in found["reason"]


def test_what_is_not_finite_on_any_input_is_not_proved(tmp_path: Path) -> None:
    model = net("q = MatMul(d, w3) m = Constant<value_float = 0.0>() r = Div(m, m) y = Add(q, r)")
    found = verification(model, tmp_path)
    assert found["status"] == "not proved"
    assert "output 'y' is not finite on any probe" in found["reason"]


def among_rows(half: float) -> onnx.ModelProto:
    """Places within rows of 4, of float numbers i + half; were one moved by rounding, a root of it would be NaN.

    So are all outputs where an input is negative.
    """
    return net(
        "y = MatMul(d, w3)",
        before=f"i = Constant<value_floats = {[i + half for i in range(32)]}>() h = Constant<value_float = {half}>() "
        "f = Constant<value_float = 4.0>() m = Constant<value_float = 3.5>() n = Sub(i, h) p = Div(n, f) "
        "t = Floor(p) u = Mul(t, f) v = Sub(n, u) e = Sub(m, v) k = Sqrt(e) g = ReduceMean(k) "
        "s = Sqrt(x) lx = Sub(s, g)",
        first="lx",
    )


@pytest.mark.parametrize("half", [0.0, 0.5])
def test_what_is_not_finite_where_rounding_moves_a_place_is_proved_on_other_inputs(
    half: float, tmp_path: Path
) -> None:
    found = verification(among_rows(half), tmp_path)
    assert found["status"] == "proved"
    assert found["planted"]["tried"] == found["planted"]["noticed"] == 4
    assert found["probes"] == ["random inputs", "smooth inputs"]


@pytest.mark.parametrize("name", ["w1", "w2", "w3"])
def test_no_place_that_rounding_moves_hides_a_wrong_cut(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_wrongly(monkeypatch, name)
    with pytest.raises(InternalError, match="differs from the masked dense one"):
        verification(among_rows(0.0), tmp_path)
    found = verification(among_rows(0.5), tmp_path)
    assert found["status"] == "not proved"
    assert "'y' differs by" in found["reason"]
    assert "more than rounding explains for sure" in found["reason"]
    assert found["max_relative_error"] > 0.1 > found["rounding_floor"]


def test_layers_that_are_always_zero_are_not_proved(tmp_path: Path) -> None:
    model = net("y = MatMul(d, w3)", before="z = Sub(x, x)", first="z")
    found = verification(model, tmp_path)
    assert found["status"] == "not proved"
    assert "planted faults change nothing on any probe" in found["reason"]
    assert found["constant_outputs"] == ["y"]


def test_without_a_removal_nothing_is_planted(tmp_path: Path) -> None:
    found = verification(BLIND["shadowed"](), tmp_path, ratio=0)
    assert found["status"] == "proved"
    assert found["planted"]["tried"] == 0


@pytest.mark.parametrize(
    ("end", "out"),
    [
        ("y = MatMul(d, w3) n = RandomNormalLike<seed = 1.0>(y) z = Add(y, n)", "float[4,8] y, float[4,8] z"),
        ("y = MatMul(d, w3) z = Multinomial<sample_size = 32>(y)", "float[4,8] y, int32[4,32] z"),
        (
            "y = MatMul(d, w3) r = Constant<value_float = 0.5>() t = Constant<value = bool {1}>() "
            "z = Dropout(y, r, t)",
            "float[4,8] y, float[4,8] z",
        ),
    ],
)
def test_outputs_that_are_others_each_time_are_not_proved(end: str, out: str, tmp_path: Path) -> None:
    found = verification(net(end, out=out), tmp_path)
    assert found["status"] == "not proved"
    assert "the model gives other outputs each time: 'z' differs from itself by" in found["reason"]
    assert "'y'" not in found["reason"]


def test_a_wrong_cut_is_found_beside_an_output_that_is_another_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_wrongly(monkeypatch, "w2")
    end = "y = MatMul(d, w3) n = RandomNormalLike(y) z = Add(y, n)"
    with pytest.raises(InternalError, match="at output 'y'"):
        verification(net(end, out="float[4,8] y, float[4,8] z"), tmp_path)

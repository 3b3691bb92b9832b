"""fp16 without silent zeros and infinities: what its range does not hold stays in float32, or is written to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.errors import InputError
from sparsecc.passes.quantize import Quantize
from sparsecc.runtime.session import open_session
from tests.quantize_models import weighted
from tests.test_quantize import apply, operators, outputs

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'

NORM = """g (float[2,16] x) => (float[2,16] y) <float eps = {1e-12}> {
    m = ReduceMean<axes = [-1]>(x)
    d = Sub(x, m)
    s = Mul(d, d)
    v = ReduceMean<axes = [-1]>(s)
    e = Add(v, eps)
    r = Sqrt(e)
    y = Div(d, r)
}"""
SCALED = """g (float[2,16] x) => (float[2,16] y) <float small = {1e-9}, float eps = {1e-12}> {
    a = Mul(x, small)
    b = Abs(a)
    c = ReduceMax<axes = [-1]>(b)
    d = Add(c, eps)
    y = Div(a, d)
}"""
LARGE = """g (float[2,16] x) => (float[2,16] y) <float big = {262144.0}> {
    a = Div(x, big)
    y = Mul(a, big)
}"""
MASKED = """g (float[2,16] x) => (float[2,16] y) <float low = {-1e9}, float zero = {0.0}> {
    c = Less(x, zero)
    a = Where(c, low, x)
    y = Softmax<axis = -1>(a)
}"""
HARMLESS = """g (float[2,16] x) => (float[2,16] y) <float tiny = {1e-12}, float top = {1e9}> {
    a = Add(x, tiny)
    b = Min(a, top)
    y = Relu(b)
}"""


def _model(text: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER} {text}")


def _half(model: ir.Model, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """Outputs before, those after with every fp16 value rounded, and the operators that stayed in float32."""
    before = outputs(model, feeds)
    result = apply(Quantize(type="fp16"), model, "tensorrt-rtx", [])[0]
    return before, outputs(model, feeds, level="none"), {skip.where.split("_")[0] for skip in result.remarks}


@pytest.mark.parametrize(
    ("text", "float32"),
    [
        pytest.param(NORM, {"Add", "Sqrt", "Div"}, id="epsilon"),
        pytest.param(SCALED, {"Mul", "Abs", "ReduceMax", "Add", "Div"}, id="small factor"),
        pytest.param(LARGE, {"Div", "Mul"}, id="large factor"),
        pytest.param(MASKED, set(), id="mask"),
        pytest.param(HARMLESS, set(), id="nothing depends on it"),
    ],
)
def test_constants_outside_the_range_keep_their_nodes_in_float32(text: str, float32: set[str]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    x[1] = 3.0  # a row without variance
    before, after, kept = _half(_model(text), {"x": x})
    assert kept == float32
    np.testing.assert_allclose(after, before, atol=4e-3)


PADDED = """g (float[2,16] x, float[2,16] mask) => (float[2,16] y) <float one = {1.0}, float low = {-3.4028235e38}> {
    off = Sub(one, mask)
    bias = Mul(off, low)
    a = Add(x, bias)
    y = Softmax<axis = -1>(a)
}"""


def _padded() -> tuple[ir.Model, dict[str, np.ndarray]]:
    model = _model(PADDED)
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    mask = np.ones((2, 16), np.float32)
    mask[1, 9:] = 0
    return model, {"x": x, "mask": mask}


def test_a_mask_beyond_bf16_is_its_largest_number_and_not_infinity() -> None:
    """-3.4028e38 rounds to -inf in bf16, and 0 times that is NaN where nothing is masked."""
    model, feeds = _padded()
    before = outputs(model, feeds)
    result = apply(Quantize(type="bf16"), model, "tensorrt-rtx", [])[0]
    assert not result.remarks
    assert not result.facts["warnings"]
    np.testing.assert_allclose(open_session(model, rounds=True).run(feeds)["y"], before, atol=2e-2)


@pytest.mark.parametrize("type_", ["fp16", "bf16"])
def test_infinity_stays_infinity(type_: str) -> None:
    """A row that is masked throughout is NaN then, as it is in float32, and not the mean of what was masked."""
    model = _model(MASKED.replace("low = {-1e9}", "low = {-1.0}"))
    model.graph.initializers["low"].const_value = ir.tensor(np.float32(-np.inf), name="low")
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    x[1] = -np.abs(x[1])
    before = outputs(model, {"x": x})
    warnings = apply(Quantize(type=type_), model, "tensorrt-rtx", [])[0].facts["warnings"]
    held = model.graph.initializers[f"low_{type_}"].const_value
    assert held is not None
    assert float(held.numpy()) == -np.inf
    assert not warnings, "nothing is clipped"
    assert np.isnan(before[1]).all()
    np.testing.assert_allclose(open_session(model, rounds=True).run({"x": x})["y"], before, atol=1e-2)


def test_masks_clipped_to_fp16_are_named_in_one_warning() -> None:
    model, _ = _padded()
    warnings = apply(Quantize(type="fp16"), model, "tensorrt-rtx", [])[0].facts["warnings"]
    assert [warning[: warning.index(";")] for warning in warnings] == [
        "constants beyond fp16 are clipped to its largest number, 65504: 'low' (-3.4e+38)"
    ]


def test_a_bound_beyond_fp16_is_not_warned_of() -> None:
    assert not apply(Quantize(type="fp16"), _model(HARMLESS), "tensorrt-rtx", [])[0].facts["warnings"]


def test_a_batch_norm_with_a_large_variance_is_written_in_numbers_that_fit() -> None:
    model = _model("""g (float[1,4,8] x) => (float[1,4,8] y)
        <float[4] s = {1, 2, 3, 4}, float[4] b = {0, 1, 0, 1}, float[4] m = {900, -300, 0, 5},
         float[4] v = {400000, 90000, 2, 1}> { y = BatchNormalization(x, s, b, m, v) }""")
    spread = np.sqrt(np.array([400000, 90000, 2, 1], np.float32))[None, :, None]
    x = np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32) * spread
    before, after, kept = _half(model, {"x": x})
    assert not kept
    assert all(
        np.isfinite(v.const_value.numpy()).all() for v in model.graph.initializers.values() if v.const_value
    )
    np.testing.assert_allclose(after, before, atol=1e-2)


@pytest.mark.parametrize(
    "line", ["n = com.microsoft.SkipLayerNormalization(x, x, g)", "n = com.microsoft.FusedMatMul(x, e)"]
)
def test_types_of_the_runtimes_own_operators_are_known(line: str) -> None:
    """Their results meet halves behind a cast."""
    model = _model(f"""g (float[2,4,16] x, float[16] g, float[16,16] e, float[16,8] w) => (float[2,4,8] y) {{
        {line}
        y = MatMul(n, w)
    }}""")
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 4, 16), "g": (16,), "e": (16, 16), "w": (16, 8)}
    read = {value.name for node in model.graph for value in node.inputs if value is not None}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for value in [value for value in model.graph.inputs if value.name not in read]:
        model.graph.inputs.remove(value)
    before, after, _ = _half(model, {name: feeds[name] for name in feeds if name in read})
    assert operators(model)["Cast"] == 3
    np.testing.assert_allclose(after, before, rtol=1e-2, atol=5e-2)


def test_an_output_that_stands_twice_keeps_its_name() -> None:
    model = _model("g (float[2,16] x) => (float[2,16] y) { y = Relu(x) }")
    model.graph.outputs.append(model.graph.outputs[0])
    apply(Quantize(type="fp16"), model, "onnx", [])
    assert [value.name for value in model.graph.outputs] == ["y", "y"]
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.FLOAT}


def test_half_inputs_are_refused_before_anything_is_done() -> None:
    with pytest.raises(InputError, match="keep_io=false"):
        apply(Quantize(type="fp16", keep_io=False), _model(NORM), "onnx", [])


@pytest.mark.parametrize(("side", "deep"), [(64, True), (8, False)])
def test_sums_of_many_numbers_and_what_reads_them_stay_float32(side: int, deep: bool) -> None:
    """Of 4096 numbers fp16 adds half at most; a join of what stays float32 rounds nothing."""
    model = _model(
        f"""g (float[1,3,{side},{side}] x) => (float[1,6] y)
        <float four = {{4.0}}, float n = {{{side * side}.0}}, int64[2] axes = {{2, 3}}> {{
            big = Mul(x, four)
            mean = ReduceMean<axes = [2, 3], keepdims = 0>(big)
            sum = ReduceSum<keepdims = 0>(x, axes)
            share = Div(sum, n)
            y = Concat<axis = 1>(mean, share)
        }}"""
    )
    feeds = {"x": np.random.default_rng(0).uniform(0, 1, (1, 3, side, side)).astype(np.float32)}
    before, after, left = _half(model, feeds)
    assert left == ({"ReduceMean", "ReduceSum", "Div", "Concat"} if deep else set())
    assert np.abs(after - before).max() < (1e-6 if deep else 1e-2)


def test_a_norm_with_a_tiny_epsilon_leaves_the_layers_behind_it_in_fp16() -> None:
    """Root mean square norms of language models stay float32 up to the product with the reciprocal, and no further."""
    text = """g (float[4,64] x, WEIGHTS) => (float[4,32] y) <float two = {2.0}, float eps = {1e-12}> {
        a = Pow(x, two) b = ReduceMean<axes = [-1]>(a) c = Add(b, eps) d = Sqrt(c) e = Reciprocal(d) f = Mul(x, e)
        y = MatMul(f, w)
    }"""
    model = weighted(text, {"w": (64, 32)})
    model.opset_imports[""] = 17
    result, _ = apply(Quantize(type="fp16"), model, "tensorrt", [])
    kept = {remark.where.split("_")[0] for remark in result.remarks}
    assert kept == {"Pow", "Add", "Sqrt", "Reciprocal", "Mul"}
    assert {name.split("_")[0] for name in result.facts["nodes"]} >= {"ReduceMean", "MatMul"}


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_filled_tensors_are_rounded_as_devices_do(half: ir.DataType) -> None:
    name = half.name.lower()
    text = f"""<ir_version: 10, opset_import: ["" : 22]> g (int64[1] n) => ({name}[n] y) {{
        f = ConstantOfShape(n)
        y = Neg(f)
    }}"""
    model = ir.from_onnx_text(text)
    fill = ir.tensor(np.array([0.1], half.numpy()), dtype=half)
    model.graph.node(0).attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, fill)
    found = open_session(model, rounds=True).run({"n": np.array([3])})["y"]
    assert np.asarray(found, np.float32) == pytest.approx(-0.1, rel=0.01)


def test_the_list_of_what_stays_in_float32_is_current_and_true() -> None:
    """Every operator that it names stays in float32 in a model, with the reason."""
    from sparsecc.passes.quantize.half_page import page

    written = (Path(__file__).resolve().parents[1] / "docs" / "half.md").read_text()
    assert written == page(), "make half"
    model = weighted(
        "g (float[2,4] x) => (float[2,4] y) { a = Celu(x) b = Mish(a) c = Relu(b) y = Neg(c) }", {}
    )
    model.opset_imports[""] = 22
    result, _ = apply(Quantize(type="bf16"), model, "tensorrt", [])
    assert {remark.where.split("_")[0] for remark in result.remarks} == {"Celu", "Mish"}
    assert {name.split("_")[0] for name in result.facts["nodes"]} == {"Relu", "Neg"}
    listed = written[written.index("## bf16") :]
    assert "Celu, " in listed
    assert ", Mish | tensorrt, tensorrt-rtx |" in listed

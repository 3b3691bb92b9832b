"""Operators that work slot by slot, reduce or pass axes on: a case per operator in which its rule matters."""

from __future__ import annotations

import pytest

from tests.rule_checks import check, why_pinned

UNARY = [
    "Abs",
    "Acos",
    "Asin",
    "Asinh",
    "Atan",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Clip",
    "Dropout",
]


def through(operators: str, rank: int = 2) -> str:
    """Two products with something between: slots of `h` go through to `a`."""
    lead = "N, " * (rank - 1)
    return (
        f"(float[{lead}6] x, float[6, 8] w1, float[8, 3] w2) => (float y) "
        f"{{ h = MatMul(x, w1) {operators} y = MatMul(a, w2) }}"
    )


@pytest.mark.parametrize("operator", UNARY)
def test_unary(operator: str) -> None:
    bounded = "t = Sigmoid(h)" if operator in ("Acos", "Asin", "Sqrt", "Reciprocal") else "t = Identity(h)"
    opset = 24 if operator == "Swish" else 23
    check(through(f"{bounded} a = {operator}(t)"), "w1:1 w2:0", opset)


@pytest.mark.parametrize(
    "operators",
    [
        "t = Sigmoid(h) a = Log(t)",
        "t = Abs(h) one = Constant<value_float = 1.5>() u = Add(t, one) a = Acosh(u)",
        "half = Constant<value_float = 0.5>() t = Sigmoid(h) u = Mul(t, half) a = Atanh(u)",
        "t = IsNaN(h) f = Cast<to = 1>(t) a = Add(f, h)",
        "t = IsInf(h) f = Cast<to = 1>(t) a = Add(f, h)",
        "i = Cast<to = 7>(h) j = BitwiseNot(i) a = CastLike(j, x)",
        "z = Constant<value_float = 0.0>() g = Greater(h, z) n = Not(g) a = Cast<to = 1>(n)",
    ],
)
def test_unary_in_company(operators: str) -> None:
    check(through(operators), "w1:1 w2:0")


def beside(operators: str) -> str:
    """Two producers and something that joins them slot by slot."""
    return (
        "(float[N, 6] x, float[6, 8] w1, float[6, 8] w2, float[8, 3] w3) => (float y) "
        f"{{ h = MatMul(x, w1) g = MatMul(x, w2) {operators} y = MatMul(a, w3) }}"
    )


JOINS = [
    *(f"a = {op}(h, g)" for op in ["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"]),
    "e = Exp(g) a = Div(h, e)",
    "e = Abs(h) a = Pow(e, g)",
    *(f"c = {op}(h, g) a = Cast<to = 1>(c)" for op in ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"]),
    "hi = Round(h) gi = Round(g) c = Equal(hi, gi) a = Cast<to = 1>(c)",
    *(
        f"hi = Cast<to = 9>(h) gi = Cast<to = 9>(g) c = {op}(hi, gi) d = Cast<to = 1>(c) a = Add(d, h)"
        for op in ["And", "Or", "Xor"]
    ),
    *(
        f"hi = Cast<to = 7>(h) gi = Cast<to = 7>(g) c = {op}(hi, gi) d = Cast<to = 1>(c) a = Add(d, h)"
        for op in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]
    ),
    "ha = Abs(h) ga = Abs(g) hi = Cast<to = 12>(ha) gi = Cast<to = 12>(ga) c = BitShift<direction = "
    '"LEFT">(hi, gi) '
    "d = Cast<to = 1>(c) a = Add(d, h)",
    "k = Exp(g) a = Mod<fmod = 1>(h, k)",
    "c = Greater(h, g) a = Where(c, h, g)",
    "a = PRelu(h, g)",
]


@pytest.mark.parametrize("operators", JOINS)
def test_broadcast(operators: str) -> None:
    check(beside(operators), "w1:1 w2:1 w3:0")


def test_a_bias_broadcasts_over_the_last_axis() -> None:
    check(
        "(float[N, 4, 6] x, float[6, 8] w1, float[8] w2, float[8, 1] w3, float[8, 3] w4) => (float y) "
        "{ h = MatMul(x, w1) g = Add(h, w2) t = Transpose<perm = [0, 2, 1]>(g) u = Mul(t, w3) "
        "v = Transpose<perm = [0, 2, 1]>(u) y = MatMul(v, w4) }",
        "w1:1 w2:0 w3:0 w4:0",
    )


REDUCTIONS = [
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceLogSumExp",
]


@pytest.mark.parametrize("operator", REDUCTIONS)
@pytest.mark.parametrize("opset", [11, 18])
def test_reductions_over_channels(operator: str, opset: int) -> None:
    axes = opset < 13 or (opset < 18 and operator != "ReduceSum")
    call = f"{operator}<axes = [-1]>(h)" if axes else f"{operator}(h, axis)"
    check(
        "(float[N, 6] x, float[6, 8] w1) => (float y) <int64[1] axis = {-1}> "
        f"{{ h = MatMul(x, w1) y = {call} }}",
        "w1:1",
        opset,
    )


def test_log_of_a_sum() -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1) => (float y) <int64[1] axis = {-1}> "
        "{ h = MatMul(x, w1) e = Exp(h) y = ReduceLogSum(e, axis) }",
        "w1:1",
    )


def test_a_product_pins_what_it_reduces() -> None:
    text = (
        "(float[N, 6] x, float[6, 8] w1) => (float y) <int64[1] k = {-1}> "
        "{ h = MatMul(x, w1) y = ReduceProd(h, k) }"
    )
    assert "reduced axis" in why_pinned(text, "w1:1")
    check(text, "")


@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        ("a = Softmax(h)", "normalised"),
        ("a = LogSoftmax(h)", "normalised"),
        ("a = Hardmax(h)", "normalised"),
        ("k = Constant<value_ints = [3]>() a, i = TopK(h, k) ", "searched"),
        ("i = ArgMax<axis = -1>(h) c = Cast<to = 1>(i) a = Mul(h, c)", "searched"),
        ("i = ArgMin<axis = -1>(h) c = Cast<to = 1>(i) a = Mul(h, c)", "searched"),
        ("k = Constant<value_int = 1>() a = CumSum(h, k)", "accumulated"),
        ("a = RandomNormalLike<seed = 1.0>(h)", "random"),
        ("a = RandomUniformLike<seed = 1.0>(h)", "random"),
        ("s = Sigmoid(h) a = Bernoulli<seed = 1.0>(s)", "random"),
        ("n = NonZero(h) c = Cast<to = 1>(n) t = ReduceSum<keepdims = 0>(c) a = Add(h, t)", "as many slots"),
    ],
)
def test_pinned_with_its_reason(operators: str, reason: str) -> None:
    width = 3 if "TopK" in operators else 8
    text = (
        f"(float[N, 6] x, float[6, 8] w1, float[{width}, 3] w2) => (float y) "
        f"{{ h = MatMul(x, w1) {operators} y = MatMul(a, w2) }}"
    )
    assert reason in why_pinned(text, "w1:1")


IMAGE = "(float[N, 3, 8, 8] x, float[6, 3, 3, 3] w1, float[{c}, 2] w2) => (float y) "


def image(operators: str, channels: int = 6) -> str:
    """A convolution, something, a mean over space, a product."""
    return (
        IMAGE.format(c=channels) + "{ h = Conv<pads = [1, 1, 1, 1]>(x, w1) "
        f"{operators} p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, w2) }}"
    )


@pytest.mark.parametrize(
    "operators",
    [
        "a = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(h)",
        "a = AveragePool<kernel_shape = [2, 2]>(h)",
        "a = LpPool<kernel_shape = [2, 2]>(h)",
        "a = GlobalMaxPool(h)",
        "m, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(h) "
        "a = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(m, i)",
        "sizes = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() a = Resize(h, , sizes)",
        "a = LpNormalization<axis = 1>(h)",
        "k = Constant<value_ints = [4, 4]>() a = CenterCropPad<axes = [2, 3]>(h, k)",
        "a = Trilu(h)",
    ],
)
def test_over_images(operators: str) -> None:
    check(image(operators), "w1:0 w2:0")


def test_positions_of_maxima_pin_channels() -> None:
    text = (
        "(float[N, 3, 8, 8] x, float[6, 3, 3, 3] w1) => (float y) { h = Conv(x, w1) "
        "m, i = MaxPool<kernel_shape = [2, 2]>(h) c = Cast<to = 1>(i) s = Add(m, c) y = ReduceSum(s) }"
    )
    assert "numbered across channels" in why_pinned(text, "w1:0")


@pytest.mark.parametrize(
    "operators",
    [
        "a = LRN<size = 3>(h)",
        "a = MeanVarianceNormalization<axes = [1, 2, 3]>(h)",
    ],
)
def test_operators_that_mix_channels_are_pinned(operators: str) -> None:
    check(image(operators), "")


def test_mean_variance_over_space() -> None:
    check(
        image("a = MeanVarianceNormalization<axes = [2, 3]>(h)").replace(
            "GlobalAveragePool", "GlobalMaxPool"
        ),
        "w1:0 w2:0",
    )


def test_pooling_by_a_norm() -> None:
    check(image("a = GlobalLpPool(h)"), "w1:0 w2:0", 21)


def test_grid_sample() -> None:
    check(
        "(float[N, 3, 8, 8] x, float[N, 5, 5, 2] g, float[6, 3, 1, 1] w1, float[6, 2] w2) => (float y) "
        "{ h = Conv(x, w1) a = GridSample(h, g) p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, w2) }",
        "w1:0 w2:0",
    )


def test_boxes_of_an_image() -> None:
    check(
        "(float[2, 3, 8, 8] x, float[6, 3, 1, 1] w1, float[6, 2] w2) => (float y) "
        "<float[2, 4] r = {0.0, 0.0, 4.0, 4.0, 1.0, 2.0, 6.0, 7.0}, int64[2] i = {0, 1}> "
        "{ h = Conv(x, w1) a = RoiAlign<output_height = 2, output_width = 2>(h, r, i) "
        "p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, w2) }",
        "w1:0 w2:0",
        16,
    )
    check(
        "(float[2, 3, 8, 8] x, float[6, 3, 1, 1] w1, float[6, 2] w2) => (float y) "
        "<float[2, 5] r = {0.0, 0.0, 0.0, 4.0, 4.0, 1.0, 1.0, 2.0, 6.0, 7.0}> "
        "{ h = Conv(x, w1) a = MaxRoiPool<pooled_shape = [2, 2]>(h, r) "
        "p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, w2) }",
        "w1:0 w2:0",
        16,
    )


def test_one_hot_passes_the_axes_of_its_indices() -> None:
    check(
        "(float[N, 6] x, float[6, 8] w1, float[8, 3] w2) => (float y) <int64 k = {4}, float[2] v = {0.0, "
        "1.0}> "
        "{ h = MatMul(x, w1) i = Cast<to = 7>(h) o = OneHot<axis = -1>(i, k, v) m = ReduceMax<keepdims = "
        "0>(o, d) "
        "y = MatMul(m, w2) }".replace("(o, d)", "(o, axis)").replace(
            "int64 k = {4}", "int64[1] k = {4}, int64[1] axis = {-1}"
        ),
        "w1:1 w2:0",
    )


def test_reversed_sequences() -> None:
    check(
        "(float[4, N, 6] x, int64[N] t, float[6, 8] w1, float[8, 3] w2) => (float y) "
        "{ h = MatMul(x, w1) a = ReverseSequence<time_axis = 0, batch_axis = 1>(h, t) y = MatMul(a, w2) }",
        "w1:1 w2:0",
    )


def test_columns_to_image() -> None:
    check(
        "(float[N, 6, 4] x, float[24, 6] w1, float[6, 2] w2) => (float y) "
        "<int64[2] image = {4, 4}, int64[2] block = {2, 2}> "
        "{ h = MatMul(w1, x) a = Col2Im<strides = [2, 2]>(h, image, block) p = GlobalAveragePool(a) f = "
        "Flatten(p) "
        "y = MatMul(f, w2) }",
        "w1:0 w2:0",
    )


def test_determinants_pass_the_batch() -> None:
    check(
        "(float[N, 6] x, float[6, 32] w1, float[8, 3] w2) => (float y) <int64[4] k = {-1, 8, 2, 2}> "
        "{ h = MatMul(x, w1) r = Reshape(h, k) a = Det(r) y = MatMul(a, w2) }",
        "w1:1 w2:0",
    )

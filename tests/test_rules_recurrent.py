"""LSTM, GRU and RNN: hidden units are one group, through gates, directions, states and stacked layers."""

from __future__ import annotations

import pytest

from tests.rule_checks import check, why_pinned

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(operator: str, directions: int = 1, hidden: int = 6, inputs: int = 5, first: int = 1) -> str:
    """W, R and B of one layer, numbered from `first`."""
    rows = GATES[operator] * hidden
    return (
        f"float[{directions}, {rows}, {inputs}] w{first}, float[{directions}, {rows}, {hidden}] "
        f"w{first + 1}, "
        f"float[{directions}, {2 * rows}] w{first + 2}"
    )


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_hidden_units(operator: str, direction: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    options = f'hidden_size = 6, direction = "{direction}"'
    if operator == "GRU":
        options += ", linear_before_reset = 1"
    model = check(
        f"(float[7, N, 4] x, float[4, 5] w0, {layer(operator, directions)}, float[{6 * directions}, 3] w9) "
        "=> (float y) "
        "<int64[4] s = {0, 0, 0, -1}, int64[3] t = {0, 0, -1}> "
        f"{{ h = MatMul(x, w0) o, c = {operator}<{options}>(h, w1, w2, w3) u = Transpose<perm = [0, 2, 1, "
        "3]>(o) "
        "v = Reshape(u, t) y = MatMul(v, w9) }",
        "w0:1 w1:1 w1:2 w2:1 w2:2 w3:1 w9:0",
    )
    node = next(n for n in model.graph if n.op_type == operator)
    assert node.attributes["hidden_size"].as_int() == 3


@pytest.mark.parametrize("operator", GATES)
def test_stacked_layers(operator: str) -> None:
    check(
        f"(float[7, N, 4] x, {layer(operator, inputs=4)}, {layer(operator, inputs=6, first=4)}, float[6, "
        "3] w9) => (float y) "
        f"<int64[1] one = {{1}}> {{ a = {operator}<hidden_size = 6>(x, w1, w2, w3) b = Squeeze(a, one) "
        f"c = {operator}<hidden_size = 6>(b, w4, w5, w6) d = Squeeze(c, one) y = MatMul(d, w9) }}",
        "w1:1 w2:1 w2:2 w3:1 w4:1 w4:2 w5:1 w5:2 w6:1 w9:0",
    )


@pytest.mark.parametrize("operator", GATES)
def test_the_last_state_is_read(operator: str) -> None:
    check(
        f"(float[7, N, 4] x, {layer(operator, inputs=4)}, float[6, 3] w9) => (float y) <int64[1] zero = "
        f"{{0}}> "
        f"{{ , a = {operator}<hidden_size = 6>(x, w1, w2, w3) b = Squeeze(a, zero) y = MatMul(b, w9) }}",
        "w1:1 w2:1 w2:2 w3:1 w9:0",
    )


def test_peepholes_lengths_and_initial_states() -> None:
    check(
        f"(float[7, 2, 4] x, int32[2] n, {layer('LSTM', inputs=4)}, float[1, 2, 6] w4, float[1, 2, 6] w5, "
        "float[1, 18] w6, "
        "float[6, 3] w9) => (float y) <int64[1] one = {1}> "
        "{ a, h, c = LSTM<hidden_size = 6>(x, w1, w2, w3, n, w4, w5, w6) b = Squeeze(a, one) d = Add(b, c) "
        "y = MatMul(d, w9) }",
        "w1:1 w2:1 w2:2 w3:1 w4:2 w5:2 w6:1 w9:0",
    )


def test_a_state_from_outside_pins_the_units() -> None:
    text = (
        f"(float[7, N, 4] x, float[1, N, 6] cache, {layer('GRU', inputs=4)}, float[6, 3] w9) => (float y, "
        "float z) "
        "<int64[1] one = {1}> "
        "{ a, z = GRU<hidden_size = 6>(x, w1, w2, w3, , cache) b = Squeeze(a, one) y = MatMul(b, w9) }"
    )
    assert why_pinned(text, "w2:2") == "graph input 'cache'"
    check(text, "")


def test_a_state_made_of_zeros_follows() -> None:
    check(
        f"(float[7, N, 4] x, {layer('GRU', inputs=4)}, float[6, 3] w9) => (float y) <int64[1] one = {{1}}, "
        f"int64[1] k = {{6}}> "
        "{ n = Shape<start = 1, end = 2>(x) s = Concat<axis = 0>(one, n, k) state = ConstantOfShape(s) "
        "a = GRU<hidden_size = 6>(x, w1, w2, w3, , state) b = Squeeze(a, one) y = MatMul(b, w9) }",
        "w1:1 w2:1 w2:2 w3:1 w9:0",
    )


def test_a_quantized_lstm_frees_its_inputs() -> None:
    text = (
        "(float[7, 2, 4] x, float[4, 5] w0, int8[1, 5, 24] w1, int8[1, 6, 24] w2, float[1, 48] w3, "
        "float[1] s1, int8[1] z1, "
        "float[1] s2, int8[1] z2, float[6, 3] w9) => (float y) <int64[1] one = {1}> "
        "{ h = MatMul(x, w0) a = com.microsoft.DynamicQuantizeLSTM<hidden_size = 6>(h, w1, w2, w3, , , , , "
        "s1, z1, s2, z2) "
        "b = Squeeze(a, one) y = MatMul(b, w9) }"
    )
    assert "quantized over all hidden units" in why_pinned(text, "w1:2")
    check(text, "w0:1 w1:1")

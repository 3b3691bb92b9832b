"""Operators that rearrange, cut, join and pick slots."""

from __future__ import annotations

import pytest

from tests.rule_checks import check, check_free, why_pinned


def ints(**constants: list[int]) -> str:
    """Integer constants of a graph."""
    made = [f"int64[{len(v)}] {name} = {{{', '.join(map(str, v))}}}" for name, v in constants.items()]
    return f"<{', '.join(made)}> "


def chain(operators: str, rows: int = 12, width: int = 12, **constants: list[int]) -> str:
    """A product, something, a product."""
    return (
        f"(float[N, 6] x, float[6, {width}] w1, float[{rows}, 3] w2) => (float y) "
        f"{ints(one=[1], **constants)}"
        f"{{ h = MatMul(x, w1) {operators} y = MatMul(a, w2) }}"
    )


BOTH = "w1:1 w2:0"


@pytest.mark.parametrize(
    ("operators", "rows"),
    [
        ("r = Reshape(h, k) t = Transpose<perm = [0, 2, 1]>(r) a = Flatten(t)", 12),
        ("u = Unsqueeze(h, one) a = Squeeze(u, one)", 12),
        ("u = Unsqueeze(h, one) e = Expand(u, q) f = Flatten(e) a = Identity(f)", 24),
        ("r = Reshape(h, k) a = Reshape(r, back)", 12),
        ("a = Tile(h, twice)", 24),
        ("b, c = Split<axis = 1>(h, sizes) a = Concat<axis = 1>(c, b)", 12),
        ("a = Pad(h, wider)", 15),
    ],
)
def test_shapes(operators: str, rows: int) -> None:
    check(
        chain(
            operators,
            rows,
            k=[0, 3, 4],
            back=[-1, 12],
            q=[1, 2, 12],
            twice=[1, 2],
            sizes=[4, 8],
            wider=[0, 1, 0, 2],
        ),
        BOTH,
    )


def test_reshape_to_zero_and_minus_one() -> None:
    check(
        chain("r = Reshape(h, k) s = Softmax<axis = 1>(r) a = Reshape(s, back)", k=[0, 3, 4], back=[0, -1]),
        BOTH,
    )


def test_split_in_equal_parts() -> None:
    check(chain("b, c, d = Split<axis = 1, num_outputs = 3>(h) e = Mul(b, c) a = Add(e, d)", 4), BOTH)
    check(chain("b, c, d = Split<axis = 1>(h) e = Mul(b, c) a = Add(e, d)", 4), BOTH, opset=13)


def test_older_forms_with_attributes() -> None:
    check(
        "(float[N, 6] x, float[6, 12] w1, float[8, 3] w2) => (float y) "
        "{ h = MatMul(x, w1) b, c = Split<axis = 1, split = [4, 8]>(h) d = Slice<axes = [1], starts = [2], "
        "ends = [6]>(c) "
        "e = Add(b, d) f = Pad<pads = [0, 0, 0, 4]>(e) u = Unsqueeze<axes = [1]>(f) v = Squeeze<axes = "
        "[1]>(u) "
        "y = MatMul(v, w2) }",
        BOTH,
        opset=9,
    )


@pytest.mark.parametrize(
    ("start", "stop", "step", "rows"),
    [
        (0, 4, 1, 4),
        (3, 12, 1, 9),
        (-5, -1, 1, 4),
        (0, 12, 2, 6),
        (1, 12, 3, 4),
        (2, 9, 2, 4),
        (1, 6, 4, 2),
        (5, 12, 2, 4),
    ],
)
def test_slices(start: int, stop: int, step: int, rows: int) -> None:
    check(chain("a = Slice(h, s, e, one, t)", rows, s=[start], e=[stop], t=[step]), BOTH)


@pytest.mark.parametrize(("start", "stop"), [(-1, -13), (11, -13), (99, -(1 << 62))])
def test_all_slots_backwards(start: int, stop: int) -> None:
    check(chain("a = Slice(h, s, e, one, t)", 12, s=[start], e=[stop], t=[-1]), BOTH)


@pytest.mark.parametrize(
    ("start", "stop", "step", "rows"), [(-1, 0, -1, 11), (-2, -13, -1, 11), (-1, -13, -2, 6)]
)
def test_some_slots_backwards_are_pinned(start: int, stop: int, step: int, rows: int) -> None:
    text = chain("a = Slice(h, s, e, one, t)", rows, s=[start], e=[stop], t=[step])
    assert "the cut axis" in why_pinned(text, "w1:1")
    check(text, "")


@pytest.mark.parametrize(
    "picks",
    [
        [2, 3, 4, 5],
        [0, 2, 4, 6, 8, 10],
        [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5],
        [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3],
        [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
        [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11],
        [-4, -3, -2, -1, 0, 1, 2],
        [i // 2 for i in range(24)],
        [i % 12 for i in range(24)],
        [0, 1, 2, 3, 2, 3, 4, 5],
        [5, 0, 10, 3, 8, 1, 6, 11, 4, 9, 2, 7],
        [1, 3, 4, 9],
        [7, 2, 7, 11, 0, 2],
    ],
)
def test_constant_picks(picks: list[int]) -> None:
    check(chain("a = Gather<axis = 1>(h, k)", len(picks), k=picks), BOTH)


def test_a_single_pick_is_pinned() -> None:
    check(chain("a = Gather<axis = 1>(h, k)", 1, k=[5]), "")


def test_embedding_rows_are_pinned_and_their_width_is_free() -> None:
    text = (
        "(int64[N, 5] i, float[11, 8] w1, float[8, 3] w2) => (float y) "
        "{ h = Gather(w1, i) y = MatMul(h, w2) }"
    )
    assert "run time" in why_pinned(text, "w1:0")
    check(text, BOTH)


def test_channel_shuffle() -> None:
    check(
        "(float[N, 3, 4, 4] x, float[12, 3, 1, 1] w1, float[12, 6, 3, 3] w2, float[12, 2] w3) => (float y) "
        + ints(k=[0, 3, 4, 4, 4], back=[0, 12, 4, 4])
        + "{ h = Conv(x, w1) r = Reshape(h, k) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) s = Reshape(t, back) "
        "c = Conv<group = 2>(s, w2) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, w3) }",
        "w1:0 w2:0 w2:1 w3:0",
    )


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixels(mode: str) -> None:
    check(
        "(float[N, 3, 4, 4] x, float[24, 3, 1, 1] w1, float[24, 2] w2) => (float y) "
        f'{{ h = Conv(x, w1) d = DepthToSpace<blocksize = 2, mode = "{mode}">(h) s = '
        "SpaceToDepth<blocksize = 2>(d) "
        "p = GlobalAveragePool(s) f = Flatten(p) y = MatMul(f, w2) }",
        "w1:0 w2:0",
    )


def test_resize_by_sizes_and_scales() -> None:
    sizes = "(float[2, 3, 4, 4] x, float[6, 3, 1, 1] w1, float[6, 2] w2) => (float y) " + ints(k=[2, 6, 8, 8])
    tail = "p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, w2) }"
    check(sizes + "{ h = Conv(x, w1) r = Resize(h, , , k) " + tail, "w1:0 w2:0")
    check(
        "(float[2, 3, 4, 4] x, float[6, 3, 1, 1] w1, float[6, 2] w2) => (float y) <float[4] k = {1.0, 1.0, "
        "2.0, 2.0}> "
        "{ h = Conv(x, w1) r = Upsample(h, k) " + tail,
        "w1:0 w2:0",
        opset=9,
    )


def test_run_time_shapes() -> None:
    check(
        "(float[N, L, 6] x, float[6, 12] w1, float[12, 3] w2) => (float y) "
        + ints(k=[3, 4])
        + "{ h = MatMul(x, w1) n = Shape<start = 0, end = 2>(h) s = Concat<axis = 0>(n, k) r = Reshape(h, s) "
        "t = Transpose<perm = [0, 1, 3, 2]>(r) m = Shape(h) a = Reshape(t, m) y = MatMul(a, w2) }",
        BOTH,
    )


def test_zeros_of_a_computed_shape() -> None:
    check(
        chain(
            "s = Shape(h) z = ConstantOfShape(s) c = Size(h) d = Cast<to = 1>(c) e = Add(h, z) a = Div(e, d)"
        ),
        BOTH,
    )


def test_scattered_updates_pass_trailing_axes() -> None:
    check(
        "(float[4, 6] x, float[2, 6] u, int64[2, 1] i, float[6, 8] w1, float[6, 8] w2, float[8, 3] w3) => "
        "(float y) "
        "{ h = MatMul(x, w1) g = MatMul(u, w2) a = ScatterND(h, i, g) y = MatMul(a, w3) }",
        "w1:1 w2:1 w3:0",
    )


@pytest.mark.parametrize(("operator", "opset"), [("ScatterElements", 23), ("Scatter", 10)])
@pytest.mark.parametrize("axis", [0, 1])
def test_scattered_elements_pass_the_other_axes(operator: str, opset: int, axis: int) -> None:
    shape = [2, 8] if axis == 0 else [4, 1]
    text = (
        f"(float[4, 6] x, float[{shape[0]}, 6] u, int64[{shape[0]}, 1] i, float[6, 8] w1, float[6, "
        f"{shape[1]}] w2, "
        "float[8, 3] w3) => (float y) "
        + ints(k=shape)
        + f"{{ h = MatMul(x, w1) g = MatMul(u, w2) e = Expand(i, k) a = {operator}<axis = {axis}>(h, e, g) "
        f"y = MatMul(a, w3) }}"
    )
    check(text, "w1:1 w2:1 w3:0" if axis == 0 else "", opset)


def test_gathers_at_run_time() -> None:
    check(
        "(float[4, 6] x, int64[3, 1] i, float[6, 8] w1, float[8, 3] w2) => (float y) "
        "{ h = MatMul(x, w1) a = GatherND(h, i) y = MatMul(a, w2) }",
        BOTH,
    )
    check(
        "(float[4, 6] x, int64[3, 2] i, float[6, 8] w1) => (float y) { h = MatMul(x, w1) a = GatherND(h, "
        "i) y = Relu(a) }",
        "",
    )


def test_gathered_elements_pass_the_other_axes() -> None:
    check(
        "(float[5, 4, 6] x, int64[5, 3, 1] i, float[6, 8] w1, float[8, 3] w2) => (float y) "
        + ints(k=[5, 3, 8])
        + "{ h = MatMul(x, w1) e = Expand(i, k) a = GatherElements<axis = 1>(h, e) y = MatMul(a, w2) }",
        BOTH,
    )


def test_compress_is_pinned() -> None:
    text = (
        "(float[4, 6] x, bool[8] c, float[6, 8] w1) => (float y) "
        "{ h = MatMul(x, w1) y = Compress<axis = 1>(h, c) }"
    )
    assert "picked at run time" in why_pinned(text, "w1:1")
    check_free(text, "")


def test_a_cache_written_in_place() -> None:
    check_free(
        "(float[2, 4, 6] x, float[2, 9, 6] c, int64[2] i, float[6, 8] w1, float[6, 8] w2, float[8, 3] w3) "
        "=> (float y) "
        "{ h = MatMul(x, w1) g = MatMul(c, w2) a = TensorScatter<axis = 1>(g, h, i) y = MatMul(a, w3) }",
        "w1:1 w2:1 w3:0",
        opset=24,
    )


def test_windows_over_an_axis() -> None:
    check_free(
        "(float[2, 4, 6] x, float[6, 8] w1, float[8, 3] w2) => (float y) "
        "{ h = MatMul(x, w1) a = com.microsoft.UnfoldTensor<dim = 1, size = 2, step = 1>(h) "
        "t = Transpose<perm = [0, 1, 3, 2]>(a) y = MatMul(t, w2) }",
        "w1:1 w2:0",
    )


@pytest.mark.parametrize(("pick", "free"), [("-1", "w1:1 w2:0"), ("2", "")])
def test_a_pick_of_which_only_the_shape_is_read_pins_nothing(pick: str, free: str) -> None:
    """The first and last slot are there however many go; any other may not be."""
    text = (
        "(float[N, 6] x, float[6, 8] w1, float[8, 3] w2) => (float y) <int64 i = {PICK}> { h = MatMul(x, w1) "
        "p = Gather<axis = 1>(h, i) s = Shape(p) z = ConstantOfShape(s) one = Constant<value_ints = [1]>() "
        "u = Unsqueeze(z, one) t = Relu(h) a = MatMul(t, w2) y = Add(a, u) }"
    )
    check(text.replace("PICK", pick), free)
    read = text.replace("u = Unsqueeze(z, one)", "v = Unsqueeze(z, one) q = Unsqueeze(p, one) u = Add(q, v)")
    assert "the axis picked from" in why_pinned(read.replace("PICK", pick), "w1:1")

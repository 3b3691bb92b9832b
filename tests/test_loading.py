"""Files as exporters write them: spellings, old operators, empty tensors, sizes of which only some run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from sparsecc.errors import InputError
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.rules import shapes_of
from sparsecc.shapes.infer import _inferring, infer
from tests.repair_models import normal

MLP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x) => (float[n,3] y) { a = MatMul(x, w1) h = Relu(a) y = MatMul(h, w2) }"""


def saved(path: Path, text: str, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)
    return path


def compiled(path: Path, folder: Path, **options: object) -> dict[str, object]:
    made = sparsecc.compile(path, output=folder / "out", measure=False, **options)  # type: ignore[arg-type]
    assert made.bundle is not None
    return made.report


def shares(path: Path) -> dict[str, bool]:
    """Kind and whether it is free, of every group."""
    analysis = analyse(normalise(load_ir(path)))
    return {f"{group.kind} of {group.size}": group.is_free for group in find_groups(analysis)}


@pytest.mark.parametrize("spelt", ["nodes", "imports", "both"])
def test_the_default_domain_has_two_spellings(tmp_path: Path, spelt: str) -> None:
    path = saved(tmp_path / "m.onnx", MLP, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    plain, model = shares(path), onnx.load(path)
    if spelt != "imports":
        for node in model.graph.node:
            node.domain = "ai.onnx"
    if spelt != "nodes":
        model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, path)
    assert shares(path) == plain
    assert plain["channel of 8"]


@pytest.mark.parametrize("operator", ["LessOrEqual", "GreaterOrEqual"])
def test_shapes_behind_operators_that_older_opsets_do_not_infer(tmp_path: Path, operator: str) -> None:
    """A causal mask by LessOrEqual-12, as exports at opset 14 have it."""
    text = f"""<ir_version: 7, opset_import: ["" : 14]>
    g (float[n,4,6] x) => (float[n,4,3] y) {{
        mask = {operator}(rows, columns) kept = Where(mask, zero, low)
        a = MatMul(x, w1) h = Relu(a) s = MatMul(kept, h) y = MatMul(s, w2) }}"""
    steps = np.arange(4, dtype=np.float32)
    path = saved(
        tmp_path / "m.onnx", text, w1=normal(6, 8), w2=normal(8, 3, seed=2), rows=steps[None, :],
        columns=steps[:, None], zero=np.array(0, np.float32), low=np.array(-1, np.float32),
    )  # fmt: skip
    assert shares(path)["channel of 8"]


def test_an_empty_initializer_is_no_group(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,6] x) => (float[2,3] y) {
        empty_t = Transpose<perm=[1,0]>(empty) j = Concat<axis=1>(x, empty_t)
        a = MatMul(j, w1) h = Relu(a) y = MatMul(h, w2) }"""
    empty = np.zeros((0, 2), np.float32)
    path = saved(tmp_path / "m.onnx", text, w1=normal(6, 8), w2=normal(8, 3, seed=2), empty=empty)
    assert compiled(path, tmp_path, ratio=0.5)["removed"]


@pytest.mark.parametrize(
    "text",
    [
        'g (float[i,j] x) => (float[p,q] y) { y = Mul(x, w) }',
        'g (float[i,j] x) => (float[p,q] y) { t = Transpose<perm=[1,0]>(x) y = Add(x, t) }',
        'g (float[i,j,1024,4096] x) => (float[i,j,1024,4096] y) { y = Mul(x, one) }',
    ],
    ids=["a constant dictates them", "they must be equal", "most are too large"],
)  # fmt: skip
def test_sizes_that_run_are_found(tmp_path: Path, text: str) -> None:
    every = {"w": normal(3, 2), "one": np.ones(1, np.float32)}
    weights = {name: array for name, array in every.items() if f", {name})" in text}
    path = saved(tmp_path / "m.onnx", f'<ir_version: 8, opset_import: ["" : 17]> {text}', **weights)
    compiled(path, tmp_path, ratio=0.5)


def test_a_length_that_only_the_data_knows_survives_strides(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,12] x) => (float[1,8,t] y) {
        s = Sigmoid(x) n = ReduceSum<keepdims=0>(s) k = Cast<to=7>(n) m = Add(k, sixteen)
        r = Range(zero, m, one) f = Cast<to=1>(r) u = Reshape(f, shape)
        a = Conv<strides=[2], pads=[1,1]>(u, w1) b = Relu(a)
        c = MaxPool<kernel_shape=[2], strides=[2]>(b) y = Conv<pads=[1,1]>(c, w2) }"""
    whole = {name: np.array(value, np.int64) for name, value in (("sixteen", 16), ("zero", 0), ("one", 1))}
    path = saved(
        tmp_path / "m.onnx", text, w1=normal(16, 1, 4), w2=normal(8, 16, 3, seed=2),
        shape=np.array([1, 1, -1], np.int64), **whole,
    )  # fmt: skip
    assert shares(path)["channel of 16"]
    assert compiled(path, tmp_path, ratio=0.5)["removed"]


def test_an_output_that_stands_twice_and_a_weight_of_no_columns_are_no_faults(tmp_path: Path) -> None:
    """As ONNX Runtime takes them: an adapter of rank 0, as its exporter writes it, and a result listed twice."""
    shape: list[str | int | None] = [2, 8]
    weights = {"w": (8, 16), "down": (8, 0), "up": (0, 16), "v": (16, 8)}
    draw = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(draw.normal(size=s).astype(np.float32), n) for n, s in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "down"], ["d"]),
        helper.make_node("MatMul", ["d", "up"], ["u"]),
        helper.make_node("Add", ["a", "u"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "g", [first], [last, last], constants)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    made = sparsecc.compile(path, ratio=0.4, measure=False, output=tmp_path / "out")
    assert made.report["verification"]["status"] == "proved"


@pytest.mark.parametrize("shape", ["1,1,2,2", "n,4", "3"])
def test_what_is_only_handed_through_stays_an_output(tmp_path: Path, shape: str) -> None:
    """It once passed for the cache of an attention that had been left out, and went."""
    alone = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{shape}] x) => (float[{shape}] y) {{ y = Identity(x) }}"""
    made = sparsecc.compile(saved(tmp_path / "a.onnx", alone), measure=False, output=tmp_path / "a")
    assert made.report["verification"]["status"] == "proved"
    beside = MLP.replace("(float[n,6] x)", f"(float[n,6] x, float[{shape}] given)").replace(
        "(float[n,3] y) {", f"(float[n,3] y, float[{shape}] same) {{ same = Identity(given)"
    )
    path = saved(tmp_path / "b.onnx", beside, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    assert compiled(path, tmp_path, ratio=0.5)["removed"]
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [value.name for value in graph.input] == ["x", "given"]
    assert [value.name for value in graph.output] == ["y", "same"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,6] x, int64[1] axis) => (float[2,3] y) { c = CumSum(x, axis)",
        "g (float[2,6] x, int32[2,6] divisor) => (float[2,3] y) { q = Div(divisor, divisor) k = Cast<to=1>(q)"
        "c = Mul(x, k)",
        "g (float[2,6] x, float ratio) => (float[2,3] y) { c = Dropout(x, ratio)",
        "g (float[2,6] x, int64[2] shape) => (float[2,3] y) { c = Reshape(x, shape)",
    ],
    ids=["an axis", "a divisor", "a share", "sizes"],
)
def test_what_takes_hardly_any_number_is_given_one_that_runs(tmp_path: Path, text: str) -> None:
    whole = (
        f'<ir_version: 8, opset_import: ["" : 17]> {text} a = MatMul(c, w1) h = Relu(a) y = MatMul(h, w2) }}'
    )
    path = saved(tmp_path / "m.onnx", whole, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    report = compiled(path, tmp_path, ratio=0.5, recover="none")
    assert report["verification"]["status"] == "proved"  # type: ignore[index]
    checks = {
        check["check"]: check["status"] for check in sparsecc.verify(tmp_path / "out", model=path)["checks"]
    }
    assert checks["numerics"] == "ok"


def test_what_was_fed_to_the_node_that_failed_is_named(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[3,4] x, int64[2] axes, int64[2] to) => (float[a,b] y) {
        begin = Identity(to) y = Slice(x, begin, to, axes) }"""
    with pytest.raises(InputError, match=r"it reads 'x', 'to', 'axes'\): give .*--input .* --calib$"):
        compiled(saved(tmp_path / "m.onnx", text), tmp_path, ratio=0.5)


def test_an_identity_of_four_bits_needs_no_kernel(tmp_path: Path) -> None:
    """ONNX Runtime has none for it, and folds it away."""
    four = TensorProto.INT4
    zero = helper.make_tensor("zero", four, [8], np.zeros(8, int))
    constants = [
        numpy_helper.from_array(a, n) for n, a in {"w": normal(8, 8), "s": np.ones(8, np.float32)}.items()
    ]
    nodes = [
        helper.make_node("Identity", ["zero"], ["z"]),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [zero, *constants])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "m.onnx",
    )
    assert compiled(tmp_path / "m.onnx", tmp_path)["verification"]


def test_every_operator_that_onnx_does_not_infer_has_shapes_here() -> None:
    """At each opset at which its schema has no inference of its own."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and not s.deprecated]
    left_out = [(s.name, s.since_version) for s in schemas if not s.has_type_and_shape_inference_function]
    assert ("LessOrEqual", 12) in left_out
    for name, opset in left_out:
        own = shapes_of("", name)
        has_own = own is not None and own.of is not None
        assert has_own or _inferring(name, opset, "").has_type_and_shape_inference_function, (name, opset)


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (18, "y = CenterCropPad<axes = [1]>(x, six)"),
        (17, "w = HannWindow(six_0) y = Mul(x, w)"),
        (17, "w = BlackmanWindow(six_0) y = Mul(x, w)"),
        (17, "w = HammingWindow(six_0) y = Mul(x, w)"),
        (17, "y = LayerNormalization(x, scale)"),
        (14, "y = LayerNormalization(x, scale)"),
        (12, "c = GreaterOrEqual(x, x) y = Where(c, x, x)"),
        (14, "c = LessOrEqual(x, x) y = Where(c, x, x)"),
    ],
)
def test_shapes_of_operators_that_onnx_leaves_out(tmp_path: Path, opset: int, node: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[n,6] x) => (float[a,b] z) {{ {node} z = Relu(y) }}"""
    every: dict[str, np.ndarray] = {
        "six": np.array([6], np.int64),
        "six_0": np.array(6, np.int64),
        "scale": np.ones(6, np.float32),
    }
    used = {name: array for name, array in every.items() if re.search(rf"\b{name}\b", text)}
    model = load_ir(saved(tmp_path / "m.onnx", text, **used))
    shapes = infer(model, shapes_of)
    (output,) = model.graph.outputs
    found = shapes.of(output)
    assert shapes.failure(output) is None
    assert found is not None
    assert found[1] == 6


def test_the_default_domain_has_two_spellings_in_bodies_and_functions(tmp_path: Path) -> None:
    """A branch and a function of the file's, their nodes in `ai.onnx`, the function's imports too."""
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[n,6] x, bool turn) => (float[n,3] y) {
        a = own.layer(x, w1)
        h = If(turn) <then_branch = t () => (float[n,8] p) { p = Relu(a) },
                      else_branch = e () => (float[n,8] q) { q = Tanh(a) }>
        y = MatMul(h, w2) }
    <domain: "own", opset_import: ["" : 17]> layer (v, w) => (o) { o = MatMul(v, w) }"""
    path = saved(tmp_path / "m.onnx", text, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    plain, model = shares(path), onnx.load(path)
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    for node in [n for body in (*bodies, model.functions[0]) for n in body.node]:
        node.domain = "ai.onnx"
    model.functions[0].opset_import[0].domain = "ai.onnx"
    onnx.save(model, path)
    assert shares(path) == plain
    assert plain["channel of 8"]


@pytest.mark.parametrize(
    "moved",
    [
        "c = Slice(b, zero_1, far, two, two)",
        "c, rest = Split<axis=2, num_outputs=2>(b)",
        "c = AveragePool<kernel_shape=[3], strides=[3]>(b)",
        "t = Transpose<perm=[0,2,1]>(b) u = Slice(t, one_1, far, one_1) c = Transpose<perm=[0,2,1]>(u)",
    ],
    ids=["steps", "halves", "a pool", "turned and cut"],
)
def test_a_length_that_only_the_data_knows_survives_cuts(tmp_path: Path, moved: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[1,12] x) => (float[1,8,t] y) {{
        s = Sigmoid(x) n = ReduceSum<keepdims=0>(s) k = Cast<to=7>(n) m = Add(k, sixteen)
        r = Range(zero, m, one) f = Cast<to=1>(r) u0 = Reshape(f, shape)
        a = Conv<pads=[1,1]>(u0, w1) b = Relu(a) {moved} y = Conv<pads=[1,1]>(c, w2) }}"""
    whole = {"sixteen": 16, "zero": 0, "one": 1, "zero_1": [0], "one_1": [1], "two": [2], "far": [10**9]}
    used = {
        name: np.array(value, np.int64) for name, value in whole.items() if re.search(rf"\b{name}\b", text)
    }
    path = saved(
        tmp_path / "m.onnx", text, w1=normal(16, 1, 3), w2=normal(8, 16, 3, seed=2),
        shape=np.array([1, 1, -1], np.int64), **used,
    )  # fmt: skip
    assert shares(path)["channel of 16"]


@pytest.mark.parametrize("kind", ["BeamSearch", "GreedySearch", "Sampling"])
def test_every_search_keeps_the_names_of_its_bodies_inputs(kind: str) -> None:
    """It finds the inputs of its bodies by name, also where the main graph has the same."""
    import onnx_ir as ir

    from sparsecc.ir.subgraphs import bodies_of, one_scope

    names = ["input_ids", "position_ids", "attention_mask"]
    ids = [helper.make_tensor_value_info(name, TensorProto.INT32, [1, 4]) for name in names]
    out = helper.make_tensor_value_info("logits", TensorProto.INT32, [1, 4])
    inner = helper.make_graph(
        [helper.make_node("Identity", ["input_ids"], ["logits"])], "decoder", ids, [out]
    )
    node = helper.make_node(
        kind, ["input_ids", "length"], ["sequences"], domain="com.microsoft", decoder=inner
    )
    graph = helper.make_graph(
        [node], "g", ids[:1], [helper.make_tensor_value_info("sequences", TensorProto.INT32, [1, 8])],
        [numpy_helper.from_array(np.array([8], np.int32), "length")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports))
    one_scope(model)
    (body,) = bodies_of(next(iter(model.graph)))
    assert [value.name for value in body.inputs] == names
    assert [value.name for value in model.graph.inputs] == ["input_ids"]


@pytest.mark.parametrize("number", ["float", "float16", "double", "int64"])
def test_an_output_that_is_one_number_is_proved(tmp_path: Path, number: str) -> None:
    """Of no axes, not of one: held in a file on the way, it once came back with an axis."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[4,6] x) => ({number} y) {{
        a = MatMul(x, w1) h = Relu(a) b = MatMul(h, w2) s = ReduceMean<keepdims=0>(b)
        y = Cast<to={getattr(TensorProto, number.upper())}>(s) }}"""
    path = saved(tmp_path / "m.onnx", text, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    assert compiled(path, tmp_path, ratio=0.5)["verification"]

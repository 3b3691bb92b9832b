"""The front door: sound models pass unchanged, all others are refused in one line that says what is wrong."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from sparsecc.errors import InputError
from sparsecc.escaping import escape, one_line
from sparsecc.loading.file_type import looks_like
from sparsecc.loading.function_calls import inlined_nodes
from sparsecc.loading.limits import Limits
from sparsecc.loading.models import NOTES, load_ir, load_ir_bytes
from sparsecc.loading.open_model import open_bytes, open_model

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
MODEL = (
    HEADER
    + """
g (float[1,3,8,8] x) => (float[a,b,c,d] y) {
  h = Conv <kernel_shape = [3,3]> (x, w)
  y = Relu (h)
}"""
)


def model(text: str = MODEL) -> onnx.ModelProto:
    parsed = parser.parse_model(text if text.startswith("<") else HEADER + text)
    if "(x, w)" in text:
        parsed.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    return parsed


def refusal(data: onnx.ModelProto | bytes, **limits: Any) -> str:
    data = data if isinstance(data, bytes) else data.SerializeToString()
    with pytest.raises(InputError) as caught:
        load_ir_bytes(data, Limits(**limits))
    text = str(caught.value)
    assert text == escape(text)
    assert len(text) < 600
    return text


def notes(proto: onnx.ModelProto) -> tuple[str, ...]:
    opened = open_bytes(proto.SerializeToString())
    load_ir_bytes(proto.SerializeToString())
    return opened.notes


def test_a_sound_model_passes_unchanged() -> None:
    proto = model()
    opened = open_bytes(proto.SerializeToString())
    assert opened.proto == proto
    assert opened.notes == ()


NODES = {
    "unknown operator": ("y = Frobnicate (x)", "no operator 'Frobnicate'"),
    "unknown attribute": ("y = Relu <frob = 3> (x)", "attribute 'frob' is unknown"),
    "attribute of a wrong type": ('y = Softmax <axis = "one"> (x)', "is STRING, the operator wants INT"),
    "missing attribute": ("y = Concat (x, x)", "'axis' is missing"),
    "too many inputs": ("y = Relu (x, x, x)", "3 inputs"),
    "too few inputs": ("y = Add (x)", "1 inputs"),
    "too many outputs": ("y, z = Relu (x)", "2 outputs"),
    "undeclared domain": ("y = evil.corp.Relu (x)", "'evil.corp' is not in"),
    "undefined input": ("y = Add (x, nope)", "nothing defines input 'nope'"),
    "cycle": ("a = Add (x, b)\n b = Add (a, x)\n y = Relu (b)", "cycle"),
    "two producers": ("y = Relu (x)\n y = Neg (x)", "defined twice"),
    "input produced again": ("x = Relu (x)\n y = Neg (x)", "defined twice"),
    "no producer": ("z = Relu (x)", "output 'y' is produced by no node"),
    "dilation 0": ("y = Conv <dilations = [0, 0]> (x, w)", "dilations [0, 0]"),
    "stride 0": ("y = MaxPool <kernel_shape = [2, 2], strides = [0, 1]> (x)", "strides [0, 1]"),
    "kernel 0": ("y = AveragePool <kernel_shape = [0, 2]> (x)", "kernel_shape [0, 2]"),
    "group 0": ("y = Conv <group = 0> (x, w)", "group 0"),
    "group that does not divide": ("y = Conv <group = 7> (x, w)", "not divisible by group 7"),
    "group that does not fit": ("y = Conv <group = 2> (x, w)", "the weight needs 6"),
    "other kernel than the weight": ("y = Conv <kernel_shape = [5, 5]> (x, w)", "is not the weight's [3, 3]"),
    "negative pads": ("y = Conv <pads = [-9, -9, -9, -9]> (x, w)", "pads [-9"),
    "pads of another rank": ("y = Conv <pads = [1, 1]> (x, w)", "different ranks"),
    "two ellipses": ('y = Einsum <equation = "......ii,...jj->...ij"> (x, x)', "one ellipsis"),
    "einsum of fewer terms": ('y = Einsum <equation = "ij->ij"> (x, x)', "1 terms for 2 inputs"),
    "not a permutation": ("y = Transpose <perm = [0, 0, 1, 2]> (x)", "not a permutation"),
    "reshape to another size": (
        "s = Constant <value = int64[2] {7, -1}> ()\n y = Reshape (x, s)",
        "192 elements",
    ),
    "reshape with two unknowns": (
        "s = Constant <value = int64[2] {-1, -1}> ()\n y = Reshape (x, s)",
        "-1 twice",
    ),
    "free name in a subgraph": (
        "c = Constant <value = bool {1}> ()\n"
        " y = If (c) <then_branch = t () => (float[1] o) { o = Relu (lost) },"
        " else_branch = e () => (float[1] o) { o = Relu (x) }>",
        "nothing defines input 'lost'",
    ),
}


@pytest.mark.parametrize("case", NODES)
def test_unsound_nodes_are_refused(case: str) -> None:
    body, expected = NODES[case]
    assert expected in refusal(model("g (float[1,3,8,8] x) => (float[] y) {\n " + body + "\n}"))


def edited(edit: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = model()
    edit(proto)
    return proto


def weight(proto: onnx.ModelProto) -> onnx.TensorProto:
    tensor: onnx.TensorProto = proto.graph.initializer[0]
    return tensor


def make_external(proto: onnx.ModelProto) -> None:
    weight(proto).ClearField("raw_data")
    weight(proto).data_location = TensorProto.EXTERNAL
    weight(proto).external_data.add(key="location", value="w.bin")


def set_raw(proto: onnx.ModelProto, **fields: Any) -> None:
    tensor = weight(proto)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, name)[:] = value
        else:
            setattr(tensor, name, value)


EDITS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "dims too large": (lambda m: set_raw(m, dims=[5, 3, 3, 3]), "432 bytes where shape and type need 540"),
    "dims too small": (lambda m: set_raw(m, dims=[3, 3, 3, 3]), "432 bytes where shape and type need 324"),
    "dims overflow": (lambda m: set_raw(m, dims=[1 << 62, 1 << 62, 16]), "where shape and type need"),
    "dims too many": (lambda m: set_raw(m, dims=[1] * 65), "65 axes"),
    "dims of nothing": (lambda m: set_raw(m, dims=[1 << 62, 3, 0]), "too long for any memory"),
    "dims negative": (lambda m: set_raw(m, dims=[-4, -3, 3, 3]), "negative dimension"),
    "no payload": (lambda m: weight(m).ClearField("raw_data"), "has 0 bytes"),
    "type undefined": (lambda m: set_raw(m, data_type=0), "type 0"),
    "type unknown": (lambda m: set_raw(m, data_type=99), "type 99"),
    "two payloads": (lambda m: set_raw(m, float_data=[1.0]), "twice"),
    "wrong field": (lambda m: set_raw(m, raw_data=b"", int64_data=[1]), "are in int64_data"),
    "few values": (lambda m: set_raw(m, raw_data=b"", float_data=[1.0]), "has 1 values"),
    "two initializers": (lambda m: m.graph.initializer.append(weight(m)), "two initializers"),
    "two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs"),
    "two attributes": (
        lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]),
        "given twice",
    ),
    "attribute without name": (lambda m: m.graph.node[0].attribute.add(type=2, i=1), "no name"),
    "attribute of two values": (lambda m: setattr(m.graph.node[0].attribute[0], "f", 1.0), "one value"),
    "reference outside a function": (
        lambda m: m.graph.node[0].attribute.add(name="group", type=2, ref_attr_name="g"),
        "only a function body",
    ),
    "ir version": (lambda m: setattr(m, "ir_version", 9999), "9999"),
    "no ir version": (lambda m: m.ClearField("ir_version"), "is not known"),
    "no opset": (lambda m: m.ClearField("opset_import"), "declares no opset"),
    "future opset": (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999"),
    "two opsets": (lambda m: m.opset_import.add(domain="ai.onnx", version=12), "two versions"),
    "no graph": (lambda m: m.ClearField("graph"), "no graph"),
    "external data in memory": (make_external, "give its path"),
}


@pytest.mark.parametrize("case", EDITS)
def test_unsound_files_are_refused(case: str) -> None:
    edit, expected = EDITS[case]
    assert expected in refusal(edited(edit))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"nodes": 1}, "nodes"), ({"attribute_values": 1}, "attribute_values")],
)
def test_limits_name_themselves(limits: dict[str, int], expected: str) -> None:
    assert f"raise the limit {expected}" in refusal(model(), **limits)


def test_file_and_text_limits(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    with pytest.raises(InputError, match="raise the limit file_bytes"):
        open_model(path, Limits(file_bytes=100))
    text = model('g (float[1] x) => (float[] y) { y = Einsum <equation = "i->i"> (x) }')
    assert "attribute_bytes" in refusal(text, attribute_bytes=3)


def nested(depth: int) -> onnx.ModelProto:
    inner = "o = Relu (x)"
    for _ in range(depth):
        other = "else_branch = e () => (float[1] o) { o = Neg (x) }"
        inner = f"o = If (c) <then_branch = t () => (float[1] o) {{ {inner} }}, {other}>"
    return model(f"g (float[1] x, bool c) => (float[1] o) {{ {inner} }}")


def test_nesting_is_bounded() -> None:
    assert notes(nested(20)) == ()
    assert "raise the limit depth" in refusal(nested(4), depth=3)
    deep = b""
    for _ in range(3000):
        attribute = b"\x0a\x01t\x32" + _varint(len(deep)) + deep + b"\xa0\x01\x05"
        node = b"\x22\x02If\x2a" + _varint(len(attribute)) + attribute
        deep = b"\x0a" + _varint(len(node)) + node
    assert "too deeply nested" in refusal(b"\x08\x08\x3a" + _varint(len(deep)) + deep)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def functions(count: int, body: Callable[[int], str]) -> onnx.ModelProto:
    text = (
        '<ir_version: 8, opset_import: ["": 17, "f": 1]>\ng (float[1] x) => (float[1] y) { y = f.F0 (x) }\n'
    )
    for i in range(count):
        text += f'<domain: "f", opset_import: ["": 17, "f": 1]>\nF{i} (a) => (b) {{ {body(i)} }}\n'
    return parser.parse_model(text)


def test_functions_that_never_end_or_explode_are_refused() -> None:
    assert "calls itself" in refusal(functions(1, lambda i: "b = f.F0 (a)"))
    assert "calls itself" in refusal(functions(2, lambda i: f"b = f.F{1 - i} (a)"))
    laughs = functions(31, lambda i: f"t = f.F{i + 1} (a)\n b = f.F{i + 1} (t)" if i < 30 else "b = Relu (a)")
    assert "1073741824 nodes" in refusal(laughs)
    assert notes(functions(900, lambda i: f"b = f.F{i + 1} (a)" if i < 899 else "b = Relu (a)")) == ()
    assert "nothing defines" in refusal(functions(1, lambda i: "b = Relu (x)"))
    assert "produced by no node" in refusal(functions(1, lambda i: "c = Relu (a)"))


def test_inlining_is_counted_not_done() -> None:
    from collections import Counter

    keys = [("f", str(i), "") for i in range(3)]
    calls = {
        None: Counter({keys[0]: 2}),
        keys[0]: Counter({keys[1]: 3, keys[2]: 1}),
        keys[1]: Counter({keys[2]: 5}),
    }
    assert inlined_nodes(Counter({None: 7, keys[2]: 2, keys[1]: 1}), calls) == 7 + 2 * (3 * (1 + 5 * 2) + 2)


def test_unsorted_graphs_are_sorted_and_said_so() -> None:
    sound = model(
        "g (float[1] x) => (float[1] y) { a = Relu (x)\n b = Neg (a)\n c = Abs (x)\n y = Add (b, c) }"
    )
    for order in itertools.permutations(range(4)):
        shuffled = onnx.ModelProto()
        shuffled.CopyFrom(sound)
        nodes = list(sound.graph.node)
        del shuffled.graph.node[:]
        shuffled.graph.node.extend(nodes[i] for i in order)
        opened = open_bytes(shuffled.SerializeToString())
        onnx.checker.check_model(opened.proto)
        changed = [n.op_type for n in opened.proto.graph.node] != [nodes[i].op_type for i in order]
        assert (opened.notes != ()) == changed


def test_a_node_waits_for_what_its_subgraphs_use() -> None:
    text = """g (float[1] x, bool c) => (float[1] y) {
      y = If (c) <then_branch = t () => (float[1] o) { o = Relu (late) },
                  else_branch = e () => (float[1] o) { o = Neg (x) }>
      late = Abs (x)
    }"""
    opened = open_bytes(model(text).SerializeToString())
    assert [n.op_type for n in opened.proto.graph.node] == ["Abs", "If"]


def test_what_is_unknown_but_harmless_is_noted() -> None:
    text = '<ir_version: 8, opset_import: ["": 17, "my.ops": 1]>\n'
    text += "g (float[1] x) => (float[1] y) { y = my.ops.Fast (x) }"
    assert any("my.ops" in note for note in notes(model(text)))
    assert any(
        "com.microsoft" in note
        for note in notes(model("g (float[1] x) => (float[1] y) { y = com.microsoft.Gelu (x) }"))
    )
    untyped = edited(lambda m: m.graph.node[0].attribute[0].ClearField("type"))
    assert any("type" in note for note in notes(untyped))


def test_unnamed_nodes_and_strange_names_pass() -> None:
    for name in ("", "../../../tmp/x", "\x1b]0;x\x07", " \t", "a\u202egnp.exe", "x" * 10_000):
        proto = model()
        proto.graph.node[0].name = name
        proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = name or "h"
        assert notes(proto) == ()


def test_strange_names_are_escaped_in_messages() -> None:
    proto = model()
    proto.graph.node[1].input[0] = "\x1b[2J\nERROR: fake\u202e'" + "x" * 5000
    assert "\\x1b[2J" in refusal(proto)
    raw = model().SerializeToString().replace(b"\x01h", b"\x01\xff")
    assert "UTF-8" in refusal(raw)


def test_no_sound_model_is_mistaken(tmp_path: Path) -> None:
    assert looks_like(model().SerializeToString(), 10_000) is None
    for name in ("folder", "missing"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            load_ir(tmp_path / name)


def chain(count: int) -> bytes:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in ("v0", f"v{count}")]
    graph = helper.make_graph(nodes[::-1], "g", ends[:1], ends[1:])
    return bytes(
        helper.make_model(
            graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
        ).SerializeToString()
    )


def test_long_chains_take_little_time() -> None:
    times = []
    for count in (10_000, 50_000):
        data = chain(count)
        start = time.process_time()
        loaded = load_ir_bytes(data)
        times.append(time.process_time() - start)
        assert len(loaded.graph) == count
        assert loaded.meta[NOTES] != ()
    assert times[1] < 20
    assert times[1] < 12 * times[0]


@settings(max_examples=300)
@given(st.data())
def test_mutated_models_are_refused_in_one_line_or_pass(data: st.DataObject) -> None:
    raw = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        load_ir_bytes(bytes(raw))
    except InputError as e:
        assert str(e) == escape(str(e))  # noqa: PT017  either end is right


@given(st.text())
def test_escaping_leaves_one_printable_line(text: str) -> None:
    line = one_line(text, 50)
    assert len(line) <= 50
    assert escape(line) == line
    assert not set(line) & set("\n\r\x1b\x07\u202e\u2028\x85")

"""What belongs to a model stays with its result: metadata, doc strings on request, versions that a board can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.errors import InputError
from sparsecc.ir.versions import at_versions, opset_of
from sparsecc.runtime.session import open_session
from tests.repair_models import normal
from tests.test_loading import saved

NET = """<ir_version: 8, opset_import: ["" : 18]>
g (float[n,6] x) => (float[n,1] y) <int64[1] last = {-1}> {
    a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = ReduceMean<keepdims = 1>(b, last) y = Tanh(s) }"""
NAMES = "{0: 'cat', 1: 'dog'}"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    path = saved(tmp_path / "m.onnx", NET, w1=normal(6, 64), w2=normal(64, 5, seed=1))
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"names": NAMES, "stride": "32"})
    model.doc_string, model.model_version, model.domain = "what it is", 7, "org.example"
    model.graph.input[0].doc_string, model.graph.output[0].doc_string = "pixels", "how sure"
    model.graph.node[0].doc_string = "where it was made"
    onnx.save(model, path)
    return path


def compiled(path: Path, folder: Path, **options: Any) -> onnx.ModelProto:
    sparsecc.compile(path, output=folder, measure=False, ratio=0.5, align=1, **options)
    return onnx.load(folder / "model.onnx")


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_metadata_stays_and_doc_strings_on_request(described: Path, tmp_path: Path, target: str) -> None:
    model = compiled(described, tmp_path / "out", target=target)
    assert {p.key: p.value for p in model.metadata_props} == {"names": NAMES, "stride": "32"}
    assert (model.model_version, model.domain) == (7, "org.example")
    assert not model.doc_string
    assert not model.graph.input[0].doc_string
    model = compiled(described, tmp_path / "docs", target=target, doc_strings=True)
    assert model.doc_string == "what it is"
    assert [v.doc_string for v in (*model.graph.input, *model.graph.output)] == ["pixels", "how sure"]
    assert not any(node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_results_have_the_versions_that_were_asked_for(described: Path, tmp_path: Path, target: str) -> None:
    model = compiled(described, tmp_path / "out", target=target, opset=13, ir_version=7)
    assert {o.domain: o.version for o in model.opset_import if not o.domain} == {"": 13}
    assert model.ir_version == 7
    mean = next((node for node in model.graph.node if node.op_type == "ReduceMean"), None)
    assert mean is None or len(mean.input) == 1  # axes were an attribute then
    onnx.checker.check_model(model)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"opset": 9, "quantize": "int4", "quantize_options": {"block": "32"}},
            "--opset 9: the result cannot",
        ),
        (
            {"ir_version": 8, "quantize": "int4", "quantize_options": {"block": "32"}},
            "INT4 came with version 10",
        ),
    ],
)
def test_versions_that_lack_what_the_result_has_are_refused(
    described: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        compiled(described, tmp_path / "out", target="onnx", **options)


OLDER = """<ir_version: 8, opset_import: ["" : 18]>
g (float[2,3,8] x) => (float[2,4,8] y) <int64[1] axes = {1}, int64[2] split = {2,2}> {
    p = Pad<mode = "constant">(x, pads) r = Relu(p) a, b = Split<axis = 1>(r, split) c = Add(a, b)
    s = ReduceSum<keepdims = 1>(c, axes) m = Softmax(c) n = Concat<axis = 1>(m, c) t = Mul(n, s)
    y = Clip(t, low, high) }"""


@pytest.mark.parametrize("opset", [17, 13, 12, 11])
def test_operators_are_written_as_they_were(tmp_path: Path, opset: int) -> None:
    path = saved(
        tmp_path / "m.onnx",
        OLDER,
        pads=np.array([0, 1, 0, 0, 0, 0], np.int64),
        low=np.float32(-1) + np.zeros((), np.float32),
        high=np.float32(2) + np.zeros((), np.float32),
    )
    model = ir.load(path)
    older = at_versions(model, opset, None)
    assert opset_of(older) == opset
    assert opset_of(model) == 18
    ir.save(older, tmp_path / "older.onnx")
    onnx.checker.check_model(str(tmp_path / "older.onnx"), full_check=True)
    x = {"x": normal(2, 3, 8, seed=5)}
    before, after = (open_session(tmp_path / name).run(x)["y"] for name in ("m.onnx", "older.onnx"))
    assert np.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "opset", "told"),
    [
        ("y = LayerNormalization(x, s)", 16, "LayerNormalization came with version 17"),
        ("y = Softmax<axis = 1>(x)", 12, "Softmax over an axis that is not the last came with version 13"),
    ],
)
def test_what_has_no_older_form_is_named(tmp_path: Path, text: str, opset: int, told: str) -> None:
    whole = (
        f"""<ir_version: 8, opset_import: ["" : 18]> g (float[2,3,8] x) => (float[2,3,8] y) {{ {text} }}"""
    )
    path = saved(tmp_path / "m.onnx", whole, s=np.ones(8, np.float32))
    with pytest.raises(InputError, match=told):
        at_versions(ir.load(path), opset, None)

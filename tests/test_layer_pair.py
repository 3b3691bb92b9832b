"""The time of each layer before and after: every layer is found again in the kernels that runtimes make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.measure.layer_pair import _Layers, time_layers
from sparsecc.report.checks import checks
from sparsecc.report.html import compile_page
from sparsecc.report.layer_bars import layer_bars
from tests.test_report import Page

MODELS = Path(__file__).parent.parent / "models"

RESIDUAL = """<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 16, 8, 8] x) => (float[1, 10] y)
<float[32, 16, 3, 3] w1, float[32, 16, 1, 1] w2, float[32, 32, 3, 3] w3, float[32, 10] w4> {
    [stem] a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    [shortcut] s = Conv(x, w2)
    r = Relu(a)
    [wide] b = Conv<pads = [1, 1, 1, 1]>(r, w3)
    c = ORDER
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    [head] y = MatMul(f, w4)
}"""


def written(text: str, folder: Path) -> Path:
    model = onnx.parser.parse_model(text)
    draw = np.random.default_rng(0)
    for value in model.graph.value_info:  # the weights
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = (0.1 * draw.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("order", ["Add(b, s)", "Add(s, b)"])
def test_a_sum_fused_into_one_convolution_leaves_the_other_its_own(order: str, tmp_path: Path) -> None:
    path = written(RESIDUAL.replace("ORDER", order), tmp_path)
    x = {"x": np.zeros((1, 16, 8, 8), np.float32)}
    pair = time_layers(path, path, (x, x))
    for side in (pair.before, pair.after):
        assert set(side.layers) == {"stem", "shortcut", "wide", "head"}
        # nine times 32 by 32 products at each place beside 16 by 32: no clock confuses them by so much
        assert side.layers["wide"] > side.layers["shortcut"]


@pytest.mark.parametrize("quantize", [None, "int8", "int8-dynamic", "fp16"])
@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit", "digits_lstm"])
def test_every_layer_is_found_in_both_models(name: str, quantize: str | None, tmp_path: Path) -> None:
    result = sparsecc.compile(
        MODELS / f"{name}.onnx",
        ratio=0.3,
        quantize=quantize,
        calib=f"{MODELS / 'digits.py'}:calibration",
        output=tmp_path / "out",
        measure=False,
    )
    assert result.model is not None
    feeds = {"image": np.random.default_rng(0).random((4, 1, 16, 16), np.float32)}
    pair = time_layers(MODELS / f"{name}.onnx", result.model, (feeds, feeds))
    rows = pair.beside(result.report["layers"])
    assert len(rows) > 3
    assert [row["name"] for row in rows if row["ms_before"] is None or row["ms_after"] is None] == []
    computes = sum(pair.before.layers.values())
    assert computes > 0


def test_kernels_are_told_by_their_longest_name() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[4, 4] x) => (float[4, 4] y) {
        [fc] a = MatMul(x, x)
        [fc_2] y = MatMul(a, a)
    }"""
    layers = _Layers(ir.from_onnx_text(text))
    kernels = ["fc_2_token_7", "fc_token_2", "fc/MatMulScaleFusion/", "fc_int8_kernel", "fcc", "other"]
    nodes = [ir.Node("", "MatMul", [], name=name) for name in kernels]
    assert layers.of_kernels(nodes) == {
        "fc_2_token_7": "fc_2",
        "fc_token_2": "fc",
        "fc/MatMulScaleFusion/": "fc",
        "fc_int8_kernel": "fc",
    }


def test_attention_fused_from_several_layers_is_told_once(tmp_path: Path) -> None:
    """Layers inside the fused kernel have a dash, none has a time of another."""
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[1, 4, 8] x) => (float[1, 4, 8] y) {
            [qk] a = MatMul(x, x)
            [av] b = MatMul(a, x)
            y = Relu(b)
        }"""
    )
    fused = ir.Node("com.microsoft", "Attention", [model.graph.inputs[0]], name="Attention")
    fused.outputs[0].name = "y"
    assert _Layers(model).of_kernels([fused]) == {"Attention": "av"}


REPORT: dict[str, Any] = {
    "layers": [
        {"name": "a", "op": "Conv", "before": 8, "after": 4, "macs_before": 8, "macs_after": 4, "ms_before": 2.0,
         "ms_after": 1.0},
        {"name": "b", "op": "Conv", "before": 8, "after": 8, "macs_before": 8, "macs_after": 8, "ms_before": 2.0,
         "ms_after": None},
    ],
    "layer_times": {"how": "ONNX Runtime's trace", "clock": "wall", "runs": 20,
                    "rest": {"before_ms": 0.5, "after_ms": 0.25}},
}  # fmt: skip


def test_the_page_shows_times_beside_channels() -> None:
    text = Page(compile_page(REPORT, {})).text
    assert "a Conv 8 → 4 −50.0 % 2 ms → 1 ms −50.0 %" in text
    assert "b Conv 8 2 ms → –" in text
    assert "in no layer takes 500 us → 250 us" in text


def test_a_report_without_times_has_no_column_of_them() -> None:
    old = {"layers": [{k: v for k, v in row.items() if not k.startswith("ms_")} for row in REPORT["layers"]]}
    assert [bar.time for bar in layer_bars(old)] == ["", ""]
    assert "time" not in Page(compile_page(old, {})).text


def test_a_compile_that_measures_tells_the_time_of_layers(tmp_path: Path) -> None:
    path = written(RESIDUAL.replace("ORDER", "Add(b, s)"), tmp_path)
    report = sparsecc.compile(path, ratio=0.3, output=tmp_path / "out").report
    assert {row["name"] for row in report["layers"] if row["ms_before"] and row["ms_after"]} == {
        "stem",
        "shortcut",
        "wide",
        "head",
    }
    assert report["layer_times"]["runs"] >= 3
    assert "time, layer by layer" in (tmp_path / "out" / "report.html").read_text()


# What was checked -------------------------------------------------------------------------------------


def marks(**report: Any) -> dict[str, str]:
    return {check.what: check.mark for check in checks(report)}


def test_checks_bear_marks() -> None:
    proved = {
        "status": "proved",
        "planted": {"tried": 3, "noticed": 3},
        "max_relative_error": 1e-7,
        "runs": True,
    }
    assert marks(verification=proved) == {
        "status": "passed",
        "planted faults": "passed",
        "max relative error": "passed",
        "runs": "passed",
    }
    doubted = {**proved, "status": "not proved", "reason": "why", "planted": {"tried": 3, "noticed": 2}}
    found = marks(
        verification=doubted | {"layers_in_type": 4, "layers_in_pattern": 2, "losses": ["conv1 lost it"]}
    )
    assert found["status"] == found["planted faults"] == found["layers in type"] == "failed"
    assert found["layers in pattern"] == "failed"
    assert found["max relative error"] == ""


@pytest.mark.parametrize(("quality", "mark"), [(30.0, "passed"), (10.0, "doubtful"), (2.0, "failed")])
def test_what_was_lost_bears_the_verdicts_mark(quality: float, mark: str) -> None:
    facts = {"quality_db": quality, "parts": {"y": quality}, "data": "held-out samples", "samples": 20}
    assert marks(fidelity=facts, removed={"share": 0.5})["what was lost"] == mark


def test_a_missed_goal_fails() -> None:
    assert marks(goal={"met": False})["goal"] == "failed"

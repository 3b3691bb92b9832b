"""What was seen to be wrong on pages in a browser: the order of layers, labels that were cut or stood on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from sparsecc.report.charts import ORIGINAL, Dot, Tick, plot
from sparsecc.report.compile_page import _setting
from sparsecc.report.front_page import _dot
from sparsecc.runtime.layer_times import layer_times


def test_a_profile_tells_layers_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[1, 64] x) => (float[1, 64] y) {
        [a] p = Sin(x)
        [b] q = Relu(p)
        [c] r = Softmax(q)
        [d] s = Cos(r)
        [e] y = Abs(s)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "chain.onnx")
    feeds = {"x": np.ones((1, 64), np.float32)}
    assert [layer.name for layer in layer_times(tmp_path / "chain.onnx", feeds, runs=3)] == list("abcde")


def test_labels_are_neither_cut_nor_on_one_another() -> None:
    assert [Tick(x, "10").anchor for x in (3.0, 320.0, 636.0)] == ["start", "middle", "end"]
    dots = [Dot(0.0, 1.0, "before", "t", "alone"), Dot(0.9, 0.0, "before", "t", "other")]
    dots += [Dot(0.95, 0.0, "after", "t", "front"), Dot(1.0, 0.9, "before", "t", "high")]
    dots += [Dot(0.5, 0.5, "before", "t", "near"), Dot(0.51, 0.5, "before", "t", ORIGINAL)]
    labels = {dot.title + dot.label for dot in plot("x", "y", dots, dots[2:3]).dots}
    assert labels == {"talone", "t", "tfront", "thigh", f"t{ORIGINAL}"}


def test_the_head_says_where_and_with_what() -> None:
    report = {
        "target": {"name": "onnxruntime", "threads": 1},
        "device": {"name": "local", "processor": "P", "machine": "x86_64"},
        "measured_at": {"x": [8, 3]},
        "versions": {"sparsecc": "0.2.0", "onnxruntime": "1.31.1"},
        "date": "2026-12-01",
    }
    told = "onnxruntime on local (P, x86_64), 1 thread; a run of x 8x3; sparsecc 0.2.0, onnxruntime 1.31.1; 2026-12-01"
    assert _setting(report) == told
    assert _setting({"target": {"name": "tensorrt"}}) == "tensorrt on local"


def test_dots_on_the_front_say_their_plan() -> None:
    def point(name: str, ratio: float, **levers: str) -> dict[str, Any]:
        return {"id": name, "ratio": ratio, "levers": levers, "quality": 0.9}

    points = [
        point("a", 0.6, quantize="int8"),
        point("b", 0.3, quantize="int8"),
        point("c", 0.1, quantize="int8"),
    ]
    points.append(point("d", 0.4, quantize="int8", recover="reconstruct", criterion="obs"))
    labels = [_dot(one, 0.5, one["id"] != "c", "a").label for one in points]
    assert labels == ["ratio 0.6, int8 (chosen)", "ratio 0.3, int8", "", ""]

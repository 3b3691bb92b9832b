"""A model that comes in quantized is pruned like a float one, and stays quantized."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import sparsecc


def test_a_quantized_model_is_pruned_and_stays_quantized(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its integer kernels round at other places than its graph says, by a step: that is no fault."""
    monkeypatch.chdir(root)
    whole, small = tmp_path / "whole", tmp_path / "small"
    sparsecc.compile(
        "models/digits_resnet.onnx",
        target="onnx",
        quantize="int8",
        calib="models/digits.py:calibration",
        recover="none",
        measure=False,
        output=whole,
    )
    made = sparsecc.compile(whole / "model.onnx", ratio=0.3, output=small)
    assert made.report["removed"]["share"] >= 0.3
    assert made.report["verification"]["artefact_relative_error"] < 0.05
    kernels = made.report["census"]["after"]["kernels"]
    assert any("QLinearConv" in name for name in str(kernels).split("'"))
    types = {t.data_type for t in onnx.load(small / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert sparsecc.verify(small, model=whole / "model.onnx")["ok"]

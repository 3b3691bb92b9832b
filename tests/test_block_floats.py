"""NVFP4 and MXFP8: rounding to the nearest number of the format, and the form that TensorRT's parser takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.errors import InputError
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.underflow import UNSEEN
from sparsecc.runtime.block_floats import E8M0_BIAS, FORMATS, MXFP8, NVFP4, BlockFormat
from sparsecc.runtime.numerics import sqnr
from sparsecc.runtime.session import open_session
from tests.quantize_models import convolutions, feeds_for, transformer, weighted
from tests.test_quantize import apply, outputs

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""As the OCP specification lists them; an even one has an even number in this order."""


def _grid(form: BlockFormat) -> np.ndarray:
    """All finite numbers of the element type that are not negative, in order."""
    if form is NVFP4:
        return E2M1
    codes = np.arange(127, dtype=np.uint8)  # 127 is NaN
    return np.asarray(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def _nearest(sizes: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """By trying every number; of two that are as near, the one at an even place."""
    distance = np.abs(sizes[..., None].astype(np.float64) - grid.astype(np.float64))
    places = np.arange(len(grid))
    order = np.where(distance == distance.min(axis=-1, keepdims=True), 1 + places % 2, 3)
    return np.asarray(grid[order.argmin(axis=-1)])


def _awkward(form: BlockFormat, seed: int = 0) -> np.ndarray:
    """Numbers of all sizes, blocks of zeros, ties, and largest numbers that are powers of two times the format's."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((24, 4 * form.size)) * np.exp(rng.normal(0, 4, (24, 1)))
    x[1, : form.size] = 0
    for row, largest in ((2, form.largest), (3, form.largest / 8), (4, form.largest * 2)):
        x[row] = rng.choice(
            np.concatenate([_grid(form)[:-1], (_grid(form)[1:] + _grid(form)[:-1]) / 2]), x.shape[1]
        )
        x[row, :: form.size] = largest
    x[5] = 1e-30
    return x.astype(np.float32)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_elements_are_the_nearest_numbers_of_the_format_and_scales_too(form: BlockFormat) -> None:
    x = _awkward(form)
    whole = form.tensor_scale(float(np.abs(x).max()))
    encoded = form.encode(x, 1, whole)
    blocks = x.reshape(24, 4, form.size)
    wanted = np.abs(blocks).max(axis=2) / form.largest
    if form is NVFP4:
        e4m3 = _grid(MXFP8)
        scales = _nearest(wanted / np.float32(whole), e4m3)
        np.testing.assert_array_equal(encoded.scales.astype(np.float32), scales)
        scales = scales * np.float32(whole)
    else:
        powers = 2.0 ** np.arange(-126, 128)
        scales = powers[(powers >= wanted[..., None]).argmax(axis=-1)].astype(np.float32)
        np.testing.assert_array_equal(encoded.scales, np.log2(scales) + E8M0_BIAS)
    divided = np.clip(blocks / np.where(scales == 0, 1, scales)[..., None], -form.largest, form.largest)
    exact = np.copysign(_nearest(np.abs(divided), _grid(form)), divided)
    np.testing.assert_array_equal(encoded.levels.astype(np.float32).reshape(blocks.shape), exact)
    np.testing.assert_array_equal(encoded.decode().reshape(blocks.shape), exact * scales[..., None])


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_emulated_operators_round_as_the_reference_does(form: BlockFormat) -> None:
    """Bit by bit, in a graph as the pass writes it, with a matrix that changes nothing."""
    width = 4 * form.size
    model = weighted(
        f"id (float[24,{width}] x, WEIGHTS) => (float[24,{width}] y) {{ y = MatMul(x, w) }}",
        {"w": (width, width)},
    )
    model.graph.initializers["w"].const_value = ir.tensor(np.eye(width, dtype=np.float32), name="w")
    x = _awkward(form)
    apply(Quantize(type=form.name), model, "tensorrt", [{"x": x}])
    found = open_session(model, level="none").run({"x": x})["y"]
    np.testing.assert_array_equal(found, form.rounded(x, 1))


@pytest.mark.parametrize(("type_", "least"), [("nvfp4", 14), ("mxfp8", 26)])
@pytest.mark.parametrize("rest", ["", "fp16", "bf16"])
def test_products_are_in_the_form_of_tensorrts_parser(type_: str, least: float, rest: str) -> None:
    model = transformer()
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result, plan = apply(Quantize(type=type_, rest=rest), model, "tensorrt", [feeds])
    assert len(result.facts["nodes"]) == 6
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    kinds = Counter(node.op_type for node in model.graph)
    stored = Counter(one.data_type for one in proto.graph.initializer)
    if type_ == "nvfp4":
        assert kinds["TRT_FP4DynamicQuantize"] == 4, "three layers read one value, which is rounded once"
        assert kinds["DequantizeLinear"] == 2 * (4 + 6)
        assert stored[onnx.TensorProto.FLOAT4E2M1] == stored[onnx.TensorProto.FLOAT8E4M3FN] == 6
        assert (proto.ir_version, proto.opset_import[0].version) >= (11, 23)
    else:
        assert kinds["TRT_MXFP8DynamicQuantize"] == 4
        assert kinds["TRT_MXFP8DequantizeLinear"] == 4 + 6
        assert stored[onnx.TensorProto.FLOAT8E4M3FN] == stored[onnx.TensorProto.UINT8] == 6
    assert {entry["type"] for entry in plan.quantization.values()} == {type_, *([rest] if rest else [])}
    assert sqnr(before, next(iter(open_session(model, rounds=True).run(feeds).values()))) > least
    assert len(proto.SerializeToString()) < (0.3 if type_ == "nvfp4" else 0.4) * 202_000


def test_what_is_no_product_of_whole_blocks_stays_in_float() -> None:
    model = weighted(
        """g (float[2,40] x, float[2,4,3,64] z, float[2,64] zero, float[1,16,8,8] p, WEIGHTS)
            => (float a, float b, float c, float d) {
            a = MatMul(x, w) b = MatMul(z, v) c = MatMul(zero, v) d = Conv(p, k)
        }""",
        {"w": (40, 16), "v": (64, 64), "k": (16, 16, 3, 3)},
    )
    feeds = feeds_for(model)
    feeds["zero"] = np.zeros_like(feeds["zero"])
    result, _ = apply(Quantize(type="nvfp4"), model, "tensorrt", [feeds])
    assert not result.facts["nodes"]
    assert {remark.reason for remark in result.remarks} == {
        "40 inputs are no multiple of the block of 16",
        "it reads 4 axes: TensorRT rounds 2 or 3 to blocks",
        UNSEEN,
        "convolution: TensorRT has nvfp4 for matrix products alone",
    }


def test_nvfp4_needs_samples_mxfp8_does_not_and_other_targets_have_neither() -> None:
    with pytest.raises(InputError, match="nvfp4 needs calibration data"):
        apply(Quantize(type="nvfp4"), transformer(), "tensorrt", [])
    apply(Quantize(type="mxfp8"), transformer(), "tensorrt", [])
    with pytest.raises(InputError, match="does not accelerate 'mxfp8'"):
        apply(Quantize(type="mxfp8"), convolutions(), "onnxruntime", [])


@pytest.mark.parametrize(
    "options", [{"block": 16}, {"algorithm": "gptq"}, {"smooth": 0.5}, {"method": "mse"}]
)
def test_options_that_do_nothing_for_it_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="does nothing for mxfp8: leave it out"):
        apply(Quantize(type="mxfp8", **options), transformer(), "tensorrt", [])


def test_a_compile_judges_it_on_samples_writes_it_and_warns(tmp_path: Path) -> None:
    model = transformer()
    ir.save(model, tmp_path / "model.onnx")
    feeds = [feeds_for(model, seed=seed)["tokens"] for seed in range(8)]
    np.savez(tmp_path / "c.npz", tokens=np.concatenate(feeds))
    made = sparsecc.compile(
        tmp_path / "model.onnx", quantize="nvfp4", output=tmp_path / "o", target="tensorrt", emit="onnx",
        calib=tmp_path / "c.npz", measure=False,
    )  # fmt: skip
    facts = made.report["fidelity"]
    assert 14 < facts["quality_db"] < 20
    assert any("keeps" in warning and "exclude=LAYER" in warning for warning in made.report["warnings"])
    assert made.report["verification"]["status"] == "proved"
    checks = sparsecc.verify(tmp_path / "o", model=tmp_path / "model.onnx", calib=tmp_path / "c.npz")[
        "checks"
    ]
    assert all(row["ok"] for row in checks)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_numbers_too_small_for_a_scale_become_zero_and_never_nan(form: BlockFormat) -> None:
    array = np.zeros((1, 2 * form.size), np.float32)
    array[0, 0] = 1e-42
    assert not form.rounded(array, 1).any()

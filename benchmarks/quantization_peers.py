"""What onnxruntime's and onnxsim's own tools make of the cases of `benchmarks/quantization.py`, as they come.

onnxsim is asked for the same types; for int4 and int8 mixed by layer, a low-rank path beside int4 weights (LQER), and
2:4 patterns. Its int4 and int8 in blocks want opset 21, to which its input is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quantization_cases import Case, Feeds

Facts = dict[str, Any]
BLOCKED_OPSET = 21


class Reader:
    """Calibration feeds in the form that onnxruntime.quantization wants."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        """The next feeds, or None at the end."""
        return next(self._feeds, None)


def onnxruntime(kind: str, case: Case, folder: Path) -> tuple[Path, Facts]:
    """A type of onnxruntime's tools (fp16 with float32 inputs and outputs)."""
    import onnx
    from onnxruntime import quantization

    path = folder / "model.onnx"
    if kind == "int8":
        quantization.quantize_static(case.path, path, Reader(case.calibration))
    elif kind == "int8-dynamic":
        quantization.quantize_dynamic(case.path, path)
    elif kind == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        rounding = MatMulNBitsQuantizer(onnx.load(case.path))
        rounding.process()
        rounding.model.save_model_to_file(str(path))
    else:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(case.path), keep_io_types=True), path)
    return path, {}


def onnxsim(kind: str, case: Case, folder: Path) -> tuple[Path, Facts]:
    """One of ONNXSIM, of the simplified model and with the calibration data of the case where it takes any."""
    import onnx
    import onnxsim as tool

    simple, _ = tool.simplify(onnx.load(case.path))
    path = folder / "model.onnx"
    onnx.save(ONNXSIM[kind](tool, simple, [dict(feeds) for feeds in case.calibration]), path)
    return path, {}


def _blocked(change: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """At the opset of blocked types, and without the fusion that ONNX Runtime gets wrong."""

    def changed(tool: Any, model: Any, data: Any) -> Any:
        from onnx import version_converter

        raised = version_converter.convert_version(model, BLOCKED_OPSET)
        return tool.workaround_ort_matmul_nbits_axis0_bug(change(tool, raised, data))

    return changed


def _lqer(tool: Any, model: Any, data: Any) -> Any:
    return tool.apply_lqer(model, tool.quantize_weight_only_int4(model), rank=8, calibration_data=data)


ONNXSIM: Mapping[str, Callable[[Any, Any, Any], Any]] = {
    "int8": lambda tool, model, data: tool.quantize_static(model, calibration_data=data),
    "int8-dynamic": lambda tool, model, data: tool.quantize_dynamic(model),
    "int4": lambda tool, model, data: tool.quantize_weight_only_matmul_nbits(model),
    "fp16": lambda tool, model, data: tool.quantize_fp16(model),
    "int4 and int8": _blocked(
        lambda tool, model, data: tool.apply_mixed_precision_quantization(model, calibration_data=data)
    ),
    "int4 path": _blocked(_lqer),
    "2:4 wanda": lambda tool, model, data: tool.apply_wanda_pruning(model, calibration_data=data, n=2, m=4),
    "2:4 sparsegpt": lambda tool, model, data: tool.apply_sparsegpt_pruning(
        model, calibration_data=data, n=2, m=4
    ),
}

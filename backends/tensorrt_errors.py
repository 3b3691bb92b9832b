"""What TensorRT's parser and builder say, as one line about our node and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsecc.text import one_line, quoted

_POSITION = re.compile(r"\s*In [\w:~<>()]+ at [^\s()]+:\d+\)?")
_PREFIX = re.compile(
    r"^(?:[\w.]+:\d+: )?(?:\[?[\w:.]+\]?:+ ?)*Error Code \d+: (?:[A-Z]\w*(?: [A-Z]\w*)* )?\(?"
)
_ASSERTION = re.compile(r"^Assertion failed: .*?:\s*")
_CUDA_NOISE = re.compile(r"\[?checkMacros|catchCudaError|cudaError 35")


@dataclass(frozen=True)
class Refusal:
    """One node that TensorRT does not take. `node` and `operator` are empty for the whole model."""

    node: str
    operator: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f"node {quoted(self.node)} ({one_line(self.operator, 60)})" if self.operator else "the model"
        return f"{where}: {self.reason}: {self.remedy}"


_UNKNOWN_OPERATOR = "TensorRT has no such operator and no plugin of that name is loaded"
_USE_PLUGIN = "give the folder of a plugin for it with --plugins, or export the model without it"
_OUR_TYPES = "quantize with --target tensorrt, which writes QuantizeLinear and DequantizeLinear that it takes"
_REMEDIES = {
    "DynamicQuantizeLinear": _OUR_TYPES,
    "MatMulInteger": _OUR_TYPES,
    "ConvInteger": _OUR_TYPES,
    "QLinearConv": _OUR_TYPES,
    "QLinearMatMul": _OUR_TYPES,
    "QGemm": _OUR_TYPES,
    "FusedMatMul": "compile from the model before ONNX Runtime fused it",
    "FusedConv": "compile from the model before ONNX Runtime fused it",
    "BiasGelu": "compile from the model before ONNX Runtime fused it",
    "SkipLayerNormalization": "compile from the model before ONNX Runtime fused it",
}
_RULES: tuple[tuple[str, str, str], ...] = (
    (r"Plugin not found|plugin creator|plugin registry", _UNKNOWN_OPERATOR, _USE_PLUGIN),
    (
        r"must have (?:the )?same (?:input )?types?",
        "its inputs have different types, and a strongly typed network converts nothing by itself",
        "put a Cast before it, or let --quantize fp16|bf16 insert them",
    ),
    (
        r"[Nn]on-zero zero point",
        "its zero point is not 0, and TensorRT quantizes symmetrically only",
        "quantize with --target tensorrt so that the zero points are 0",
    ),
    (
        r"Failed to convert ONNX dat[ea] type",
        "it has a data type that TensorRT lacks (string, complex, unsigned 16/32/64 bits)",
        "move that part of the model out of it, before or after the engine",
    ),
    (
        r"reshape changes volume",
        "its target shape does not hold as many elements as its input",
        "check the model with onnx.checker and export it again",
    ),
    (r"[Dd]ouble", "it computes in double precision", "cast it to float before exporting"),
)
_BUILD_RULES: tuple[tuple[str, str, str], ...] = (
    (r"BuildCanceled", "the build was cancelled", "start it again"),
    (
        r"no optimization profile has been defined",
        "it has dynamic inputs and no shapes to build for",
        "give them with --input name:min|opt|max",
    ),
    (
        r"libnvinfer_lean|libnvinfer_dispatch",
        "the lean runtime that version-compatible plans carry is not installed",
        "pip install tensorrt-lean, or build without version_compatible",
    ),
    (
        r"graph_jit.*CUDA_SUCCESS",
        "the kernels of refittable plans are compiled on a GPU, and none answers here",
        "leave refit and stripped out, or build beside a GPU",
    ),
    (
        r"cudaError 35|driver version is insufficient|no CUDA-capable device",
        "no CUDA driver or GPU answers here",
        "use --target tensorrt-rtx, --device ssh://..., or --emit onnx",
    ),
    (
        r"(?i)out of memory|Insufficient workspace|Memory allocation failed",
        "the builder ran out of memory",
        "raise the option workspace, free GPU memory, or lower optimization_level",
    ),
    (
        r"[Cc]ould not find any implementation for node",
        "no kernel fits one of its layers",
        "raise the option workspace, or remove tactic_sources",
    ),
    (
        r"(?i)min.*opt.*max|profile.*(?:invalid|out of range|violat)",
        "an optimization profile does not fit the model",
        "check --input name:min|opt|max against the shapes of the inputs",
    ),
)


def parse_refusal(description: str, node: str, operator: str) -> Refusal:
    """A refusal from what one ParserError says."""
    for pattern, reason, remedy in _RULES:
        if re.search(pattern, description):
            return Refusal(node, operator, reason, _REMEDIES.get(operator, remedy))
    text = plain(description)
    if not text or text in {"false", "true"}:
        remedy = _REMEDIES.get(operator, _USE_PLUGIN)
        return Refusal(node, operator, "TensorRT does not support this operator", remedy)
    return Refusal(node, operator, f"TensorRT says: {text}", "change that node or keep it out of the engine")


def summary(refusals: Sequence[Refusal]) -> str:
    """All refusals as one line: the first in full, the other operators counted."""
    distinct = list(dict.fromkeys(refusals))
    named = [r for r in distinct if r.operator] or distinct
    others = sorted({r.operator for r in named[1:] if r.operator})
    more = f"; {len(named) - 1} more of {', '.join(one_line(o, 40) for o in others[:6])}" if others else ""
    return f"{named[0]}{more}"


def build_failure(lines: Sequence[str]) -> tuple[str, str]:
    """(reason, remedy) from the error lines of a failed build, in their order; the first known decides."""
    for line in lines:
        for pattern, reason, remedy in _BUILD_RULES:
            if re.search(pattern, line):
                return reason, remedy
    text = next((p for p in (plain(line) for line in lines) if p), "it gave no reason")
    return f"TensorRT says: {text}", "run again with --debug to keep its log"


def plain(text: str) -> str:
    """The fact in a message: without source positions, error codes and the follow-up of a missing driver."""
    kept = [line for line in text.splitlines() if not _CUDA_NOISE.search(line)]
    body = " ".join(line for line in kept if not line.startswith(("Invalid Node", "Node name", "---")))
    body = _POSITION.sub("", body)
    body = _PREFIX.sub("", body)
    body = _ASSERTION.sub("", body)
    return one_line(body.strip(" .:()"), 220)

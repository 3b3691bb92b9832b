"""What TensorRT's parser and builder say, as one line about our node and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsecc.escaping import one_line, quoted

Nodes = Mapping[str, str]
"""Node name -> operator, of the model that is built."""

_POSITION = re.compile(r"\s*In [\w:~<>()]+ at [^\s()]+:\d+\)?")
_PREFIX = re.compile(
    r"^(?:[\w.]+:\d+: )?(?:\[?[\w:.]+\]?:+ ?)*Error Code \d+: (?:[A-Z]\w*(?: [A-Z]\w*)* )?\(?"
)
_ASSERTION = re.compile(r"^Assertion failed: .*?:\s*")
_LAYER = re.compile(
    r"\bI\w+Layer (?P<layer>\S.*?): "
    r"|\bfor node (?P<node>\{ForeignNode\[.*?\]\}|\S.*?)(?=\.?(?: due to| with|\. |\)|\s*$))"
    r"|\bstream = \d+ // (?P<comment>\S+)"
    r"|\b__mye\d+(?P<constant>[\w./]+?)_(?:alpha|beta)\b",
    re.MULTILINE,
)
"""Where the builder names a layer: the layer itself, a kernel's node, and Myelin's listing of one operation."""
_ENDING = re.compile(r"[^A-Za-z0-9](?!\d)")
_FUSED = re.compile(r"\{ForeignNode\[|\]\}|\.{3}| \+ ")
_REPEATED = re.compile(r"^I\w+Layer (\S+): (?:\1: )?")
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
        "no kernel fits it",
        "raise the option workspace, or remove tactic_sources",
    ),
    (
        r"Could not infer output types for operation",
        "there is no kernel for it in this type",
        "keep it in float32 with --quantize-option exclude=NODE",
    ),
    (
        r"changes volume|must be conformable|mismatching dimensions|out of bounds|same dimensions",
        "its shapes do not fit together at the sizes that it is built for (FACT)",
        "give others with --input name:min|opt|max, or export with these dimensions free",
    ),
    (
        r"exceeds the maximum value allowed",
        "it asks for more than TensorRT has kernels for (FACT)",
        "make it smaller, or move that part of the model out of the engine",
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


def build_failure(lines: Sequence[str], nodes: Nodes) -> Refusal:
    """The refusal in the error lines of a failed build, in their order; the first known one decides.

    It is about the node of the model that the builder's layer came from, where a line tells that.
    """
    node = next((found for line in lines if (found := node_in(line, nodes))), "")
    operator = nodes.get(node, "")
    for line in lines:
        for pattern, reason, remedy in _BUILD_RULES:
            if re.search(pattern, line):
                reason = reason.replace("FACT", plain(line))
                return Refusal(node, operator, reason, remedy.replace("NODE", node or "NODE"))
    text = next((p for p in (plain(line) for line in lines) if p), "it gave no reason")
    remedy = (
        "change that node or keep it out of the engine" if node else "run again with --debug to keep its log"
    )
    return Refusal(node, operator, f"TensorRT says: {text}", remedy)


def node_in(line: str, nodes: Nodes) -> str:
    """The node of the model that an error line of the builder is about, or "".

    Layers bear the names of their nodes, alone, joined by `+` where several became one, or as the first and last
    of a region, and sometimes with an ending of TensorRT's own.
    """
    for layer in _layers_in(line):
        if layer in nodes:
            return layer
        begins = [name for name in nodes if layer.startswith(name) and _ENDING.match(layer[len(name) :])]
        if begins:
            return max(begins, key=len)
    return ""


def _layers_in(line: str) -> Iterator[str]:
    for found in _LAYER.finditer(line):
        name = next(group for group in found.groups() if group)
        yield name
        yield from (part for part in _FUSED.split(name) if part)


def nodes_of(onnx: Path) -> dict[str, str]:
    """The nodes of an ONNX file by name, with their operators; its weights are not read."""
    import onnx_ir as ir

    return {node.name: node.op_type for node in ir.load(onnx).graph.all_nodes() if node.name}


def plain(text: str) -> str:
    """The fact in a message: without source positions, error codes and the follow-up of a missing driver."""
    kept = [line for line in text.splitlines() if not _CUDA_NOISE.search(line)]
    body = " ".join(line for line in kept if not line.startswith(("Invalid Node", "Node name", "---")))
    body = _POSITION.sub("", body)
    body = _PREFIX.sub("", body)
    body = _ASSERTION.sub("", body)
    body = _REPEATED.sub("", body).strip(" .:")
    while body.endswith(")") and body.count(")") > body.count("("):
        body = body[:-1].rstrip(" .")
    return one_line(body, 220)

"""What the engine inspector tells about a plan, from the JSON of TensorRT 10 and of 11, in one form."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SPARSE_TACTIC = re.compile(r"(?i)sparse|spgemm|spconv")
_WIDE = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32, "sixty-four": 64}
_STEP = re.compile(r"(?i)(?:CHW|HWC)(\d+)|\bc(?:hannel)? ?% ?(\d+) ?== ?0|\b([a-z-]+) wide channel")
_FUSED = re.compile(r"\s*\+\s*")
_TYPES = (
    ("int8", re.compile(r"(?i)int8|\bi8")),
    ("fp8", re.compile(r"(?i)fp8|float8|e4m3")),
    ("int4", re.compile(r"(?i)int4")),
    ("fp4", re.compile(r"(?i)fp4|e2m1")),
    ("bf16", re.compile(r"(?i)bf16|bfloat16")),
    ("fp16", re.compile(r"(?i)fp16|half|float16")),
    ("fp32", re.compile(r"(?i)fp32|float")),
    ("int64", re.compile(r"(?i)int64")),
    ("int32", re.compile(r"(?i)int32")),
    ("bool", re.compile(r"(?i)bool")),
)


@dataclass(frozen=True)
class Port:
    """An input or output of a layer. `type` is our word (fp32, int8 ...), `layout` the inspector's."""

    name: str
    shape: tuple[int, ...]
    type: str
    layout: str


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: the ONNX nodes in it, the kernel picked, and whether that kernel is sparse.

    `channels` and `padded` are the output channels of the model and those the kernel computes (None when
    the inspector does not say). `weights_sparse` is None when it says nothing on 2:4.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    tactic: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights_sparse: bool | None
    kernel_sparse: bool
    channels: int | None = None
    padded: int | None = None

    @property
    def type(self) -> str:
        """The type of its first output."""
        return self.outputs[0].type if self.outputs else ""


def parse_layers(text: str) -> list[EngineLayer]:
    """Layers from the inspector's JSON or a file of `trtexec --exportLayerInfo`. InputError on other text.

    An engine built without detailed verbosity gives names only; its layers then have empty kinds.
    """
    try:
        data = json.loads(text)
    except ValueError as e:
        raise InputError(
            f"layer information is not JSON ({one_line(str(e), 80)}): build the engine again"
        ) from e
    layers = data.get("Layers") if isinstance(data, Mapping) else data
    if not isinstance(layers, list):
        raise InputError("layer information has no list 'Layers': build the engine again with this version")
    return [_layer(entry) for entry in layers]


def census(layers: Sequence[EngineLayer]) -> dict[str, Any]:
    """Counts by kind and by type, and how many layers got a sparse kernel."""
    return {
        "layers": len(layers),
        "by_kind": dict(sorted(Counter(layer.kind or "unknown" for layer in layers).items())),
        "by_type": dict(sorted(Counter(layer.type or "unknown" for layer in layers).items())),
        "sparse_kernels": sum(layer.kernel_sparse for layer in layers),
    }


def sparsity_table(layers: Sequence[EngineLayer], log: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Rows of eligible against picked, for layers whose weights are 2:4 or that the builder's log names.

    `log` holds the builder's lines on sparsity, as `tensorrt_build.sparsity_lines` returns them.
    """
    eligible, picked = sparsity_of_log(log)
    rows = []
    for layer in layers:
        names = {layer.name, *layer.nodes}
        is_eligible = bool(layer.weights_sparse) or bool(names & eligible)
        is_picked = layer.kernel_sparse or bool(names & picked)
        if is_eligible or is_picked:
            rows.append(
                {"layer": layer.name, "eligible": is_eligible, "picked": is_picked, "tactic": layer.tactic}
            )
    seen = {name for layer in layers for name in (layer.name, *layer.nodes)}
    rows += [
        {"layer": name, "eligible": name in eligible, "picked": name in picked, "tactic": ""}
        for name in sorted((eligible | picked) - seen)
    ]
    return rows


def sparsity_of_log(lines: Iterable[str]) -> tuple[set[str], set[str]]:
    """(eligible, picked) layer names from the builder's lines `... eligible for sparse math: a, b` and
    `... picked sparse implementation for layers: a`."""
    found: dict[str, set[str]] = {"eligible": set(), "picked": set()}
    for line in lines:
        head, colon, names = line.partition(":")
        key = next((k for k in found if k in head), None)
        if colon and key is not None:
            found[key] |= {name.strip() for name in names.split(",") if name.strip()}
    return found["eligible"], found["picked"]


def as_rows(layers: Sequence[EngineLayer]) -> list[dict[str, Any]]:
    """The layers as plain data for the report."""
    return [asdict(layer) | {"type": layer.type} for layer in layers]


def _layer(entry: object) -> EngineLayer:
    if not isinstance(entry, Mapping):
        return EngineLayer(_text(entry), "", (), "", (), (), None, False)
    tactic = _text(entry.get("TacticName") or entry.get("TacticValue") or "")
    outputs = _ports(entry.get("Outputs"))
    weights = entry.get("HasSparseWeights", entry.get("SparseWeights"))
    kind = _text(entry.get("ParameterSubType") or entry.get("LayerType") or entry.get("ParameterType") or "")
    channels = _number(entry.get("OutMaps", entry.get("NbOutputMaps")))
    return EngineLayer(
        name=_text(entry.get("Name", "")),
        kind=kind,
        nodes=_nodes(entry),
        tactic=tactic,
        inputs=_ports(entry.get("Inputs")),
        outputs=outputs,
        weights_sparse=bool(weights) if weights is not None else None,
        kernel_sparse=bool(_SPARSE_TACTIC.search(tactic)),
        channels=channels,
        padded=_padded(channels, outputs),
    )


def _nodes(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """ONNX nodes from the metadata where the parser left it, else from the fused layer's name."""
    named = _NODE.findall(_text(entry.get("Metadata", ""), 20_000))
    if named:
        return tuple(dict.fromkeys(named))
    return tuple(part for part in _FUSED.split(_text(entry.get("Name", ""))) if part)


def _ports(entries: object) -> tuple[Port, ...]:
    if not isinstance(entries, list):
        return ()
    return tuple(_port(entry) for entry in entries if isinstance(entry, Mapping))


def _port(entry: Mapping[str, Any]) -> Port:
    """TensorRT 10 words type and layout together ("Format/Datatype"); 11 in two fields."""
    together = _text(entry.get("Format/Datatype", ""))
    type_text = _text(entry.get("Datatype") or entry.get("DataType") or entry.get("Type") or together)
    layout = _text(entry.get("Format") or together)
    shape = entry.get("Dimensions", entry.get("Shape", []))
    sizes = tuple(s for s in shape if isinstance(s, int)) if isinstance(shape, list) else ()
    return Port(_text(entry.get("Name", "")), sizes, _type_of(type_text), layout)


def _type_of(text: str) -> str:
    return next((name for name, pattern in _TYPES if pattern.search(text)), text.lower())


def _padded(channels: int | None, outputs: Sequence[Port]) -> int | None:
    """Vectorised layouts (`CHW32`, `Channel major FP16 format where C % 8 == 0`) round channels up."""
    if channels is None or not outputs:
        return None
    found = _STEP.search(outputs[0].layout)
    word = next(group for group in found.groups() if group) if found else "1"
    step = int(word) if word.isdigit() else _WIDE.get(word.lower(), 1)
    return -(-channels // step) * step


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object, limit: int = 2_000) -> str:
    return one_line(str(value), limit)

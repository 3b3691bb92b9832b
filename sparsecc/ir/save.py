"""Writing a graph to a file."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir

from sparsecc.ir.apart import is_apart, large, outline
from sparsecc.system import memory

_BESIDE = 1024
"""Bytes of a weight that lies beside the model, where weights do."""
_KEEP_SHAPE = frozenset({"QuantizeLinear", "DequantizeLinear"})
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"
"""Tags of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data, each of some length (onnx.proto)."""


def write(model: ir.Model, path: Path, beside: int = memory.BESIDE) -> Path:
    """Write a graph as it stands, its weights in a file of their own where they have over `beside` bytes.

    No weight is copied; equal models give equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if memory.weight_bytes(model) > beside:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_BESIDE)
        return path
    with path.open("wb") as file:
        _write_inline(model, file)
    return path


def _write_inline(model: ir.Model, file: IO[bytes]) -> None:
    """One ModelProto, its initializers last in the graph, in their order and one by one."""
    weights = large(model)
    proto = outline(model, weights)
    heads, sizes = [], []
    for tensor in proto.graph.initializer:
        length = weights[tensor.name].nbytes if is_apart(tensor) else 0
        if length:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
        heads.append(tensor.SerializeToString() + (_RAW_DATA + varint(length) if length else b""))
        sizes.append(len(heads[-1]) + length)
    names = [tensor.name for tensor in proto.graph.initializer]
    _drop_needless(proto.graph)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    total = len(graph) + sum(1 + len(varint(size)) + size for size in sizes)
    file.write(proto.SerializeToString() + _GRAPH + varint(total))
    file.write(graph)
    for name, head, size in zip(names, heads, sizes, strict=True):
        file.write(_INITIALIZER + varint(size) + head)
        if size > len(head):
            _write_bytes(weights[name], file)


def _drop_needless(graph: onnx.GraphProto) -> None:
    """Take out types and shapes that stand in the file already, or follow from one operand alone."""
    needless = {tensor.name for tensor in graph.initializer}
    needless |= {name for node in graph.node if node.op_type in _KEEP_SHAPE for name in node.output}
    kept = [info for info in graph.value_info if info.name not in needless]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _write_bytes(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    """The bytes as ONNX stores them, without a copy where the tensor can do that."""
    if isinstance(tensor, ir.Tensor | ir.LazyTensor | ir.ExternalTensor | ir.PackedTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def varint(number: int) -> bytes:
    """Base 128, lowest digits first, as protobuf writes lengths."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])

"""onnx-graphsurgeon at the door: TensorRT users edit a compiled model in it, or hand theirs in as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sparsecc.errors import InputError, MissingPackageError
from sparsecc.escaping import one_line, quoted
from sparsecc.loading.private_copy import require_sound

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs


def to_graphsurgeon(path: Path) -> gs.Graph:
    """An ONNX file as a `gs.Graph`, its weights loaded. InputError when the file cannot be read."""
    gs = _library()
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

    require_sound(path)
    try:
        return gs.import_onnx(onnx.load(path))
    except (OSError, DecodeError) as e:
        raise InputError(f"{quoted(str(path))} is no readable ONNX file: compile again") from e


def from_graphsurgeon(graph: gs.Graph) -> ir.Model:
    """The model of a `gs.Graph`, cleaned up and sorted as its own export does. The graph is left as it is."""
    gs = _library()
    copy: Any = graph.copy()
    try:
        proto: onnx.ModelProto = gs.export_onnx(copy.cleanup().toposort())
    except (gs.OnnxGraphSurgeonException, ValueError, TypeError) as e:
        raise InputError(f"the gs.Graph does not export ({one_line(str(e), 120)}): mend its nodes") from e
    return ir.from_proto(proto)


def _library() -> Any:
    try:
        import onnx_graphsurgeon
    except ImportError as e:
        raise MissingPackageError(
            "graphs of onnx-graphsurgeon need the extra: pip install 'sparsecc[graphsurgeon]'"
        ) from e
    return onnx_graphsurgeon

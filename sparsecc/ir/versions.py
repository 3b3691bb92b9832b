"""The versions that a file states: of the ONNX operators (opset) and of the format (IR)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.ir.graph_editor import prepare
from sparsecc.ir.lower_opset import lower_opset
from sparsecc.system.memory import HELD

_SINCE = {
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 9),
    **dict.fromkeys(("INT4", "UINT4"), 10),
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    **dict.fromkeys(("INT2", "UINT2"), 13),
}
"""The version of the format with which a type came; all others are older than the oldest that can be asked for."""


def opset_of(model: ir.Model) -> int:
    """The version of the default domain's operators."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def raise_opset(model: ir.Model, version: int) -> bool:
    """Convert the model to at least this version of the ONNX operators; whether anything changed."""
    current = opset_of(model)
    if current >= version:
        return False
    try:
        newer = _converted(model, version)
    except ValueError as e:
        raise InputError(
            f"quantize: the model's opset {current} cannot be raised to {version} "
            f"({e}): export it at opset {version} or later"
        ) from e
    model.graph = newer.graph
    model.ir_version = max(model.ir_version or 0, newer.ir_version or 0)
    prepare(model)
    return True


def at_versions(model: ir.Model, opset: int | None, ir_version: int | None) -> ir.Model:
    """The model at this opset and version of the format, itself where it states them; None leaves one as it is.

    InputError where an operator or a type of it did not exist then.
    """
    if opset is not None and opset != opset_of(model):
        current, given = opset_of(model), model
        try:
            if opset > current:
                model = _converted(given, opset)
                model.metadata_props.update(given.metadata_props)
                model.ir_version = given.ir_version
            else:
                model = given.clone()
                lower_opset(model, current, opset)
        except ValueError as e:
            raise InputError(
                f"--opset {opset}: the result cannot be written so ({e}): take a version nearer to {current}, "
                "which it has"
            ) from e
    if ir_version is not None:
        newest = max(_types(model), key=lambda kind: _SINCE.get(kind.name, 0), default=ir.DataType.FLOAT)
        if (needed := _SINCE.get(newest.name, 0)) > ir_version:
            raise InputError(
                f"--ir-version {ir_version}: {newest.name} came with version {needed}: give that"
            )
        model.ir_version = ir_version
    return model


def _types(model: ir.Model) -> Iterator[ir.DataType]:
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        for value in values:
            dtype = value.const_value.dtype if value.const_value is not None else value.dtype
            if dtype is not None:
                yield dtype


def _converted(model: ir.Model, version: int) -> ir.Model:
    """A copy at another opset. ValueError says what has no form there."""
    import onnx
    from onnx import version_converter

    held = _set_aside(model.graph)
    try:
        converted = version_converter.convert_version(ir.to_proto(model), version)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as e:
        _put_back(model.graph, held)
        lines = [line for line in str(e).splitlines() if line.strip()]
        raise ValueError(one_line(lines[0] if lines else "onnx does not say why", 200)) from e
    found = ir.from_proto(converted)
    _put_back(model.graph, held)
    _put_back(found.graph, held)
    return found


def _put_back(graph: ir.Graph, held: dict[str, ir.TensorProtocol]) -> None:
    for name, tensor in held.items():
        graph.initializers[name].const_value = tensor


def _set_aside(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Take large constants out and leave references to no file: no converter looks at them, or has the memory."""
    held: dict[str, ir.TensorProtocol] = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > HELD:
            held[name] = tensor
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                "held", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
    return held

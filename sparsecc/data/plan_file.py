"""The plan of a bundle from someone else: nothing in it is believed before it is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.ir.file_names import Origin, origin_of, turned
from sparsecc.plan import SCHEMA

Test = Callable[[Any], bool]


def read_plan(data: Mapping[str, Any]) -> dict[str, Any]:
    """The plan, once its parts have the types that the schema gives them; else InputError."""
    plan = dict(data)
    if plan.get("schema") != SCHEMA:
        raise InputError(f"plan.json is not of schema {SCHEMA}: compile again")
    plan = {**_ABSENT, **plan}
    for name, sound in _PARTS.items():
        if not sound(plan.get(name)):
            raise InputError(f"plan.json: '{name}' is not as schema {SCHEMA} has it: compile again")
    return plan


def in_own_names(plan: Mapping[str, Any], model: ir.Model) -> dict[str, Any]:
    """A plan, which speaks of the file's tensors, of those of the (normalised) model: some were turned around."""
    known, tensors = turned(model), {}
    for name, entry in plan["tensors"].items():
        value = known.get(name) if name not in model.graph.initializers else None
        origin = origin_of(value) if value is not None else None
        if value is None or origin is None:
            tensors[name] = entry
        elif "uses" in entry:
            tensors[value.name] = {"uses": {u: _turned(axes, origin) for u, axes in entry["uses"].items()}}
        else:
            tensors[value.name] = _turned(entry, origin)
    return {**plan, "tensors": tensors}


def _turned(axes: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """What is said of the axes of the file's tensor, of those of the turned one."""
    places = {str(axis): str(place) for place, axis in enumerate(origin.order)}
    return {places.get(axis, axis): fact for axis, fact in axes.items()}


def require_fits(plan: Mapping[str, Any], model: ir.Model) -> None:
    """InputError unless every tensor, axis and node that a plan (as `read_plan` gave it) names is there."""
    nodes = {node.name: node for node in model.graph.all_nodes()}
    for name, entry in in_own_names(plan, model)["tensors"].items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise InputError(f"plan.json names the tensor {quoted(name)}, which the model does not have")
        shape = tuple(value.const_value.shape)
        for axes in entry["uses"].values() if "uses" in entry else [entry]:
            _require_axes(name, axes, shape)
        for use in entry.get("uses", ()):
            _require_operand(use, nodes)
    for group in plan["groups"]:
        for branch in group.get("branches", ()):
            _require_operand(branch, nodes)
    for name in [plan["tokens"]["attention"], *plan["tokens"]["later"]] if plan["tokens"] else []:
        if name not in nodes or nodes[name].op_type != "Softmax":
            raise InputError(f"plan.json names the attention {quoted(name)}, which the model does not have")


def _require_axes(name: str, axes: Mapping[str, Any], shape: tuple[Any, ...]) -> None:
    for axis, fact in axes.items():
        if int(axis) >= len(shape) or fact["size"] != shape[int(axis)]:
            raise InputError(f"plan.json: axis {axis} of {quoted(name)} is not as the model has it")


def _require_operand(text: str, nodes: Mapping[str | None, ir.Node]) -> None:
    name, _, operand = text.rpartition(":")
    node = nodes.get(name)
    known = node is not None and _is_index(operand) and int(operand) < len(node.inputs)
    if not known or node is None or node.inputs[int(operand)] is None:
        raise InputError(f"plan.json names the operand {quoted(text)}, which the model does not have")


def _is_index(value: Any) -> bool:
    """A small number written in digits, as axes are in JSON."""
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(keys: Test, values: Test) -> Test:
    return lambda value: (
        isinstance(value, dict) and all(keys(k) for k in value) and all(values(v) for v in value.values())
    )


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(test(v) for v in value)


def _record(**parts: Test) -> Test:
    return lambda value: (
        isinstance(value, dict) and all(name in value and sound(value[name]) for name, sound in parts.items())
    )


def _is_axis(value: Any) -> bool:
    return _AXIS(value) and all(slot < value["size"] for slot in value["keep"])


def _is_tensor(value: Any) -> bool:
    if isinstance(value, dict) and "uses" in value:
        return set(value) == {"uses"} and _mapping(_is_text, _AXES)(value["uses"])
    return _AXES(value)


def _is_group(value: Any) -> bool:
    return _GROUP(value) and (value["kind"] != "layer" or _list_of(_is_text)(value.get("branches")))


_AXIS = _record(size=_is_count, keep=_list_of(_is_count), summed=_is_flag)
_AXES = _mapping(_is_index, _is_axis)
_GROUP = _record(id=_is_count, kind=_is_text, size=_is_count, kept=_is_count, mixes=_is_flag)
_MODEL, _DATA = _record(sha256=_is_text), _mapping(_is_text, _is_text)
_ANY = _mapping(_is_text, lambda value: True)
_LEFT = _mapping(_is_text, _mapping(_is_index, _list_of(_is_count)))
_PORTS = _record(gone=_list_of(_is_text), renamed=_mapping(_is_text, _is_text), last=_list_of(_is_text))
_TOKENS = _record(
    attention=_is_text, later=_list_of(_is_text), first=_is_count, patches=_is_count, kept=_is_count
)
_ABSENT: dict[str, Any] = {"io": {}, "repaired": [], "tokens": {}, "ports": {}}
_PARTS: dict[str, Test] = {
    "model": lambda value: _MODEL(value) and _DATA(value.get("data", {})),
    "tensors": _mapping(_is_text, _is_tensor),
    "groups": _list_of(_is_group),
    "dropped_nodes": _list_of(_is_text),
    "patterns": _ANY,
    "quantization": _ANY,
    "repaired": _list_of(_is_text),
    "ports": lambda value: (
        value == {} or _record(gone=_list_of(_is_text), renamed=_mapping(_is_text, _is_text))(value)
    ),
    "io": _mapping(lambda side: side in ("inputs", "outputs"), _LEFT),
    "tokens": lambda value: value == {} or _TOKENS(value),
}
"""Each part of a plan with what it must be."""

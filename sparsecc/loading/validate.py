"""The walk over a parsed model that finds out whether it is sound, before any library works on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.loading.external import ExternalFiles
from sparsecc.loading.function_calls import inlined_nodes
from sparsecc.loading.limits import Limits
from sparsecc.loading.operand_shapes import complaint
from sparsecc.loading.operators import OperatorChecker, check_attribute, normal_domain
from sparsecc.loading.scopes import FunctionKey, Room, settle
from sparsecc.loading.tensors import TensorChecker

A = onnx.AttributeProto


def preflight(model: onnx.ModelProto, files: ExternalFiles, limits: Limits) -> list[str]:
    """Check the whole model; sort graphs that are out of order. Returns notes on what was mended or unknown.

    InputError, in one line with escaped names, for whatever is not sound.
    """
    walk = _Walk(model, TensorChecker(files, limits), OperatorChecker(limits), limits)
    walk.check_header()
    rooms = list(walk.enter_all())
    nodes = inlined_nodes(walk.plain, walk.calls)
    if nodes > limits.nodes:
        raise InputError(
            f"the model has {nodes if nodes < 10**12 else 'over 10^12'} nodes, its functions inlined, "
            f"over {limits.nodes}: raise the limit nodes"
        )
    for room in reversed(rooms):
        if settle(room):
            walk.notes.add(f"{room.where}nodes were out of order and have been sorted")
        if room.depth == 0 and room.free:
            name, place = next(iter(room.free.items()))
            raise InputError(f"{place}: nothing defines input {quoted(name)}: export the model again")
    return sorted(walk.notes | walk.operators.notes)


@dataclass
class _Walk:
    model: onnx.ModelProto
    tensors: TensorChecker
    operators: OperatorChecker
    limits: Limits
    notes: set[str] = field(default_factory=set)
    plain: Counter[FunctionKey | None] = field(default_factory=Counter)
    calls: dict[FunctionKey | None, Counter[FunctionKey]] = field(default_factory=dict)
    functions: dict[FunctionKey, onnx.FunctionProto] = field(default_factory=dict)

    def check_header(self) -> None:
        model = self.model
        require_text("the header", model)
        if not model.HasField("graph"):
            raise InputError("the file holds no graph: it is not an ONNX model, or only the start of one")
        if not 1 <= model.ir_version <= onnx.IR_VERSION:
            raise InputError(
                f"ONNX file version (ir_version) {model.ir_version} is not known: "
                f"onnx {onnx.__version__} reads 1 to {onnx.IR_VERSION}; install a newer onnx or export again"
            )
        if not model.opset_import and model.ir_version >= 3:
            raise InputError("the model declares no opset: export it again with an opset import")
        for function in model.functions:
            require_text("functions", function)
            key = (normal_domain(function.domain), function.name, function.overload)
            if key in self.functions:
                raise InputError(f"function {quoted(function.name)} is defined twice: export the model again")
            self.functions[key] = function

    def enter_all(self) -> Iterator[Room]:
        """Every room, outer before inner, its nodes, attributes and tensors checked."""
        stack = [
            Room(f, f"function {quoted(f.name)}: ", {}, function=key) for key, f in self.functions.items()
        ]
        opsets = self._opsets(self.model.opset_import, "") or {"": 1}
        stack.append(Room(self.model.graph, "", opsets))
        for room in stack:
            if isinstance(room.proto, onnx.FunctionProto):
                room.opsets = {**opsets, **self._opsets(room.proto.opset_import, room.where)}
                self.plain[room.function] += 0
        while stack:
            room = stack.pop()
            self._enter(room)
            stack.extend(inner for rooms in room.inner.values() for inner in rooms)
            yield room

    def _opsets(self, imports: Iterator[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
        opsets: dict[str, int] = {}
        for entry in imports:
            domain = normal_domain(entry.domain)
            if opsets.setdefault(domain, entry.version) != entry.version:
                raise InputError(
                    f"{where}opset {quoted(domain or 'ai.onnx')} is imported in two versions: export it again"
                )
        self.operators.check_opsets(opsets, where)
        return opsets

    def _enter(self, room: Room) -> None:
        require_text(room.where, room.proto)
        if isinstance(room.proto, onnx.GraphProto):
            self._enter_values(room, room.proto)
        for index, node in enumerate(room.proto.node):
            where = room.place(index, node)
            if self.plain[room.function] > self.limits.nodes:
                raise InputError(
                    f"{where}: the model has over {self.limits.nodes} nodes: raise the limit nodes"
                )
            require_text(where, node)
            self._enter_attributes(room, index, node, where)
            self._enter_operator(room, node, where)

    def _enter_values(self, room: Room, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.tensors.check(tensor, f"{room.where}initializer {quoted(tensor.name)}")
            room.constants[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            self.tensors.check_sparse(sparse, f"{room.where}initializer {quoted(sparse.values.name)}")
        for value in graph.input:
            shape = value.type.tensor_type.shape if value.type.tensor_type.HasField("shape") else None
            if shape is not None:
                room.shapes[value.name] = [
                    d.dim_value if d.HasField("dim_value") else None for d in shape.dim
                ]

    def _enter_operator(self, room: Room, node: onnx.NodeProto, where: str) -> None:
        key = (normal_domain(node.domain), node.op_type, node.overload)
        function = self.functions.get(key)
        if function is not None:
            self.calls.setdefault(room.function, Counter())[key] += 1
            if len(node.input) > len(function.input) or len(node.output) > len(function.output):
                raise InputError(f"{where}: the call gives its function more inputs or outputs than it has")
            return
        self.plain[room.function] += 1
        self.operators.check(node, where, room.opsets)
        if wrong := complaint(room, node):
            raise InputError(f"{where}: {wrong}: mend the model or export it again")

    def _enter_attributes(self, room: Room, index: int, node: onnx.NodeProto, where: str) -> None:
        names = [attribute.name for attribute in node.attribute]
        if len(set(names)) < len(names):
            raise InputError(f"{where}: an attribute is given twice: export the model again")
        for attribute in node.attribute:
            if check_attribute(attribute, where, self.limits, room.function is not None):
                self.notes.add("attributes without a type got that of their value")
            place = f"{where}: attribute {quoted(attribute.name)}"
            for tensor in _tensors(attribute):
                self.tensors.check(tensor, place)
            for sparse in _sparse_tensors(attribute):
                self.tensors.check_sparse(sparse, place)
            if attribute.type == A.TENSOR and node.op_type == "Constant" and node.output:
                room.constants[node.output[0]] = attribute.t
            for graph in [attribute.g] if attribute.type == A.GRAPH else attribute.graphs:
                self._open_room(room, index, graph, place)

    def _open_room(self, outer: Room, index: int, graph: onnx.GraphProto, place: str) -> None:
        if outer.depth + 1 > self.limits.depth:
            raise InputError(
                f"{place}: graphs lie over {self.limits.depth} deep in each other: raise the limit depth"
            )
        inner = Room(
            graph, f"{outer.where}in {quoted(graph.name)}: ", outer.opsets, outer.depth + 1, outer.function
        )
        outer.inner.setdefault(index, []).append(inner)


def require_text(where: str, message: Message) -> None:
    """InputError when a text of the message is not UTF-8: protobuf then hands out bytes. Nodes and graphs inside
    it have their own turn."""
    stack = [message]
    while stack:
        top = stack.pop()
        for kind, value in top.ListFields():
            if kind.type == kind.TYPE_STRING:
                for text in (value,) if isinstance(value, str | bytes) else value:
                    if not isinstance(text, str):
                        raise InputError(
                            f"{where}: {quoted(text)} is not UTF-8: the file is damaged, fetch it again"
                        )
            elif kind.type == kind.TYPE_MESSAGE and kind.message_type.name not in _OWN_TURN:
                stack += [value] if isinstance(value, Message) else value


_OWN_TURN = frozenset({"GraphProto", "NodeProto", "FunctionProto"})


def _tensors(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    return [attribute.t] if attribute.type == A.TENSOR else list(attribute.tensors)


def _sparse_tensors(attribute: onnx.AttributeProto) -> list[onnx.SparseTensorProto]:
    return [attribute.sparse_tensor] if attribute.type == A.SPARSE_TENSOR else list(attribute.sparse_tensors)

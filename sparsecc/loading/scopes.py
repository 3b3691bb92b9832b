"""Names in a model: every graph, subgraph and function body is a room of values. Each name is defined once,
before it is used, in its room or in one around it. Walks are loops, never recursion."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

from sparsecc.errors import InputError
from sparsecc.escaping import quoted

FunctionKey = tuple[str, str, str]
"""Domain, name and overload of a model-local function."""


@dataclass
class Room:
    """A graph or function body. `inner` maps a node's index to the rooms in its attributes; `free` holds the
    names that it takes from around it, with the node that uses each."""

    proto: onnx.GraphProto | onnx.FunctionProto
    where: str
    opsets: dict[str, int]
    depth: int = 0
    function: FunctionKey | None = None
    inner: dict[int, list[Room]] = field(default_factory=dict)
    free: dict[str, str] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    shapes: dict[str, list[int | None]] = field(default_factory=dict)

    def place(self, index: int, node: onnx.NodeProto) -> str:
        """How messages name a node: by its name, or its position when it has none."""
        label = f"node {quoted(node.name)}" if node.name else f"node {index}"
        return f"{self.where}{label} ({quoted(node.op_type)[1:-1]})"

    def input_names(self) -> list[str]:
        """Names of the formal inputs, in order."""
        if isinstance(self.proto, onnx.FunctionProto):
            return list(self.proto.input)
        return [value.name for value in self.proto.input]

    def output_names(self) -> list[str]:
        """Names of the formal outputs, in order."""
        if isinstance(self.proto, onnx.FunctionProto):
            return list(self.proto.output)
        return [value.name for value in self.proto.output]

    def initializer_names(self) -> list[str]:
        """Names of dense and sparse initializers."""
        if isinstance(self.proto, onnx.FunctionProto):
            return []
        sparse = [tensor.values.name for tensor in self.proto.sparse_initializer]
        return [tensor.name for tensor in self.proto.initializer] + sparse


def settle(room: Room) -> bool:
    """Check the names of a room whose inner rooms are settled; sort its nodes when they are out of order.

    Fills `room.free`. Returns whether it sorted. InputError: a name defined twice, an output nobody produces,
    a cycle.
    """
    producers = _producers(room)
    given = set(room.input_names()) | set(room.initializer_names())
    uses = [list(_uses(room, index, node)) for index, node in enumerate(room.proto.node)]
    for index, (names, node) in enumerate(zip(uses, room.proto.node, strict=True)):
        for name in names:
            if name not in producers and name not in given:
                room.free.setdefault(name, room.place(index, node))
    for name in room.output_names():
        if name not in producers and name not in given:
            if room.depth == 0:
                raise InputError(
                    f"{room.where}output {quoted(name)} is produced by no node: export the model again"
                )
            room.free.setdefault(name, f"{room.where}an output")
    needs = [{producers[name] for name in names if name in producers} for names in uses]
    if all(not need or max(need) < index for index, need in enumerate(needs)):
        return False
    _reorder(room, _sorted(room, needs))
    return True


def _producers(room: Room) -> dict[str, int]:
    """Value name -> index of its node; refuses whatever is defined twice."""
    names = room.input_names()
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"{room.where}two inputs have one name, or one has none: export the model again")
    initializers = room.initializer_names()
    if len(set(initializers)) < len(initializers) or "" in initializers:
        raise InputError(
            f"{room.where}two initializers have one name, or one has none: export the model again"
        )
    taken = set(names) | set(initializers)
    producers: dict[str, int] = {}
    for index, node in enumerate(room.proto.node):
        for name in node.output:
            if name and (name in producers or name in taken):
                raise InputError(
                    f"{room.place(index, node)}: value {quoted(name)} is defined twice: export it again"
                )
            if name:
                producers[name] = index
    return producers


def _uses(room: Room, index: int, node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for inner in room.inner.get(index, ()):
        yield from inner.free


def _sorted(room: Room, needs: list[set[int]]) -> list[int]:
    """Indices of the nodes in an order that computes before it uses, as near to the given one as can be."""
    waiting = [len(need) for need in needs]
    users: list[list[int]] = [[] for _ in needs]
    for index, need in enumerate(needs):
        for producer in need:
            users[producer].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    if len(order) < len(needs):
        stuck = next(index for index, count in enumerate(waiting) if count)
        raise InputError(
            f"{room.place(stuck, room.proto.node[stuck])}: the graph has a cycle through or before it"
        )
    return order


def _reorder(room: Room, order: list[int]) -> None:
    ranks = [0] * len(order)
    for rank, index in enumerate(order):
        ranks[index] = rank
    places = iter(ranks)
    room.proto.node.sort(key=lambda _: next(places))
    room.inner = {ranks[index]: inner for index, inner in room.inner.items()}

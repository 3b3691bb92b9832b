"""Running a model by parts, for models that do not fit into memory: one piece of the graph at a time.

A part is a run of nodes with a bounded number of weight bytes. Its weights are inputs of its session, mapped
from their file or cut as they are read, and gone when the part has run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.ir.apart import may_be_fed
from sparsecc.ir.extract import extract
from sparsecc.ir.subgraphs import reads
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.session import OrtRunner, open_session
from sparsecc.system.memory import HELD, give_back, part_bytes

NO_TENSORS = frozenset(
    {
        "SequenceConstruct",
        "SequenceEmpty",
        "SplitToSequence",
        "SequenceInsert",
        "SequenceErase",
        "SequenceMap",
    }
    | {"Optional", "Loop", "If", "Scan"}
)
"""Operators whose outputs may be no tensors: no part ends between one and its readers if that can be helped."""


@dataclass(frozen=True, eq=False)
class Part:
    """Nodes that run together: what they read from earlier parts, their weights, what later parts read."""

    nodes: tuple[ir.Node, ...]
    reads: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]
    gives: tuple[ir.Value, ...]


Live = dict[ir.Value, np.ndarray]
"""Values that were computed, and are read by parts to come."""


class PartedRunner:
    """A model as it stands now, run part by part on the CPU. It has the `run` of a loaded model; weights may be given
    with the inputs, by name."""

    def __init__(
        self,
        model: ir.Model,
        *,
        threads: int = 1,
        size: int | None = None,
        most: int = 0,
        owned: bool = False,
    ) -> None:
        """Parts have about `size` bytes of weights, and at most so many nodes where `most` is given. A model that is
        `owned` is edited by nobody any more."""
        self._model = model if owned else model.clone()
        self._threads = threads
        self.parts = parts_of(self._model, size or part_bytes(), most or len(model.graph))
        self._last = {value: number for number, part in enumerate(self.parts) for value in part.reads}

    def run(
        self, feeds: Feeds, seconds: float | None = None, names: Collection[str] | None = None
    ) -> Mapping[str, np.ndarray]:
        """Output name -> array, of all outputs or of `names`. InputError when a part fails, or takes longer than
        `seconds`."""
        live = self._fed(feeds)
        for number in range(len(self.parts)):
            self._advance(number, live, seconds)
            give_back()
        return self._results(live, names)

    def in_turn(self, feeds: Feeds) -> Iterator[dict[str, np.ndarray]]:
        """What `run` gives but for outputs that are inputs or constants: those of each part when it has run, and then
        only what later parts read is held."""
        live = self._fed(feeds)
        for number, part in enumerate(self.parts):
            self._advance(number, live, None)
            made = {value.name or "": live[value] for value in part.gives if value.is_graph_output()}
            for value in [*part.gives, *part.reads]:
                if self._last.get(value, -1) <= number:
                    live.pop(value, None)
            give_back()
            yield made

    def _fed(self, feeds: Feeds) -> Live:
        graph = self._model.graph
        known = {value.name or "": value for value in (*graph.inputs, *graph.outputs)}
        return {known.get(name) or graph.initializers[name]: array for name, array in feeds.items()}

    def _advance(self, number: int, live: Live, seconds: float | None) -> None:
        """Run a part: what it gives lives then, what nobody reads any more does not."""
        part = self.parts[number]
        live |= self._run_part(part, live, seconds)
        for value in part.reads:
            if self._last[value] == number and not value.is_graph_output():
                live.pop(value, None)

    def _results(self, live: Live, names: Collection[str] | None) -> dict[str, np.ndarray]:
        known = {value.name or "": value for value in self._model.graph.outputs}
        return {n: self._result(value, live) for n, value in known.items() if names is None or n in names}

    def _result(self, value: ir.Value, live: Live) -> np.ndarray:
        """An output; a constant that is one is given as it is."""
        return live[value] if value in live else _array(value)

    def _run_part(self, part: Part, live: Live, seconds: float | None) -> Live:
        fed = {value.name or "": live[value] for value in part.reads}
        fed |= {v.name or "": live[v] if v in live else _array(v) for v in part.weights}
        for name, array in fed.items():
            if not isinstance(array, np.ndarray):
                raise InputError(
                    f"'{name}' is no tensor, and the model too large to run whole: give more memory"
                )
        found = self._loaded(part, fed).run(fed, seconds)
        return {value: found[value.name or ""] for value in part.gives}

    def _loaded(self, part: Part, fed: Feeds) -> OrtRunner:
        proto = extract(self._model, part.nodes, fed, [value.name or "" for value in part.gives])
        where = f"the part at '{part.nodes[0].name}'"
        return open_session(proto, where=where, threads=self._threads, level="none", arena=False)


def parts_of(model: ir.Model, size: int, most: int = 1 << 62) -> list[Part]:
    """The main graph cut into parts of about `size` bytes of weights and at most so many nodes, where few values
    cross."""
    nodes = _late(model)
    read = [tuple(dict.fromkeys(reads(node))) for node in nodes]
    last: dict[ir.Value, int] = {value: number for number, values in enumerate(read) for value in values}
    last |= dict.fromkeys(model.graph.outputs, len(nodes))
    parts, begun = [], 0
    for end in _cuts(nodes, read, last, size, most):
        parts.append(_part(nodes[begun:end], read[begun:end], last, end))
        begun = end
    return parts


def _late(model: ir.Model) -> list[ir.Node]:
    """The nodes in an order that computes what depends on constants alone just before it is read: weights that
    are dequantized at run time must not all live at once."""
    waiting: dict[ir.Value, ir.Node] = {}
    ordered: list[ir.Node] = []
    for node in model.graph:
        operands = reads(node)
        if operands and all(value.is_initializer() or value in waiting for value in operands):
            waiting |= dict.fromkeys(node.outputs, node)
            continue
        ordered += _needed(operands, waiting)
        ordered.append(node)
    return [*ordered, *_needed(model.graph.outputs, waiting)]


def _needed(values: Iterable[ir.Value], waiting: dict[ir.Value, ir.Node]) -> list[ir.Node]:
    """The waiting nodes that these values need, in order; they wait no more."""
    found: list[ir.Node] = []
    stack = [waiting[value] for value in values if value in waiting]
    while stack:
        missing = [waiting[value] for value in reads(stack[-1]) if value in waiting]
        if missing:
            stack += missing
            continue
        node = stack.pop()
        given = [waiting.pop(value, None) for value in node.outputs]
        if any(given):
            found.append(node)
    return found


def _cuts(
    nodes: Sequence[ir.Node],
    read: Sequence[tuple[ir.Value, ...]],
    last: dict[ir.Value, int],
    size: int,
    most: int,
) -> Iterator[int]:
    """Where parts end: behind the node, in the second half of a part's bytes or nodes, that fewest values cross."""
    crossing = _crossing(nodes, last)
    begun, weight, best = 0, 0, 0
    seen: set[ir.Value] = set()
    for number, values in enumerate(read):
        new = {value for value in values if _is_weight(value)} - seen
        added = sum(_bytes(value) for value in new)
        if number > begun and ((added and weight + added > size) or number - begun >= most):
            yield (cut := best if best > begun else number)
            begun, best = cut, 0
            seen = {v for values in read[cut:number] for v in values if _is_weight(v)}
            weight = sum(map(_bytes, seen))
            new -= seen
            added = sum(map(_bytes, new))
        seen |= new
        weight += added
        after = number + 1
        is_late = 2 * weight >= size or 2 * (after - begun) >= most
        if is_late and after < len(nodes) and (best <= begun or crossing[after] <= crossing[best]):
            best = after
    yield len(nodes)


def _crossing(nodes: Sequence[ir.Node], last: dict[ir.Value, int]) -> list[int]:
    """How many values live on across each place; so many more where one of them is no tensor."""
    change = [0] * (len(nodes) + 2)
    for number, node in enumerate(nodes):
        price = len(nodes) if node.op_type in NO_TENSORS else 1
        for value in node.outputs:
            if last.get(value, -1) > number:
                change[number + 1] += price
                change[last[value] + 1] -= price
    total, found = 0, []
    for step in change:
        total += step
        found.append(total)
    return found


def _part(
    nodes: Sequence[ir.Node], read: Sequence[tuple[ir.Value, ...]], last: dict[ir.Value, int], end: int
) -> Part:
    made = {value for node in nodes for value in node.outputs}
    outer = [value for value in dict.fromkeys(v for values in read for v in values) if value not in made]
    return Part(
        nodes=tuple(nodes),
        reads=tuple(value for value in outer if not value.is_initializer()),
        weights=tuple(value for value in outer if _is_weight(value)),
        gives=tuple(value for node in nodes for value in node.outputs if last.get(value, -1) >= end),
    )


def _is_weight(value: ir.Value) -> bool:
    """Whether it is a constant that is fed rather than written into the part."""
    if not value.is_initializer():
        return False
    return value.is_graph_input() or _bytes(value) > HELD or may_be_fed(value)


def _bytes(value: ir.Value) -> int:
    """Of a constant in single precision: the CPU casts halves to that, and few bits are expanded to it."""
    tensor = value.const_value
    return 4 * int(tensor.size) if tensor is not None and tensor.dtype != ir.DataType.STRING else 0


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), order="C")

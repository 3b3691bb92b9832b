"""Graphs that fit into memory in pieces: long and heavy ones, and those run with weight after weight changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from sparsecc.ir.apart import Apart
from sparsecc.ir.extract import extract
from sparsecc.runtime.filed import Filed
from sparsecc.runtime.partitioned import NO_TENSORS, Live, Part, PartedRunner
from sparsecc.runtime.runner import Feeds, Runs
from sparsecc.runtime.session import OrtRunner, open_graph, open_session
from sparsecc.system.memory import give_back, weight_bytes

LONG = 2000
"""Nodes of a piece of a long graph: ONNX Runtime's time for a session grows with the square of them."""
HEAVY = 32 << 20
"""Bytes of weights of a piece: those of one at a time are mapped, or cut."""
_PIECES = 8
"""Pieces of a graph that is run again and again from different places on."""
_SHORT = 8
"""A piece has at least so many nodes: each costs a call."""
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class PiecewiseRunner(PartedRunner):
    """A graph that fits into memory, in pieces that stay loaded.

    Sessions for all of them take less than one for a long graph, and the weights of one piece at a time are in memory.
    With `files` its outputs wait in a file. With `again` they do too, and a run that gives the arrays of the last one
    again and other weights besides begins where these are read.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        threads: int = 1,
        most: int,
        owned: bool = False,
        files: bool = False,
        again: bool = False,
    ) -> None:
        super().__init__(model, threads=threads, size=HEAVY, most=most, owned=owned)
        self._sessions: dict[Part, OrtRunner] = {}
        self._files, self._again = files or again, again
        self._feeds: Feeds = {}
        self._states: list[Live] = []
        self._filed = Filed()
        self._read_by = {v.name: n for n, part in reversed([*enumerate(self.parts)]) for v in part.weights}

    def run(
        self, feeds: Feeds, seconds: float | None = None, names: Collection[str] | None = None
    ) -> Mapping[str, np.ndarray]:
        """Output name -> array, of all outputs or of `names`. InputError when a piece fails, or takes longer than
        `seconds`."""
        others = {name: array for name, array in feeds.items() if name in self._read_by}
        inputs = {name: array for name, array in feeds.items() if name not in others}
        known = bool(self._states) and bool(others) and inputs.keys() == self._feeds.keys()
        known = known and all(array is self._feeds[name] for name, array in inputs.items())
        begin = min(self._read_by[name] for name in others) if known else 0
        if self._files and not begin:
            return self._run_filing(inputs, others, seconds, names)
        live = dict(self._states[begin]) if begin else self._fed(inputs)
        live |= self._fed(others)
        for number in range(begin, len(self.parts)):
            self._advance(number, live, seconds)
        return self._results(live, names)

    def _run_filing(
        self, inputs: Feeds, others: Feeds, seconds: float | None, names: Collection[str] | None
    ) -> Filed:
        """A whole run. Outputs are filed when nobody reads them any more; with `again`, what is live at each piece is
        kept where no other weights were given."""
        live, filed = self._fed({**inputs, **others}), Filed()
        keeps = self._again and not others
        states: list[Live] = []
        outputs = dict.fromkeys(self._model.graph.outputs)
        wanted = dict.fromkeys(value for value in outputs if names is None or value.name in names)
        for number, part in enumerate(self.parts):
            if keeps:
                states.append(dict(live))
            self._advance(number, live, seconds)
            for value in (*part.reads, *part.gives):
                if value in outputs and value in live and self._last.get(value, -1) <= number:
                    array = live.pop(value)
                    if value in wanted:
                        filed.put(value.name or "", array)
        for value in wanted:
            if (value.name or "") not in filed:
                filed.put(value.name or "", super()._result(value, live))
        filed = filed.only(value.name or "" for value in wanted)
        if keeps:
            self._feeds, self._states, self._filed = inputs, states, filed
        give_back()
        return filed

    def _result(self, value: ir.Value, live: Live) -> np.ndarray:
        """An output; one that a piece before the first of this run gave is that of the run before."""
        name = value.name or ""
        return (
            self._filed[name] if value not in live and name in self._filed else super()._result(value, live)
        )

    def _loaded(self, part: Part, fed: Feeds) -> OrtRunner:
        if part not in self._sessions:
            proto = extract(self._model, part.nodes, fed, [value.name or "" for value in part.gives])
            where = f"the part at '{part.nodes[0].name}'"
            self._sessions[part] = open_session(
                proto, where=where, threads=self._threads, level="none", arena=False
            )
        return self._sessions[part]


def pieces_of(graph: ir.Graph) -> int:
    """How many nodes a piece has where parts of a graph are run again, 0 for a graph that is to stay whole.

    Values that are no tensors cannot be handed on, and halves are rounded where they are, which a session on the
    whole does not do.
    """
    if any(node.op_type in NO_TENSORS for node in graph):
        return 0
    if any(value.dtype in _HALVES for value in graph.initializers.values()):
        return 0
    return min(LONG, max(_SHORT, -(-len(graph) // _PIECES)))


def opened(model: ir.Model, apart: Apart | None = None, *, threads: int, owned: bool = False) -> Runs:
    """A graph that fits into memory ready to run exactly as it stands, without a file; long ones in pieces.

    `apart` is the graph where that was made already; one that is `owned` is edited by nobody any more.
    """
    if (len(model.graph) > LONG or weight_bytes(model) > HEAVY) and pieces_of(model.graph):
        return PiecewiseRunner(model, threads=threads, most=LONG, owned=owned)
    return open_graph(apart or model, threads=threads)

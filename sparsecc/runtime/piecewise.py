"""Graphs that fit into memory in pieces: long ones, and those that are run with one weight after the other changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.ir.apart import Apart
from sparsecc.ir.extract import extract
from sparsecc.runtime.partitioned import NO_TENSORS, Live, Part, PartedRunner
from sparsecc.runtime.runner import Feeds, Runs
from sparsecc.runtime.session import OrtRunner, open_graph, open_session

LONG = 2000
"""Nodes of a piece of a long graph: ONNX Runtime's time for a session grows with the square of them."""
_PIECES = 8
"""Pieces of a graph that is run again and again from different places on."""
_SHORT = 8
"""A piece has at least so many nodes: each costs a call."""
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class PiecewiseRunner(PartedRunner):
    """A graph that fits into memory, in pieces that stay loaded.

    A session for each takes less than one for all of a long graph. A run that gives the arrays of the last one again
    and other weights besides begins where these are read.
    """

    def __init__(self, model: ir.Model, *, threads: int = 1, most: int, owned: bool = False) -> None:
        super().__init__(model, threads=threads, size=1 << 62, most=most, owned=owned)
        self._sessions: dict[Part, OrtRunner] = {}
        self._feeds: Feeds = {}
        self._states: list[Live] = []
        self._read_by = {v.name: n for n, part in reversed([*enumerate(self.parts)]) for v in part.weights}

    def run(self, feeds: Feeds, seconds: float | None = None) -> dict[str, np.ndarray]:
        """Output name -> array. InputError when a piece fails, or takes longer than `seconds`."""
        others = {name: array for name, array in feeds.items() if name in self._read_by}
        inputs = {name: array for name, array in feeds.items() if name not in others}
        again = bool(self._states) and inputs.keys() == self._feeds.keys()
        again = again and all(array is self._feeds[name] for name, array in inputs.items())
        begin = min((self._read_by[name] for name in others), default=0) if again else 0
        live = dict(self._states[begin]) if begin else self._fed(inputs)
        live |= self._fed(others)
        states = []
        for number in range(begin, len(self.parts)):
            states.append(dict(live))
            self._advance(number, live, seconds)
        if not others:
            self._feeds, self._states = inputs, states
        return self._results(live)

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
    if len(model.graph) > LONG and pieces_of(model.graph):
        return PiecewiseRunner(model, threads=threads, most=LONG, owned=owned)
    return open_graph(apart or model, threads=threads)

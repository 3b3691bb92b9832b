"""The dense model of a compile, ready to run for as long as that lasts."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from sparsecc.ir.apart import Apart
from sparsecc.ir.save import write
from sparsecc.options import CompileOptions
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.piecewise import opened
from sparsecc.runtime.runner import Runs
from sparsecc.system import memory
from sparsecc.system.scratch import Scratch


class Dense:
    """The model as it was given, normalised and ready to run: what every result is compared with."""

    def __init__(self, model: ir.Model, options: CompileOptions, scratch: Scratch) -> None:
        self.model = model
        """The graph. Stages edit it in place: from `choose` on it is the compiled model's, its inputs may be fewer."""
        self.weights = memory.weight_bytes(model)
        """Bytes of its weights."""
        self.by_parts = not memory.fits(self.weights)
        """Whether it is too large to be loaded whole; every runner works part by part then."""
        self.graph = None if self.by_parts else Apart.of(model)
        """The graph as it was given, whatever stages edit; None where it is run by parts."""
        self.runner: Runs = (
            PartedRunner(model, threads=options.threads)
            if self.graph is None
            else opened(model, self.graph, threads=options.threads)
        )
        """Runs the dense model for as long as the compile lasts."""
        self._file = scratch.dense

    @property
    def path(self) -> Path:
        """Its file, written when it is first asked for; there is none where it is run by parts."""
        if not self._file.is_file():
            assert self.graph is not None
            write(self.graph.model(), self._file)
        return self._file

    @property
    def bytes(self) -> int:
        """Bytes of the dense model's files."""
        if self.graph is None:
            return self.weights
        return len(self.graph.graph) + sum(tensor.nbytes for tensor in self.graph.weights.values())

    def too_large(self) -> str:
        """Why the model is run by parts."""
        limit = memory.gigabytes(memory.ceiling())
        return f"the weights take {memory.gigabytes(self.weights)}, too much to run whole within {limit}"

"""The model that a compile was given, ready to run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from sparsecc.ir.save import write
from sparsecc.options import CompileOptions
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.rounding import Runs
from sparsecc.runtime.session import OrtRunner, open_session
from sparsecc.system import memory
from sparsecc.system.files import size_of
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
        self.path = scratch.dense
        """Its file, which never changes; there is none where it is run by parts."""
        self.runner = opened(model, self.path, threads=options.threads, by_parts=self.by_parts)
        """Runs the dense model for as long as the compile lasts."""

    @property
    def bytes(self) -> int:
        """Bytes of the dense model's files."""
        return self.weights if self.by_parts else size_of(self.path.parent)

    def too_large(self) -> str:
        """Why the model is run by parts."""
        limit = memory.gigabytes(memory.ceiling())
        return f"the weights take {memory.gigabytes(self.weights)}, too much to run whole within {limit}"


def opened(model: ir.Model, path: Path, *, threads: int, by_parts: bool) -> Runs:
    """A graph ready to run exactly as it stands: written to `path` and loaded, or by parts, without a file."""
    if by_parts:
        return PartedRunner(model, threads=threads)
    return loaded(write(model, path), threads=threads)


def loaded(path: Path, *, threads: int) -> OrtRunner:
    """The graph of a file, ready to run exactly as it stands."""
    return open_session(path, threads=threads, level="none")

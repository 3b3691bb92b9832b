"""The dense model of a compile, ready to run for as long as that lasts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from sparsecc.data.random_inputs import why_not
from sparsecc.errors import InputError, InternalError, RuntimeRefusalError, SparseccError
from sparsecc.ir.apart import Apart
from sparsecc.ir.save import write
from sparsecc.options import CompileOptions
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.piecewise import opened
from sparsecc.runtime.runner import Feeds, Runs
from sparsecc.runtime.session import Source, open_session
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


_TOO_LARGE = "its values need too much memory at every size that was tried"
_MOST_TRIED = 8
"""Of the inputs that a model did not run on, how many the file itself is tried on."""


def dense_of(file: Path, model: ir.Model, options: CompileOptions, scratch: Scratch) -> Dense:
    """The normalised model of a file, ready to run. InternalError where the runtime takes the file alone."""
    try:
        return Dense(model, options, scratch)
    except RuntimeRefusalError as e:
        if does_run(file, None):
            raise _ours(str(e)) from e
        raise


def refusal(
    file: Path, model: ir.Model, failures: Sequence[tuple[str, Feeds]], samples_flag: str, seconds: float
) -> SparseccError:
    """What to tell where a normalised model ran on none of these inputs: our fault where its file runs on any, as far
    as so many seconds show."""
    end = time.monotonic() + seconds
    for _, feeds in failures[:_MOST_TRIED]:
        if does_run(file, feeds, max(0.0, end - time.monotonic())):
            return _ours(failures[0][0])
    reason = why_not(model, failures[0][0]) if failures else _TOO_LARGE
    return InputError(
        f"the model does not run on random inputs ({reason}): "
        f"give sizes with --input name:1x3x224x224 or samples with {samples_flag}"
    )


def _ours(failure: str) -> InternalError:
    reason = failure.rsplit(": ", 1)[0]  # without the advice, which is for files of the user's
    return InternalError(
        f"the file runs, what was made of it does not ({reason}): please report it with the file, or with what "
        "--debug keeps"
    )


def does_run(file: Source, feeds: Feeds | None, seconds: float | None = None) -> bool:
    """Whether the runtime takes a file, and where there are inputs, runs it on them in so many seconds."""
    try:
        runner = open_session(file)
        if feeds is not None:
            runner.run(feeds, seconds)
    except InputError:
        return False
    return True

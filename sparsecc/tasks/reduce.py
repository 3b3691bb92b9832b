"""Shrink a failing model to the smallest that still fails, for bug reports: delta debugging over nodes.

Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002 (ddmin).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from sparsecc.errors import InputError, SystemFailureError
from sparsecc.escaping import one_line
from sparsecc.ir.extract import cut_out
from sparsecc.loading.limits import DEFAULT_LIMITS
from sparsecc.loading.open_model import open_model, read_plain
from sparsecc.system.files import file_sha256, replace_whole
from sparsecc.system.process import start_program
from sparsecc.system.temp_folders import temporary_folder

Fails = Callable[[onnx.ModelProto], bool]
"""Whether a candidate still shows the failure."""


@dataclass(frozen=True)
class Reduced:
    """What is left, and how many candidates were tried."""

    model: onnx.ModelProto
    before: int
    trials: int


def reduce_model(request: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Reduce `request["model"]` by `request["check"]`, a command in which {} stands for the candidate's path.

    The failure is the exit code that the command gives for a copy of the file, which must not be 0; a candidate
    shows it when the command gives the same. InputError where that does not fail, or not every time.
    """
    path, output = Path(request["model"]), Path(request["output"])
    _require_place(output)
    opened = open_model(path)
    if opened.files.names():
        raise InputError(f"{path.name} has external data: save it in one file first")
    given = read_plain(path, DEFAULT_LIMITS)
    model = onnx.ModelProto.FromString(given)  # not `opened.proto`, in which what is wrong may be mended
    with temporary_folder("scratch") as scratch:
        command = _Command(str(request["check"]), Path(scratch), float(request.get("seconds") or 60.0))
        wanted = _failure(command, given, path.name)
        if command.run(model.SerializeToString()) != wanted:
            raise InputError(_not_in_the_nodes(command, given, wanted, path.name))
        result = reduce_nodes(model, lambda part: command.run(part.SerializeToString()) == wanted, emit)
    try:
        replace_whole(output, result.model.SerializeToString())
    except OSError as e:
        raise SystemFailureError(
            f"cannot write {output}: {e.strerror}: free the disk and reduce again"
        ) from e
    return {
        "schema": "sparsecc.reduce/1",
        "output": str(output),
        "sha256": file_sha256(output),
        "exit_code": wanted,
        "nodes": {"before": result.before, "after": len(result.model.graph.node)},
        "trials": result.trials,
    }


def _failure(command: _Command, given: bytes, name: str) -> int:
    """The exit code for a file's own bytes. InputError where it is 0."""
    code = command.run(given)
    if code == 0:
        raise InputError(f"the check gives exit code 0 for a copy of {name}: it must fail there")
    return code


def _not_in_the_nodes(command: _Command, given: bytes, wanted: int, name: str) -> str:
    """Why the same model, written anew, does not fail as its file did."""
    if command.run(given) != wanted:
        return (
            f"the check gives other exit codes for {name} each time: it must give the same for the same file"
        )
    return (
        f"the check gives exit code {wanted} for {name}, and another for the same model written anew: it is the bytes "
        "of the file that fail, not its nodes: report the file as it is"
    )


def _require_place(output: Path) -> None:
    """Asked before the long work. InputError where the output is there, or cannot be."""
    shown = one_line(str(output), 120)
    if os.path.lexists(output):
        raise InputError(f"the output {shown} exists already: choose another one")
    if not output.parent.is_dir():
        raise InputError(f"the folder of the output {shown} does not exist: create it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write {shown}: choose another output")


@dataclass
class _Command:
    """The user's command; its runs."""

    text: str
    scratch: Path
    seconds: float

    def run(self, model: bytes) -> int:
        """Exit code for a candidate; 124 where it took too long."""
        candidate = self.scratch / "candidate.onnx"
        candidate.write_bytes(model)
        words = _words(self.text, candidate)
        # no pipes: what the command leaves running would hold them open, and one that prints without end fill us
        with start_program(words) as command:
            try:
                return command.wait(self.seconds)
            except subprocess.TimeoutExpired:
                return 124
            finally:
                command.kill()


def _words(text: str, candidate: Path) -> list[str]:
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as e:
        raise InputError(f"--check is no command: {e}: mend its quotes") from e
    if not words:
        raise InputError("--check is empty: give a command, {} stands for the model")
    if shutil.which(words[0]) is None:
        raise InputError(f"--check cannot run {one_line(words[0], 80)}: no such program: check the command")
    if not any("{}" in word for word in words):
        words.append("{}")
    return [word.replace("{}", str(candidate)) for word in words]


def reduce_nodes(
    model: onnx.ModelProto, fails: Fails, emit: Callable[[dict[str, Any]], None] = lambda event: None
) -> Reduced:
    """ddmin over the nodes of the main graph: the smallest set found whose graph still fails."""
    kept = list(range(len(model.graph.node)))
    parts, trials = 2, 0
    best = model
    while len(kept) > 1:
        for candidate in _subsets(kept, parts):
            trials += 1
            smaller = cut_out(model, candidate)
            if fails(smaller):
                parts = 2 if len(candidate) <= len(kept) // parts + 1 else max(parts - 1, 2)
                kept, best = candidate, smaller
                emit({"stage": f"{len(kept)} nodes", "share": 1 - len(kept) / len(model.graph.node)})
                break
        else:
            if parts >= len(kept):
                break
            parts = min(2 * parts, len(kept))
    return Reduced(best, len(model.graph.node), trials)


def _subsets(kept: Sequence[int], parts: int) -> list[list[int]]:
    """Each of `parts` pieces alone, then all but each of them."""
    size = -(-len(kept) // parts)
    pieces = [list(kept[i : i + size]) for i in range(0, len(kept), size)]
    others = [[n for n in kept if n not in set(piece)] for piece in pieces] if len(pieces) > 2 else []
    return pieces + others

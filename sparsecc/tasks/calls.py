"""How a call in Python becomes a task of a worker: its model as a file, its samples and functions in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecc.errors import InputError
from sparsecc.options import CompileCall, rows_of
from sparsecc.options.row import Libraries
from sparsecc.options.table import Event
from sparsecc.report.numbers import plural
from sparsecc.system.interrupts import Interrupted

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

    from sparsecc.data.in_memory import InMemory

    Model = (
        str
        | os.PathLike[str]
        | bytes
        | onnx.ModelProto
        | ir.Model
        | torch.nn.Module
        | torch.export.ExportedProgram
    )

_SAMPLES = ("calib", "calib_general", "data", "labels")
"""Options that take samples."""
_WITH_LIBRARIES = "sparsecc.tasks.custom_ops:run"
DEADLINE = 3600.0
"""Seconds after which a worker is ended."""


def run_task(
    task: str,
    request: dict[str, Any],
    on_event: Event | None,
    *,
    write: Sequence[Path] = (),
    outside: str = "",
    deadline: float | None = None,
    memory: int | None = None,
    held: InMemory | None = None,
    libraries: Libraries | None = None,
) -> Any:
    """Run a task in a worker, whose sandbox leaves the folders `write` open; without one for the reason `outside`.
    `held` answers what it asks of this process's memory; `libraries` are those of the user's own operators."""
    from sparsecc import worker
    from sparsecc.report.notebook import progress

    on_event = on_event or progress()
    if held is not None and held.has_functions:
        write = [*write, held.folder]  # what models give comes back there
    if libraries:
        own = [os.path.abspath(path) for path in rows_of(CompileCall)["custom_ops"].take(libraries)]
        task, request = _WITH_LIBRARIES, {"task": task, "request": request, "libraries": own}
    if outside and on_event is not None:
        on_event({"stage": "start", "share": 0.0, "note": f"outside the sandbox: {outside}"})
    return worker.run(
        task,
        request,
        deadline=deadline or DEADLINE,
        memory=memory,
        on_event=on_event,
        write=None if outside else write,
        answer=held or worker.nothing_held,
    )


def until_ended(
    work: Callable[..., Any], request: dict[str, Any], on_event: Event | None, **how: Any
) -> tuple[Any, BaseException | None]:
    """(what a compile into `request["folder"]` gives, None). Ctrl-C in a search to a goal makes it of the best that
    was tried; what interrupted is then beside it, to be raised once that is published."""
    from sparsecc.report.notebook import progress

    tell, heard = on_event or progress(), list[dict[str, Any]]()

    def listen(event: dict[str, Any]) -> None:
        heard.extend([event] if "trial" in event else [])
        if tell is not None:
            tell(event)

    try:
        return work(request, listen, **how), None
    except (KeyboardInterrupt, Interrupted) as e:
        if not heard or (isinstance(e, Interrupted) and e.name != "SIGINT"):
            raise
        tried = plural(len(heard), "trial")
        listen({"say": f"ended after {tried}: the best is written now, Ctrl-C again writes nothing"})
        for left in Path(request["folder"]).iterdir():
            left.unlink()
        return work({**request, "ended": True}, tell, **how), e


@contextmanager
def held(given: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], InMemory | None]]:
    """(the options with words for samples and functions in memory, what holds those); None where there are none."""
    named = (type(None), str, os.PathLike)
    if all(isinstance(given.get(name), named) for name in (*_SAMPLES, "evaluate")):
        yield dict(given), None
        return
    from sparsecc.data.in_memory import InMemory
    from sparsecc.system.temp_folders import temporary_folder

    with temporary_folder("input") as folder:
        memory = InMemory(folder)
        own = {name: memory.samples(name, given[name]) for name in _SAMPLES if name in given}
        if "evaluate" in given:
            own["evaluate"] = memory.function(given["evaluate"])
        yield {**given, **own}, memory


@contextmanager
def swept(folder: Path) -> Iterator[None]:
    """However the block ends, nothing half-written is left beside `folder`."""
    from sparsecc.bundle.folder import sweep

    try:
        yield
    finally:
        with suppress(OSError):
            sweep(Path(os.path.abspath(folder)))


@contextmanager
def file_of(model: Model, example_inputs: Any = None, on_event: Event | None = None) -> Iterator[Path]:
    """The model as a file that a worker can open; a module of torch is exported with the example here, in the process
    that holds it."""
    if isinstance(model, str | os.PathLike):
        from sparsecc.tasks.sources import located

        with located(model, partial(run_task, on_event=on_event)) as path:
            yield path
        return
    from sparsecc.system.temp_folders import temporary_folder

    with temporary_folder("input") as folder:
        path = folder / "model.onnx"
        _save(model, path, example_inputs)
        yield path


def _save(model: Any, path: Path, example_inputs: Any) -> None:
    if isinstance(model, bytes):
        path.write_bytes(model)
        return
    import onnx
    import onnx_ir as ir

    if "torch" in sys.modules:
        from sparsecc.torch.export import is_torch, to_onnx

        if is_torch(model):
            to_onnx(model, example_inputs, path)
            return
    if isinstance(model, ir.Model):
        ir.save(model, path, external_data="model.onnx.data")
    elif isinstance(model, onnx.ModelProto):
        onnx.save(model, path)
    elif hasattr(model, "nodes") and hasattr(model, "tensors"):
        from sparsecc.backends.nvidia.graph_surgeon import from_graphsurgeon

        ir.save(from_graphsurgeon(model), path, external_data="model.onnx.data")
    else:
        kind = type(model).__name__
        raise InputError(
            f"a {kind} is no model: give a path, bytes, a module, ModelProto, onnx_ir.Model or gs.Graph"
        )

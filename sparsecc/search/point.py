"""Points of a search: trials that a worker makes, and the rows of the ledger that they become."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparsecc.data.origin import texts_of
from sparsecc.decide.goal_search import Family
from sparsecc.decide.type_levers import INT8
from sparsecc.errors import InternalError, SparseccError, WorkerError
from sparsecc.options import CompileOptions, rows_of
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions
from sparsecc.tasks.calls import DEADLINE, held, run_task
from sparsecc.tasks.outside import beyond_sandbox

Request = dict[str, Any]
"""{"model", "options", "origin", "paying", "of_each", "points"}: what `tasks.front_trials.make` takes, and limits."""
Row = dict[str, Any]

MAKE, SURVEY = "sparsecc.tasks.front_trials:make", "sparsecc.tasks.front_trials:survey"


def point_of(sha: str, options: CompileOptions, data: str, family: Family, ratio: float) -> dict[str, Any]:
    """What a worker is told of a point; its name is a hash of the model, the options, the data and all versions."""
    asked = options.pulled(ratio, family).to_recipe()
    parts = [sha, sorted(asked.items()), data, sorted(versions().items())]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return {"id": name, "ratio": ratio, "levers": dict(family)}


def question_of(options: CompileOptions, data: str) -> str:
    """What the figures of points must share to stand on one front: samples, metric, runtime, machine, versions. What a
    search may vary is not among it."""
    rows, asked = rows_of(CompileOptions), options.to_recipe()
    named = {name: texts_of(getattr(options, name)) for name, row in rows.items() if row.names_code}
    place = [asked.get(name) for name in ("target", "device", "threads", "measure", "metric", "inputs")]
    text = json.dumps([named, place, data, sorted(versions().items())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def surveyed(request: Request, folder: Path) -> dict[str, Any]:
    """What `tasks.front_trials.survey` says of the model."""
    found: dict[str, Any] = _run(SURVEY, request, folder, lambda event: None)
    return found


def make(request: Request) -> list[Row]:
    """As `make_in`, in a folder that goes again: on a machine of a cluster."""
    rows: list[Row] = []
    with temporary_folder("search") as folder:
        make_in(folder, request, rows.append)
    return rows


def make_in(folder: Path, request: Request, tell: Callable[[Row], None]) -> None:
    """Make the points of a request in a worker that may write below `folder`, and tell the row of each as it is made.
    An error becomes its line; where it ended the worker, the next point gets another."""
    left = list(request["points"])

    def listen(event: dict[str, Any]) -> None:
        if "row" in event:
            tell({**_named(left.pop(0)), **event["row"]})

    while left:
        number = len(left)
        try:
            _run(MAKE, {**request, "points": [*left]}, folder, listen)
        except SparseccError as e:
            at_the_first = len(left) == number and not isinstance(e, WorkerError | InternalError)
            for _ in range(number if at_the_first else 1):  # what ends before any point ends before all
                point = left.pop(0)
                row = {"id": point["id"], "error": str(e), "kind": type(e).__name__, "seconds": 0.0}
                tell({**_named(point), **row})


def _named(point: Mapping[str, Any]) -> Row:
    return {"options": {"ratio": point["ratio"], **point["levers"]}}


def _run(task: str, request: Request, folder: Path, listen: Callable[[dict[str, Any]], None]) -> Any:
    """A task in a worker, with what the call holds in memory."""
    request = {**request}
    each = request.pop("of_each")
    limits = {name: each[name] for name in ("deadline", "memory_limit")}
    memory = {name: value for name, value in each.items() if name not in limits}
    with held({**request["options"], **memory}) as (options, memory_of_call):
        points = max(len(request.get("points", ())), 1)
        return run_task(
            task,
            {**request, "options": options},
            listen,
            write=[folder],
            outside=beyond_sandbox(options),
            deadline=points * (limits["deadline"] or DEADLINE),
            memory=limits["memory_limit"],
            held=memory_of_call,
            libraries=options.get("custom_ops"),
        )


def paying(rows: Sequence[Row]) -> dict[str, Any]:
    """What timing found of 8-bit types in the point with them alone; {} before."""
    alone = {"ratio": 0.0, **INT8}
    with suppress(StopIteration):
        return dict(next(row["chosen"] for row in rows if row["options"] == alone and "chosen" in row))
    return {}

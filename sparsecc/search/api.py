"""The Python face of a search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsecc.api import Event, given_options
from sparsecc.errors import InputError


def search(
    model: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    ratios: Sequence[float] = (0.2, 0.35, 0.5, 0.65),
    criteria: Sequence[str] = ("auto",),
    allocators: Sequence[str] = ("auto",),
    recovers: Sequence[str] = ("auto",),
    quantizes: Sequence[str | None] = (None,),
    rounds: int = 1,
    jobs: int = 1,
    cluster: str | None = None,
    deadline: float | None = None,
    memory: int | None = None,
    on_event: Event | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The front of latency, size and work against quality, over every combination of what is given.

    After the grid, `rounds` rounds look between neighbours on the front. `output` (by default the model's name)
    holds every finished point, so that a search that was ended goes on where it was; with them front.json,
    whose content is returned, front.html, and a recipe per point that gives the same bytes again. `jobs`
    compiles run at once here, or on the Dask scheduler `cluster`. `options` are those of `compile`.
    GoalError where no point could be made.
    """
    from sparsecc.search import runners
    from sparsecc.search.run import search as run_search
    from sparsecc.search.space import Space

    path = Path(os.path.abspath(model))
    if not path.is_file():
        raise InputError(f"{model}: no such file: a search needs a model on disk")
    folder = Path(output) if output is not None else Path(f"{path.stem}.search")
    base = given_options(options)
    space = Space(tuple(ratios), tuple(criteria), tuple(allocators), tuple(recovers), tuple(quantizes))
    runner = runners.local(jobs) if cluster is None else runners.cluster(cluster)
    limits, heard = {"deadline": deadline, "memory": memory}, on_event or (lambda event: None)
    return run_search(path, folder, space, base, runner=runner, limits=limits, rounds=rounds, on_event=heard)

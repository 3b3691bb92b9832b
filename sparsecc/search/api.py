"""The Python face of a search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparsecc.api import takes
from sparsecc.errors import InputError
from sparsecc.options import CompileOptions, SearchCall, Tried, rows_of
from sparsecc.options.places import default_search
from sparsecc.options.renamed import warned
from sparsecc.tasks.calls import held
from sparsecc.tasks.sources import compiled_from


@takes(SearchCall)
def search(model: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The front of latency, size and work against quality, over every combination of what is given; with samples, in
    8 bits and not, unless `quantizes` says otherwise.

    After the grid, `rounds` rounds look between neighbours on the front. `output` (by default the model's name)
    holds every finished point, so that a search that was ended goes on where it was; with them front.json,
    whose content is returned, front.html, and a recipe per point that gives the same bytes again. `jobs`
    compiles run at once here, or on the Dask scheduler `cluster`. `options` are those of `compile` besides
    (docs/options.md); samples and functions in memory are known again by this call alone, and no cluster takes them.
    GoalError where no point could be made.
    """
    from sparsecc.search import runners
    from sparsecc.search.run import search as run_search
    from sparsecc.search.space import Space

    path = compiled_from(Path(os.path.abspath(model)))
    if not path.is_file():
        raise InputError(f"{model}: no such file: a search needs a model on disk")
    with held(warned(options, 2)) as (given, memory):
        call = SearchCall.of(given)
        if memory is not None and call.cluster is not None:
            raise InputError(
                "the machines of a cluster have other memories: give samples and functions as files"
            )
        folder = Path(call.output) if call.output is not None else default_search(model)
        base = {name: getattr(call, name) for name in rows_of(CompileOptions) if name in given}
        limits = {"deadline": call.deadline, "memory_limit": call.memory_limit}
        return run_search(
            path,
            folder,
            Space(**{name: getattr(call, name) for name in rows_of(Tried)}).resolved(base),
            base,
            runner=runners.local(call.jobs, call.memory_limit)
            if call.cluster is None
            else runners.cluster(call.cluster),
            of_each={**limits, **(memory.again() if memory is not None else {})},
            rounds=call.rounds,
            on_event=call.on_event or (lambda event: None),
        )

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
    """The front of latency, size and work against quality: the search to a goal, asked for all of it. Types, channels,
    layers and tokens are pulled as far as each pays, then between neighbours on the front.

    What is given of `ratios`, `criteria`, `allocators`, `recovers` and `quantizes` is an order. Points are trials,
    made and measured as those of a goal; a goal on the same model, samples and machine takes them from the cache, and
    the search what goals found. `rounds` rounds look between neighbours on the front, `budget` ends them. `output` (by
    default the model's name) holds every finished point, so that a search that was ended goes on where it was; with
    them front.json, whose content is returned, front.html, and a recipe per point. `jobs` workers make points here, or
    the machines of the Dask scheduler `cluster`. `options` are those of `compile` besides (docs/options.md); samples
    and functions in memory are known again by this call alone, and no cluster takes them. GoalError where no point
    could be made. KeyboardInterrupt writes the front of what was made until then, and is raised again.
    """
    from sparsecc.search import runners
    from sparsecc.search.run import search as run_search
    from sparsecc.search.space import Space

    path = compiled_from(Path(os.path.abspath(model)))
    if path.is_dir():
        raise InputError(
            f"{model} is a folder: a search takes one ONNX file, name that in it (what a language model loses is told "
            "in nats a token, which no point measures: give compile a --ratio)"
        )
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
            Space(**{name: getattr(call, name) for name in rows_of(Tried)}),
            base,
            runner=runners.local(call.jobs, call.memory_limit)
            if call.cluster is None
            else runners.cluster(call.cluster),
            of_each={**limits, **(memory.again() if memory is not None else {})},
            rounds=call.rounds,
            on_event=call.on_event or (lambda event: None),
        )

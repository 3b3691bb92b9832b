"""The trials of a search for the front: made and measured as those of a search to a goal are, and known to it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from sparsecc.decide.goals import Goal, Trial
from sparsecc.decide.type_levers import INT8
from sparsecc.errors import GoalError, SparseccError
from sparsecc.loading.identity import digest_of
from sparsecc.options import CompileOptions
from sparsecc.system.progress import Emit
from sparsecc.system.scratch import Scratch
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.tasks.compile_to_goal import Workshop
from sparsecc.tasks.fewer_words import compilation_of
from sparsecc.tasks.known_trials import KnownTrials


def survey(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """{"sha256" of the model, "families", "more", "times_types", "removes"}: the levers of a search to a goal."""
    with temporary_folder("scratch") as folder:
        shop = _opened(request, folder, emit)
        families, more = shop.levers()
        sha = digest_of(shop.compilation.identity)
        named = any(family == INT8 for family in families)
        is_timed = shop.figures.times and shop.compilation.target.timed_here
        facts = {"times_types": named and is_timed, "removes": "channels" in shop.compilation.options.levers}
        return {"sha256": sha, "families": families, "more": more, **facts}


def make(request: dict[str, Any], emit: Emit) -> list[dict[str, Any]]:
    """One row for each of `request["points"]`, {"id", "ratio", "levers"}, which is also told as an event ("row") when
    it is made: the trial with the recipe that makes it again, or the line of an error. `request["paying"]` is what
    timing found of 8-bit types before."""
    rows: list[dict[str, Any]] = []
    with temporary_folder("scratch") as folder:
        shop = _opened(request, folder, emit)
        shop.paying = dict(request["paying"])
        for point in request["points"]:
            begun = time.perf_counter()
            try:
                row = _made(shop, point)
            except SparseccError as e:
                row = {"error": str(e), "kind": type(e).__name__}
            row |= {"id": point["id"], "seconds": round(time.perf_counter() - begun, 3)}
            emit({"row": row})
            rows.append(row)
    return rows


def _opened(request: dict[str, Any], folder: Path, emit: Emit) -> Workshop:
    options = CompileOptions.of(request["options"])
    asked = compilation_of(Path(request["model"]), options, Scratch(folder), emit)
    return Workshop.open(asked, Goal(), partial(KnownTrials, asked, request["origin"]))


def _made(shop: Workshop, point: dict[str, Any]) -> dict[str, Any]:
    levers = {
        name: tuple(value) if isinstance(value, list) else value for name, value in point["levers"].items()
    }
    trial: Trial = shop.attempt(levers, point["ratio"])
    options = shop.compilation.options
    limits = Goal(min_quality=options.min_quality, min_agreement=options.min_agreement)
    if limits.asked and limits.loses_too_much(trial):
        raise GoalError(f"{trial.words()} loses more than {limits.words()} allows")
    return {
        "trial": trial.to_json(),
        "recipe": shop.resolved(trial).to_recipe(),
        "chosen": shop.chose(trial),
    }

"""A search: make the points that are missing, wave after wave; write the front, the page and the recipes."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsecc.bundle.folder import json_bytes
from sparsecc.bundle.recipe import SCHEMA as RECIPE
from sparsecc.data.origin import origin, texts_of
from sparsecc.decide.front_search import FrontSearch, Point
from sparsecc.decide.goal_search import PAYS
from sparsecc.decide.goals import Goal, Trial
from sparsecc.errors import GoalError, InputError
from sparsecc.options import NO_SAMPLES, SELF, SYNTHETIC, CompileOptions, rows_of
from sparsecc.search.front import COSTS, fronts
from sparsecc.search.ledger import Ledger
from sparsecc.search.point import Request, paying, point_of, question_of, surveyed
from sparsecc.search.runners import Runner
from sparsecc.search.space import Space
from sparsecc.system.files import replace_whole
from sparsecc.system.interrupts import Interrupted
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions
from sparsecc.tasks.known_trials import trial_of

SCHEMA = "sparsecc.search/2"
Event = Callable[[dict[str, Any]], None]


def search(
    model: Path,
    folder: Path,
    space: Space,
    base: Mapping[str, Any],
    *,
    runner: Runner,
    of_each: Mapping[str, Any],
    rounds: int,
    on_event: Event,
) -> dict[str, Any]:
    """What `front.json` in `folder` then holds; `of_each` are limits of every worker and what the call holds in
    memory. What was made until Ctrl-C is written, and KeyboardInterrupt raised again. GoalError where no point could
    be made."""
    space.require_known(base)
    options, data = CompileOptions.of(base), origin(base)
    request = {"model": str(model), "options": options.to_recipe(), "origin": data, "of_each": dict(of_each)}
    on_event({"stage": "load", "share": 0.0})
    with temporary_folder("search") as scratch:
        levers = surveyed(request, scratch)
    plan = _plan(space, levers, rounds)
    with Ledger(folder, levers["sha256"]) as ledger:
        under_way = Search(ledger, options, data, request, runner, on_event, options.budget)
        try:
            under_way.run(plan)
        except (KeyboardInterrupt, Interrupted) as e:
            ended = isinstance(e, KeyboardInterrupt) or e.name == "SIGINT"
            if ended and under_way.made:
                _written(folder, model, under_way, base)
            raise
        return {**_written(folder, model, under_way, base), "folder": str(folder)}


def _plan(space: Space, levers: Mapping[str, Any], rounds: int) -> FrontSearch:
    """What is to be made: what is ordered, and where nothing is, what a search to a goal would pull."""
    ratios, times = space.ratios, levers["times_types"] and space.ratios is None and not space.names_types
    if ratios is not None and not space.names_types:
        ratios = (0.0, *(ratio for ratio in ratios if ratio))
    more = [] if space.ratios is not None or space.names_types else levers["more"]
    removes = levers["removes"] or space.ratios is not None
    return FrontSearch(space.families(levers["families"]), more, ratios, rounds, times, removes)


@dataclass
class Search:
    """One search under way, its points in a ledger."""

    ledger: Ledger
    options: CompileOptions
    data: str
    request: Request
    runner: Runner
    on_event: Event
    budget: float | None
    asked: list[str] = field(default_factory=list)
    """The ids of the points that this search wanted."""

    @property
    def made(self) -> list[dict[str, Any]]:
        """The points that could be made, of earlier searches too, in an order that does not depend on which was
        quicker."""
        return sorted((row for row in self.rows if "error" not in row), key=_order)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The points whose figures compare with those of this search; the ledger may hold those of other samples."""
        wanted, rows = frozenset(self.asked), self.ledger.rows.values()
        return [row for row in rows if row["id"] in wanted or row.get("question") == self.question]

    @cached_property
    def question(self) -> str:
        return question_of(self.options, self.data)

    def run(self, plan: FrontSearch) -> None:
        """Every wave in turn, until the budget is spent."""
        end = time.monotonic() + (self.budget or float("inf"))
        for number, wave in enumerate(plan.waves(), 1):
            if self.asked and time.monotonic() > end:
                return
            points = self._points(wave)
            self._make(points, number)
            rows = (self.ledger.rows[point["id"]] for point in points)
            plan.trials.extend(_trial(row) for row in rows if "error" not in row)

    def _points(self, wave: Sequence[Point]) -> list[dict[str, Any]]:
        sha = self.ledger.model
        points = [point_of(sha, self.options, self.data, family, ratio) for family, ratio in wave]
        self.asked += [point["id"] for point in points]
        return points

    def _make(self, points: Sequence[dict[str, Any]], wave: int) -> None:
        missing = [point for point in points if not self.ledger.has(point["id"])]
        done, number = len(points) - len(missing), len(points)
        if not missing:
            return
        self._tell(wave, done, number)
        request = {**self.request, "points": missing, "paying": paying(self.rows)}
        about = {"model_sha256": self.ledger.model, "question": self.question}
        for row in self.runner(request):
            self.ledger.add({**row, **about})
            done += 1
            self._tell(wave, done, number, _note(row))

    def _tell(self, wave: int, done: int, number: int, note: str = "") -> None:
        """How far it is, with the best so far."""
        best = best_of([_trial(row) for row in self.made], self.options)
        told = f"; {best.words()}" if best is not None else ""
        event = {"stage": f"wave {wave}: {done} of {number} points{told}", "share": done / max(number, 1)}
        self.on_event({**event, **({"note": note} if note else {})})


def best_of(trials: Sequence[Trial], options: CompileOptions) -> Trial | None:
    """What `sparsecc compile` without a goal takes: the fastest that loses nothing measurable. None where nothing was
    timed or judged, and where nothing pays."""
    goal = Goal.unasked(replace(options, budget=None))
    if goal is None:
        return None
    kept = [t for t in trials if not goal.loses_too_much(t) and (t.speedup or 0.0) >= PAYS]
    return max(kept, key=lambda t: t.speedup or 0.0, default=None)


def _trial(row: Mapping[str, Any]) -> Trial:
    return trial_of(row["trial"])


def _note(row: Mapping[str, Any]) -> str:
    """`ratio 0.5, int8: 1.8x, 31.0 dB`."""
    if "error" in row:
        ratio, *_ = row["options"].values()
        return f"ratio {ratio}: {row['error']}"
    return _trial(row).words()


def _order(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['options']['ratio']:.6f}",
        *(str(option) for option in sorted(row["options"].items())),
        row["id"],
    )


def _written(folder: Path, model: Path, found: Search, base: Mapping[str, Any]) -> dict[str, Any]:
    from sparsecc.report.html import front_page

    ledger, rows = found.ledger, found.made
    failed = [row for row in found.rows if "error" in row]
    if not rows:
        why = f": {failed[0]['error']}" if failed else ""
        raise GoalError(f"no point of the search could be made{why}")
    points = [_public(row, base, folder) for row in rows]
    best, dense = best_of([_trial(row) for row in rows], found.options), points[0]["dense_bytes"]
    score = points[0].get("dense_score")
    front = {
        "schema": SCHEMA,
        "model": {"name": model.name, "sha256": ledger.model, "bytes": dense},
        "quality": "score" if points[0].get("score") is not None else "quality_db",
        "dense_quality": score,
        "costs": {cost: {point["id"]: of(point) for point in points} for cost, of in COSTS.items()},
        "fronts": fronts(points, math.inf if score is None else score),
        "chosen": None if best is None else next(row["id"] for row in rows if _trial(row) == best),
        "points": points,
        "failed": [{k: row[k] for k in ("id", "options", "error")} for row in failed],
        "versions": versions(),
    }
    recipes = folder / "points"
    if recipes.is_symlink():
        raise InputError(f"{recipes} is a link: remove it, or give another -o")
    recipes.mkdir(exist_ok=True)
    for row in rows:
        about = {"schema": RECIPE, "model": model.name, "input_sha256": ledger.model}
        replace_whole(recipes / f"{row['id']}.json", json_bytes({**about, **row["recipe"]}))
    replace_whole(folder / "front.json", json_bytes(front))
    replace_whole(folder / "front.html", front_page(front).encode(errors="backslashreplace"))
    return front


def _public(row: Mapping[str, Any], base: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The trial of a row with the options that make it again from where the search was started; `recipe` is within
    `folder`, `quality` is the user's metric where there is one, else decibels of the part that lost most."""
    trial = row["trial"]
    again = ["--recipe", f"{folder}/points/{row['id']}.json"]
    for name, option in rows_of(CompileOptions).items():
        value = base.get(name)
        if value not in (None, SYNTHETIC, SELF, NO_SAMPLES) and (
            option.names_code or option.is_refused_in_a_file(value)
        ):
            again += [word for text in texts_of(value) for word in (option.flag, text)]
    quality = trial.get("score", trial.get("quality_db"))
    told = {"id": row["id"], **trial, "quality": quality, "seconds": row["seconds"]}
    return {**told, "recipe": f"points/{row['id']}.json", "compile": shlex.join(again)}

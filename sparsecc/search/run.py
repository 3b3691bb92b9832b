"""A search: make the points that are missing, round after round; write the front, the page and the recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecc import worker
from sparsecc.bundle.folder import json_bytes
from sparsecc.bundle.recipe import SCHEMA as RECIPE
from sparsecc.data.origin import origin, texts_of
from sparsecc.errors import GoalError, InputError
from sparsecc.loading.identity import digest_of
from sparsecc.options import NO_SAMPLES, SELF, SYNTHETIC, CompileOptions, rows_of
from sparsecc.search.front import COSTS, fronts
from sparsecc.search.ledger import Ledger
from sparsecc.search.point import id_of
from sparsecc.search.runners import Runner
from sparsecc.search.space import Space, between
from sparsecc.system.files import replace_whole
from sparsecc.system.versions import versions

SCHEMA = "sparsecc.search/1"
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
    """What `front.json` in `folder` then holds; `of_each` are options of every compile that make no other point.
    GoalError where no point could be made."""
    space.require_known(base)
    sha = digest_of(worker.run("sparsecc.loading.identity:identify", {"model": str(model)}))
    data = origin(base)
    with Ledger(folder, sha) as ledger:
        asked: set[str] = set()
        wanted = _requests(space.grid(), model, sha, base, data)
        for number in range(rounds + 1):
            whole = [{**request, "of_each": dict(of_each)} for request in wanted]
            _make(ledger, whole, runner, on_event, f"round {number + 1} of {rounds + 1}")
            asked |= {request["id"] for request in wanted}
            rows = [row for row in _sound(ledger) if row["id"] in asked]
            if number < rounds:
                wanted = _requests(between(rows, _main_front(rows)), model, sha, base, data)
        return {**_written(folder, model, sha, ledger, base), "folder": str(folder)}


def _requests(
    points: Sequence[dict[str, Any]] | Iterator[dict[str, Any]],
    model: Path,
    sha: str,
    base: Mapping[str, Any],
    data: str,
) -> list[dict[str, Any]]:
    requests = []
    for point in points:
        options = CompileOptions.of({**base, **point}).to_recipe()
        name = id_of(sha, options, data)
        requests.append(
            {"id": name, "model": str(model), "model_sha256": sha, "varied": point, "options": options}
        )
    return requests


def _make(
    ledger: Ledger, requests: list[dict[str, Any]], runner: Runner, on_event: Event, label: str
) -> None:
    missing = [request for request in requests if not ledger.has(request["id"])]
    done = len(requests) - len(missing)
    on_event({"stage": f"{label}: {done} of {len(requests)} points", "share": done / max(len(requests), 1)})
    for row in runner(missing) if missing else ():
        ledger.add(row)
        done += 1
        share = done / len(requests)
        on_event({"stage": f"{label}: {done} of {len(requests)} points", "share": share, "note": _note(row)})


def _note(row: Mapping[str, Any]) -> str:
    """`ratio 0.5 criterion l2: quality 0.91, 1.8x`."""
    what = " ".join(f"{name} {value}" for name, value in row["options"].items())
    if "error" in row:
        return f"{what}: {row['error']}"
    speed = f", {row['speedup']:.2f}x" if row.get("speedup") else ""
    return f"{what}: quality {row['quality']:.4g}{speed}" if row["quality"] is not None else what


def _sound(ledger: Ledger) -> list[dict[str, Any]]:
    """The points that were made, in an order that does not depend on which was quicker."""
    return sorted((r for r in ledger.rows.values() if "error" not in r), key=_order)


def _order(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{row['options']['ratio']:.6f}", *(str(v) for v in row["options"].values()), row["id"])


def _main_front(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return next(iter(fronts(rows).values()), [])


def _written(folder: Path, model: Path, sha: str, ledger: Ledger, base: Mapping[str, Any]) -> dict[str, Any]:
    from sparsecc.report.html import front_page

    rows = _sound(ledger)
    failed = [row for row in ledger.rows.values() if "error" in row]
    if not rows:
        why = f": {failed[0]['error']}" if failed else ""
        raise GoalError(f"no point of the search could be made{why}")
    found = {
        "schema": SCHEMA,
        "model": {"name": model.name, "sha256": sha, **rows[0]["before"]},
        "quality": "accuracy" if rows[0]["accuracy"] else "quality_db",
        "dense_quality": rows[0]["accuracy"]["before"] if rows[0]["accuracy"] else None,
        "costs": {cost: {r["id"]: COSTS[cost](r) for r in rows} for cost in COSTS},
        "fronts": fronts(rows),
        "points": [_public(row, base, folder) for row in rows],
        "failed": [{k: row[k] for k in ("id", "options", "error")} for row in failed],
        "versions": versions(),
    }
    recipes = folder / "points"
    if recipes.is_symlink():
        raise InputError(f"{recipes} is a link: remove it, or give another -o")
    recipes.mkdir(exist_ok=True)
    for row in rows:
        about = {"schema": RECIPE, "model": model.name, "input_sha256": sha}
        replace_whole(recipes / f"{row['id']}.json", json_bytes({**about, **row["recipe"]}))
    replace_whole(folder / "front.json", json_bytes(found))
    replace_whole(folder / "front.html", front_page(found).encode(errors="backslashreplace"))
    return found


def _public(row: Mapping[str, Any], base: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row with the options that make it again from where the search was started; `recipe` is within `folder`."""
    told = {key: value for key, value in row.items() if key not in ("recipe", "model_sha256")}
    again = [f"--recipe {folder}/points/{row['id']}.json"]
    for name, option in rows_of(CompileOptions).items():
        value = base.get(name)
        if value not in (None, SYNTHETIC, SELF, NO_SAMPLES) and (
            option.names_code or option.is_refused_in_a_file(value)
        ):
            again += [f"{option.flag} {text}" for text in texts_of(value)]
    return {**told, "recipe": f"points/{row['id']}.json", "compile": " ".join(again)}

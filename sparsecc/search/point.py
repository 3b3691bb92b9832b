"""One point of a search: a compile into a folder that goes again, and what it measured."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparsecc.bundle.folder import Bundle
from sparsecc.errors import SparseccError, UnavailableError
from sparsecc.loss.judge import worst_quality
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions
from sparsecc.tasks.reproduce import MEASURED


def id_of(model_sha256: str, options: Mapping[str, Any], data: str) -> str:
    """The name of a point: a hash of the model, the options, the data and the versions of everything."""
    parts = [model_sha256, sorted(options.items()), data, sorted(versions().items())]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def make(request: dict[str, Any]) -> dict[str, Any]:
    """As `make_in`, in a folder that goes again: on a machine of a cluster."""
    with temporary_folder("search") as folder:
        return make_in(folder, request)


def make_in(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Compile `request["model"]` with `request["options"]` below `folder`; the row of the ledger. An error becomes its
    line. The compile itself runs in a worker."""
    from sparsecc import api

    begun = time.perf_counter()
    row = {key: request[key] for key in ("id", "model_sha256", "varied")}
    row["options"] = row.pop("varied")
    bundle = folder / request["id"]
    try:
        options = {**request["options"], **request["of_each"], "next_steps": False}
        made = api.compile(request["model"], output=bundle, **options)
        if "unmeasured" in made.report:
            raise UnavailableError(made.report["unmeasured"])
        row |= _measured(made.report) | _files(bundle)
    except SparseccError as e:
        row |= {"error": str(e), "kind": type(e).__name__}
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
    return {**row, "seconds": round(time.perf_counter() - begun, 3)}


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """The quality is the user's own metric where there is one, else how close the part of the outputs is that lost
    most, in decibels."""
    fidelity, accuracy = report["fidelity"], report.get("accuracy")
    row = {
        "before": report["before"],
        "after": report["after"],
        "removed": report["removed"],
        "fidelity": fidelity,
        "accuracy": accuracy,
        "quality": accuracy["after"] if accuracy else worst_quality(fidelity),
        "warnings": report["warnings"],
    }
    if "latency" in report:
        row["speedup"] = report["latency"]["speedup"]["estimate"]
        row["ci95"] = report["latency"]["speedup"]["ci95"]
    return row


def _files(folder: Path) -> dict[str, Any]:
    """The recipe, and the hashes by which a compile from it is recognised."""
    files = Bundle.open(folder).manifest["files"]
    hashes = {name: facts["sha256"] for name, facts in sorted(files.items()) if name not in MEASURED}
    return {"recipe": yaml.safe_load((folder / "recipe.yaml").read_text()), "files": hashes}

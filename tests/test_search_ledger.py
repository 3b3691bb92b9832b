"""The ledger of a search: lines on disk that are whole, and data whoever wrote them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sparsecc.errors import InputError, SystemFailureError
from sparsecc.search.ledger import Ledger


def row(name: str, **more: Any) -> dict[str, Any]:
    """A row of a ledger."""
    trial = {"ratio": 0.2, "removed": 0.2, "bytes": 5, "dense_bytes": 10, "macs": 0.8, "quality_db": 30.0}
    trial |= more.pop("trial", {})
    made = {"trial": trial, "recipe": {}, "chosen": {}, "seconds": 1.0}
    return {"id": name, "model_sha256": "m", "options": {"ratio": 0.2}, **made, **more}


FOREIGN: list[dict[str, Any]] = [
    {"id": "../../escaped"},
    {"id": "/escaped"},
    {"id": 5},
    {"options": {}},
    {"options": {"ratio": "x"}},
    {"options": {"ratio": 0.5, "criterion": [2]}},
    {"options": {"ratio": 0.5, "quantize_options": {"max_drop": ["0.1"]}}},
    {"recipe": 5},
    {"trial": {"bytes": 0}},
    {"trial": {"bytes": "x"}},
    {"trial": {"macs": "<script>"}},
    {"trial": {"quality_db": float("nan")}},
    {"trial": {"speedup": float("inf")}},
    {"trial": {"speedup": 0}},
    {"trial": {"levers": 5}},
    {"trial": {"levers": {"tokens": [5]}}},
    {"trial": {"ci95": [1]}},
    {"trial": {"sha256": 5}},
    {"trial": {"unknown": 5}},
    {"chosen": 5},
    {"error": 5, "recipe": None},
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_a_ledger_of_a_stranger_is_data(foreign: dict[str, Any], tmp_path: Path) -> None:
    """What no search of ours wrote is refused in a line: no file is named by it, and no fault is met later."""
    folder = tmp_path / "deep" / "front"
    folder.mkdir(parents=True)
    line = json.dumps(row("a", **foreign))
    (folder / "points.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 is no point"), Ledger(folder, "m"):
        pass


@pytest.mark.parametrize("make", ["link", "pipe"])
def test_a_ledger_is_a_plain_file(make: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    path = tmp_path / "points.jsonl"
    path.symlink_to(victim) if make == "link" else os.mkfifo(path)
    with pytest.raises((InputError, SystemFailureError)), Ledger(tmp_path, "m"):
        pass


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        ledger.add(row("a"))
    with (tmp_path / "points.jsonl").open("ab") as file:
        file.write(b'{"id": "b", "model_sha')
    with Ledger(tmp_path, "m") as ledger:
        assert list(ledger.rows) == ["a"]
        ledger.add(row("c"))
    with Ledger(tmp_path, "m") as ledger:
        assert list(ledger.rows) == ["a", "c"]


def test_a_folder_of_another_model_or_of_anything_else_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        ledger.add(row("a"))
        with pytest.raises(InputError, match="another search is writing there"), Ledger(tmp_path, "m"):
            pass
    with pytest.raises(InputError, match="holds the search of another model"), Ledger(tmp_path, "n"):
        pass
    (tmp_path / "points.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="line 1 is no point of a search"), Ledger(tmp_path, "m"):
        pass


def test_what_failed_for_want_of_time_is_tried_again(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        ledger.add(row("a", error="too slow", kind="WorkerError"))
        ledger.add(row("b", error="no", kind="InputError"))
        assert not ledger.has("a")
        assert ledger.has("b")

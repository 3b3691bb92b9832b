"""Does one goal find what a choice by hand finds, on models of six kinds?

    python benchmarks/goals.py [--cases detector,...] [--ways "goal 1.5x,int8"] [--seconds 240] [--again] [--markdown]

Each model is compiled with `--speedup 1.5` and nothing else, to int8 alone, to the same speed by channels alone and by
types alone (`mixed speedup=1.5`), and by hand. Everything is judged on inputs that no compile saw, by what a user of
the model looks at, as a share of what the dense model tells there, and in decibels, beside those that the report told.
The speed is that of the report, interleaved with the dense model. Rows are stored as they come and not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.goal_cases import CASES, Case
from sparsecc.errors import SparseccError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.loss.quality import told
from sparsecc.runtime.session import open_session

STORE = Path(__file__).resolve().parent / "results" / "goals.json"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "goal 1.5x": {"speedup": 1.5},
    "int8": {"quantize": "int8"},
    "channels 1.5x": {"speedup": 1.5, "levers": ["channels"]},
    "mixed 1.5x": {"quantize": "mixed", "quantize_options": {"speedup": "1.5"}},
    "by hand": {},
}
PART = {"quantize": "int8", "quantize_options": {"max_drop": "0.002"}}
BY_HAND: Mapping[str, Mapping[str, Any]] = {
    "detector": {"ratio": 0.1, **PART},
    "YOLOX-Nano": {"ratio": 0.1, "quantize": "int8", "quantize_options": {"max_drop": "0.02"}},
    "text recogniser": {
        "quantize": "int8",
        "quantize_options": {"exclude": "/feature/feature.0/Conv,/feature/feature.3/Conv,/newCnn/Conv"},
    },
    "depthwise classifier": {"ratio": 0.3},
    "sentence encoder": {"quantize": "mixed", "quantize_options": {"speedup": "1.5"}},
    "residual classifier": PART,
    "text detector": {"ratio": 0.2, **PART},
}
"""What a choice by hand takes for 1.5x, kind by kind."""


def row(name: str, how: str) -> dict[str, Any]:
    """One compile, with what it told and what is true on unseen inputs."""
    case, options = CASES[name](), WAYS[how] or BY_HAND[name]
    found: dict[str, Any] = {"case": name, "how": how, "options": {**options}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # as if the model were seen for the first time
        np.savez(f"{folder}/calib.npz", **case.given)
        begun, heard, spent = time.perf_counter(), list[float](), _spent()

        def listen(event: Mapping[str, Any]) -> None:
            if "trial" in event:
                heard.append(round(time.perf_counter() - begun, 1))

        try:
            made = sparsecc.compile(
                case.file,
                output=f"{folder}/out",
                calib=f"{folder}/calib.npz",
                next_steps=False,
                on_event=listen,
                **options,
            )
        except SparseccError as e:
            found["error"] = str(e)
        found |= {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(_spent() - spent, 1)}
        found |= {"trials_at": heard, "megabytes": round(case.file.stat().st_size / 1e6, 1)}
        if "error" in found:
            return found
        return {**found, **_told(made.report), **_unseen(case, Path(folder, "out", "model.onnx"))}


def _spent() -> float:
    """Processor time of all workers that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _told(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says."""
    speedup, facts = report["latency"]["speedup"], report["fidelity"]
    trials = [
        {k: t.get(k) for k in ("ratio", "levers", "speedup", "quality_db")} for t in report.get("trials", ())
    ]
    return {
        "speedup": speedup["estimate"],
        "ci95": speedup["ci95"],
        "told_db": facts["quality_db"],
        "interval_db": facts.get("interval_db"),
        "removed": report["removed"]["share"],
        "chosen": report.get("chosen"),
        "goal": report.get("goal"),
        "trials": trials,
        "bytes": report["after"]["bytes"] / report["before"]["bytes"],
    }


def _unseen(case: Case, model: Path) -> dict[str, Any]:
    """What is true of inputs that the compile never saw."""
    dense, small = (open_session(file, threads=1) for file in (case.file, model))
    wanted, given = ([runner.run(feeds) for feeds in case.unseen] for runner in (dense, small))
    true = told(wanted, given, parts_of_outputs(analyse(normalise(load_ir(case.file)))))
    return {
        "unseen_db": true["quality_db"],
        "same": round(case.same(wanted, given), 4),
        "measure": case.measure,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line to a model, a column to a way of compiling."""
    known = {(one["case"], one["how"]): one for one in rows}
    ways = [how for how in WAYS if any(one["how"] == how for one in rows)]
    head = (
        f"| model, what of the dense one's is kept | {' | '.join(ways)} | told, unseen | first, last answer |"
    )
    lines = [head, f"|---{'|---' * (len(ways) + 2)}|"]
    for name in CASES:
        goal = known.get((name, "goal 1.5x"))
        if goal is None or "trials_at" not in goal:
            continue
        cells = [_cell(known.get((name, how))) for how in ways]
        db = f"{goal['told_db']:.1f}, {goal['unseen_db']:.1f} dB" if "told_db" in goal else ""
        took = f"{goal['trials_at'][0]:.0f}, {goal['seconds']:.0f} s ({goal['cpu_seconds']:.0f} s CPU)"
        lines.append(f"| {name}, {goal.get('measure', '')} | {' | '.join(cells)} | {db} | {took} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return "refused" if "error" in found else f"{found['speedup']:.2f}x {found['same']:.3f}"


def main() -> None:
    """Make what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true", help="make these rows anew")
    parser.add_argument("--json", type=Path, default=STORE)
    parser.add_argument("--markdown", action="store_true", help="print the table and make nothing")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    if given.markdown:
        print(table(rows))
        return
    begun = time.monotonic()
    for how in given.ways.split(","):
        for name in given.cases.split(","):
            is_known = any((one["case"], one["how"]) == (name, how) for one in rows)
            if (is_known and not given.again) or time.monotonic() - begun > given.seconds:
                continue
            made = row(name, how)
            rows = [one for one in rows if (one["case"], one["how"]) != (name, how)] + [made]
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
            print({k: v for k, v in made.items() if k not in ("trials", "goal")}, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

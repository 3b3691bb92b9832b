"""Does one goal find what the best single lever finds, on twelve models?

    python benchmarks/goal_models.py [--models iris,...] [--seconds 600] [--json FILE] [--markdown] [--picture SVG]

For each model and goal (1.5 and 2 times as fast; the fastest that keeps 25 dB) the choice among all levers
stands beside that among channels alone, types alone, layers and tokens, by the same search: at the speed that was
asked, or at the quality. Of the choice the speed is that of its final compile, the quality also that on inputs that
no compile saw (samples of `benchmarks/told_quality.py`). Trials are kept under out/benchmarks/, rows are stored as
they come, and neither is made again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.accuracy_pairs import ROOT
from benchmarks.told_quality import samples_of
from sparsecc.data.array_files import write_arrays
from sparsecc.data.origin import origin
from sparsecc.decide.goals import Goal, Trial
from sparsecc.errors import SparseccError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.loss.quality import told
from sparsecc.options import CompileOptions
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.compile_to_goal import Workshop
from sparsecc.tasks.fewer_words import compilation_of
from sparsecc.tasks.known_trials import KnownTrials

STORE = Path(__file__).resolve().parent / "results" / "goal_models.json"
CACHE = ROOT / "out" / "benchmarks" / "goal_models_cache"
MODELS = (
    "resnet8", "ort_mnist", "iris", "digits_vit", "hyperlpr", "text_angle", "fsanet", "resnet20", "plate", "ultraface",
    "squeezenet", "mobilenetv2",
)  # fmt: skip
"""A residual net, a perceptron, landmarks with PRelu, a vision transformer, two classifiers, a regression with
attention, a residual net of CIFAR, a CTC recogniser, a face detector, fire modules, a depthwise classifier."""
GOALS: Mapping[str, Mapping[str, Any]] = {
    "1.5x": {"speedup": 1.5},
    "2x": {"speedup": 2.0},
    "25 dB": {"min_quality": 25.0},
}
WAYS: Mapping[str, Sequence[str]] = {
    "all": ("channels", "types", "layers", "tokens"),
    "channels": ("channels",),
    "types": ("types",),
    "layers": ("channels", "layers"),
    "tokens": ("channels", "tokens"),
}
"""Levers of each way; channels are left at zero in those of layers and tokens where these alone reach the goal."""
BUDGET = 60.0


def row(name: str, goal: str) -> dict[str, Any]:
    """What every way of a model settles on, and the choice of all as it is compiled and on unseen inputs."""
    path, given, unseen = samples_of(name, 0)
    found: dict[str, Any] = {"model": name, "goal": goal, "megabytes": round(path.stat().st_size / 1e6, 1)}
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder, "calib")
        calib.mkdir()
        for number, batch in enumerate(given):
            write_arrays(calib / f"{number:04d}.npz", dict(batch))
        begun = time.perf_counter()
        asked = {"calib": str(calib), "budget": BUDGET, "next_steps": False, **GOALS[goal]}
        for way, levers in WAYS.items():
            found[way] = settled(path, {**asked, "levers": levers}, goal)
        found["seconds"] = round(time.perf_counter() - begun, 1)
        try:
            made = sparsecc.compile(path, output=f"{folder}/out", **asked)
        except SparseccError as e:
            return {**found, "error": str(e)}
        report = made.report
        found |= {"speedup": report["latency"]["speedup"]["estimate"], "chosen": report["chosen"]}
        found |= {
            "told_db": report["fidelity"]["quality_db"],
            "interval_db": report["fidelity"].get("interval_db"),
        }
        runners = [open_session(file, threads=1) for file in (path, Path(folder, "out", "model.onnx"))]
        outputs = [[runner.run(one) for one in unseen] for runner in runners]
        parts = parts_of_outputs(analyse(normalise(load_ir(path))))
        return {**found, "unseen_db": told(outputs[0], outputs[1], parts)["quality_db"]}


def settled(path: Path, options: Mapping[str, Any], goal: str) -> dict[str, Any] | None:
    """The trial that a search settles on; None where it has none."""
    with tempfile.TemporaryDirectory() as scratch:
        asked = compilation_of(
            path, CompileOptions.of(dict(options)), Scratch(Path(scratch)), lambda event: None
        )
        try:
            known = partial(
                KnownTrials, asked, origin(options)
            )  # the compile of the row takes them from there
            shop = Workshop.open(asked, Goal(**GOALS[goal]), known)
            best: Trial = shop.settle().best
        except SparseccError as e:
            print(f"{path.name}, {goal}: {e}", flush=True)
            return None
        kept = {
            name: value
            for name, value in best.to_json().items()
            if name in ("speedup", "quality_db", "levers")
        }
        return {**kept, "ratio": round(best.ratio, 3), "met": shop.goal.excess(best) <= 0.05}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line to a model and goal."""
    head = "| model | goal | chosen | speed, told, unseen | channels | types | layers | tokens |"
    lines = [head, "|---" * 8 + "|"]
    for one in rows:
        cells = [_cell(one.get(way)) for way in list(WAYS)[1:]]
        if "error" in one:
            lines.append(f"| {one['model']} | {one['goal']} | refused | | {' | '.join(cells)} |")
            continue
        told_db = f"{one['speedup']:.2f}x, {one['told_db']:.1f}, {one['unseen_db']:.1f} dB"
        words = (
            Trial(one["chosen"]["ratio"], 0, 1, 1, levers=one["chosen"]["levers"]).words().rpartition(":")[0]
        )
        lines.append(f"| {one['model']} | {one['goal']} | {words} | {told_db} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None or "speedup" not in found:
        return "–"
    missed = "" if found["met"] else " (missed)"
    return f"{found['speedup']:.2f}x {found.get('quality_db', float('inf')):.1f} dB{missed}"


COLOURS = {
    "all": "#0b6e4f",
    "channels": "#c84630",
    "types": "#3066be",
    "layers": "#e9a03b",
    "tokens": "#8d6a9f",
}
WIDE, LINE, LEFT = 420, 22, 130


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG of two panels: decibels at the speeds that were asked, and speeds at 25 dB; a line to a model, a dot to a
    way, that of all levers the largest. What missed its goal is hollow."""
    of_speed = [
        (f"{one['model']} {one['goal']}", one, "quality_db") for one in rows if one["goal"] != "25 dB"
    ]
    at_limit = [(one["model"], one, "speedup") for one in rows if one["goal"] == "25 dB"]
    panels = [("dB of the worst part", 0.0, 50.0, of_speed), ("times as fast at 25 dB", 1.0, 4.0, at_limit)]
    height, drawn = LINE * (max(len(of_speed), len(at_limit)) + 4), list[str]()
    for number, (title, low, high, lines) in enumerate(panels):
        start = number * (WIDE + LEFT) + LEFT
        drawn.append(_text(start + WIDE / 3, LINE, title))
        for step in range(6):
            value = low + step * (high - low) / 5
            drawn.append(_text(start + (WIDE - 40) * step / 5, 2 * LINE, f"{value:g}"))
        for place, (name, one, what) in enumerate(lines):
            y = LINE * (place + 3)
            drawn.append(_text(start - LEFT + 4, y + 4, name))
            drawn.append(f'<line x1="{start}" y1="{y}" x2="{start + WIDE - 40}" y2="{y}" stroke="#ddd"/>')
            for way in reversed(WAYS):
                found = one.get(way) or {}
                if what not in found:
                    continue
                x = start + (WIDE - 40) * min(max((found[what] - low) / (high - low), 0.0), 1.0)
                fill = COLOURS[way] if found["met"] else "none"
                shape = f'cx="{x:.0f}" cy="{y}" r="{6 if way == "all" else 3.5}"'
                drawn.append(f'<circle {shape} fill="{fill}" stroke="{COLOURS[way]}"/>')
    for place, (way, colour) in enumerate(COLOURS.items()):
        x = LEFT + 110 * place
        drawn.append(f'<circle cx="{x}" cy="{height - 12}" r="5" fill="{colour}"/>')
        drawn.append(_text(x + 10, height - 8, "all levers" if way == "all" else way))
    size = f'width="{2 * (WIDE + LEFT)}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(drawn) + "\n</svg>\n"


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="#333">{words}</text>'


def main() -> None:
    """Make what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path, default=STORE)
    parser.add_argument("--markdown", action="store_true", help="print the table and make nothing")
    parser.add_argument("--picture", type=Path, help="write the picture and make nothing")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    os.environ["XDG_CACHE_HOME"] = str(CACHE)
    begun = time.monotonic()
    if given.picture is not None:
        given.picture.write_text(picture(rows))
    for goal in () if given.markdown or given.picture is not None else GOALS:
        for name in given.models.split(","):
            is_known = any((one["model"], one["goal"]) == (name, goal) for one in rows)
            if is_known or time.monotonic() - begun > given.seconds:
                continue
            rows.append(row(name, goal))
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
            print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

"""What told quality is worth: the worst part's decibels and agreement beside what a task metric really lost.

    python benchmarks/verdicts.py [--pairs resnet20,...] [--seconds 240]    again until it says that all is done
    python benchmarks/verdicts.py --publish docs/accuracy.md                write its table between the marks there

Every pair is compiled at a few ratios, repaired and not, and to int8, without its metric; the compiled model is
scored afterwards. The thresholds of `sparsecc/loss/judge.py` are chosen by these rows: a result is of no use where
its metric fell by more than a tenth (of nats: where they grew by a tenth of what guessing would add). Each point is
stored as it stands (out/benchmarks/verdicts.json), and stored ones are not made again. All pairs but the digits models
need the shared materials (SPARSECC_SHARED or ../shared).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.accuracy_pairs import FRESH, PAIRS, Pair
from sparsecc.errors import SparseccError
from sparsecc.loss.answers import Agreement
from sparsecc.loss.judge import lowest_agreement, use_of, worst_quality
from sparsecc.runtime.session import open_session

STORE = Path("out/benchmarks/verdicts.json")
JUDGED = (
    *("digits_resnet", "digits_vit", "digits_lstm", "resnet20", "stories", "squeezenet"),
    *("mobilenetv2", "resnet56"),
)
RATIOS = (0.1, 0.3, 0.5, 0.7)
HOW: dict[str, dict[str, Any]] = {
    "cut": {"allocator": "global", "recover": "none"},
    "repaired": {"allocator": "distortion"},
    "int8": {"quantize": "int8"},
}
GUESSING = {"stories": float(np.log(512))}
"""Nats of an answer that knows nothing: from the dense model's to these is all that can be lost."""
_WORDS = ("useless", "doubtful", "usable")
MARKS = "<!-- verdicts -->\n", "<!-- /verdicts -->\n"


@cache
def loaded(name: str) -> tuple[Pair, float]:
    """A pair and the dense model's score, read once."""
    pair = {**PAIRS, **FRESH}[name]()
    return pair, pair.accuracy(open_session(pair.model, threads=1).run)


def row(name: str, how: str, ratio: float) -> dict[str, Any]:
    """One point: what the compile told, and what its metric lost, as a share of what it was."""
    pair, before = loaded(name)
    point = {"pair": name, "how": how, "ratio": ratio}
    with tempfile.TemporaryDirectory() as folder:
        samples = {n: np.concatenate([b[n] for b in pair.samples.batches]) for n in pair.samples.batches[0]}
        np.savez(f"{folder}/calib.npz", **samples)
        options = {"ratio": ratio, "calib": f"{folder}/calib.npz", "measure": False, **HOW[how]}
        try:
            made = sparsecc.compile(pair.model, output=f"{folder}/out", **options)
        except SparseccError as e:
            return {**point, "error": str(e)}
        after = pair.accuracy(open_session(Path(f"{folder}/out/model.onnx"), threads=1).run)
    facts = made.report["fidelity"]
    lost = (before - after) / before
    if name in GUESSING:
        lost = (after - before) / (GUESSING[name] - before)
    return {
        **point,
        "worst_db": worst_quality(facts),
        "agreement": lowest_agreement(facts) if "agreement" in facts else None,
        "samples": facts["samples"],
        "answers": min((answer["number"] for answer in facts.get("agreement", ())), default=0),
        "before": before,
        "after": after,
        "lost": lost,
    }


def judged(found: dict[str, Any]) -> str:
    """The judgement of the thresholds that stand now."""
    answers = (
        []
        if found["agreement"] is None
        else [Agreement("y", "classes", found["agreement"], found["answers"])]
    )
    told = {"parts": {"y": found["worst_db"]}, "agreement": [answer.to_json() for answer in answers]}
    return use_of(told)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows, the worst told first, and how often each judgement was right."""
    known = sorted((one for one in rows if "lost" in one), key=lambda one: one["worst_db"])
    lines = [
        "| pair | what | worst part | agreement | metric | lost | said |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in known:
        what = f"{one['how']} {one['ratio']:g}"
        agreement = "" if one["agreement"] is None else f"{one['agreement']:.0%}"
        metric = f"{one['before']:.3f} → {one['after']:.3f}"
        cells = (one["pair"], what, f"{one['worst_db']:.1f} dB", agreement, metric, f"{one['lost']:.0%}")
        lines.append(f"| {' | '.join(cells)} | {judged(one)} |")
    fresh, seen = ([one for one in known if (one["pair"] in FRESH) == new] for new in (True, False))
    told = f"Metric fell by more than a tenth, by what was said: {counted(seen)}."
    if fresh:
        names = ", ".join(dict.fromkeys(one["pair"] for one in fresh))
        told += f" On {names}, which the thresholds were not chosen on: {counted(fresh)}."
    return f"{told}\n\n" + "\n".join(lines) + "\n"


def counted(rows: Sequence[dict[str, Any]]) -> str:
    """How many of those that were judged so lost more than a tenth: 'useless: 34 of 34; doubtful: 2 of 6'."""
    said = {word: [one["lost"] > 0.1 for one in rows if judged(one) == word] for word in _WORDS}
    return "; ".join(f"{word}: {sum(lost)} of {len(lost)}" for word, lost in said.items() if lost)


def main() -> None:
    """Make what is missing, or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", default=",".join(JUDGED))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--publish", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(STORE.read_text()) if STORE.exists() else []
    if given.publish:
        begin, end = MARKS
        text = given.publish.read_text()
        text = re.sub(f"{begin}.*{end}", f"{begin}{table(rows)}{end}", text, flags=re.DOTALL)
        given.publish.write_text(text)
        return
    begun, done = time.monotonic(), {(one["pair"], one["how"], one["ratio"]) for one in rows}
    STORE.parent.mkdir(parents=True, exist_ok=True)
    points = [
        (pair, how, ratio)
        for pair, how in product(given.pairs.split(","), HOW)
        for ratio in ((0.0, 0.3) if how == "int8" else RATIOS)
    ]
    for point in points:
        if time.monotonic() - begun > given.seconds:
            sys.exit("not all is done: run it again")
        if point not in done:
            rows.append(row(*point))
            print(json.dumps(rows[-1]), flush=True)
            STORE.write_text(json.dumps(rows, indent=1))
    print("all is done")


if __name__ == "__main__":
    main()

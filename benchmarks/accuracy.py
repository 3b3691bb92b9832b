"""Quality against removed work, without training: criteria x allocators x repair on real models, beside others.

    python benchmarks/accuracy.py [--pairs resnet20,...] [--methods auto:auto,...] [--ratios 0.1,0.5] [--seconds 240]
                                                      again until it says that all is done
    python benchmarks/accuracy.py --publish docs/methods.md    write its tables between the marks there

A method is `criterion:allocator` or one of `benchmarks/accuracy_peers.py`; `auto:auto` is what a compile with --calib
does by default. The default and its rivals come first, for every pair, then all other combinations. Each point is
stored as soon as it stands (out/benchmarks/accuracy.json), and stored ones are not made again; a plot is drawn
beside it. Methods in which chance plays a part run with three seeds. One thread. All pairs but
the digits models need the shared materials (SPARSECC_SHARED or ../shared).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_pairs import PAIRS, WITH_GENERAL, Pair
from benchmarks.accuracy_peers import PEERS, at_equal_work, takes
from benchmarks.accuracy_tables import MARKS, Row, compared, draw, line_of, matrices, ranked, tables
from sparsecc.allocators import ALLOCATORS, WITH_CURVES
from sparsecc.axes.algebra import Keep
from sparsecc.compilation import Compilation
from sparsecc.criteria import CRITERIA
from sparsecc.data.samples import CalibrationSet
from sparsecc.decide.channels import choose
from sparsecc.errors import SparseccError
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.layerwise import Kept, repair
from sparsecc.reconstruct.stage import kept_values
from sparsecc.runtime.session import open_session
from sparsecc.shapes.dynamic_dims import takes_any_batch
from sparsecc.system.scratch import Scratch

STORE = Path("out/benchmarks/accuracy.json")
RATIOS = (0.1, 0.2, 0.3, 0.5)
REPAIRS = ("none", "reconstruct")
TABLES = "## As cut and repaired\n\n"
"""Before the tables of docs/accuracy.md."""
RIVALS = ("auto:auto", "l2:uniform", *PEERS)
"""The default, group magnitude, and other tools."""
FOR_EXPERTS = frozenset({"expert_frequency", "expert_gate", "reap", "tcess", "camera", "stun"})
"""Criteria that are `obs` on models without experts."""
CROSSED = ("uniform", "global", "distortion")
"""Allocators that every criterion meets; the others meet `obs` alone: two of them run a model hundreds of times.

`obs` with what `auto` means is the default."""
OTHERS = tuple(
    f"{c}:{a}"
    for c, row in CRITERIA.items()
    for a in ALLOCATORS
    if c not in FOR_EXPERTS
    and not row.needs_general
    and (a in CROSSED or (c == "obs" and a != WITH_CURVES))
    and f"{c}:{a}" not in RIVALS
)
TWO_SETS = tuple(f"{c}:{a}" for c, row in CRITERIA.items() if row.needs_general for a in CROSSED)
"""Methods that compare a domain with general samples, for pairs that have both."""
DRAWN = ("taylor", "taylor2", "fisher", "snip", "grasp")
"""Criteria by the gradient of a loss, whose labels are drawn; others look at the outputs."""
CHANCE = frozenset({"random", *DRAWN, *(method.partition(":")[0] for method in TWO_SETS)})
"""Criteria that draw: noise, or labels from the model's own prediction."""
SEEDS = 3
_SCORED: dict[tuple[str, str], Row] = {}
"""What was measured of (cut, repair) already."""


@dataclass(frozen=True)
class Point:
    """One plan: what is cut from which model, how much, and by which method; repaired in each way."""

    pair: str
    ratio: float
    method: str
    seed: int
    repairs: tuple[str, ...]


def wanted(
    pairs: Sequence[str],
    methods: Sequence[str],
    ratios: Sequence[float],
    repairs: Sequence[str] = REPAIRS,
    seeds: int = SEEDS,
) -> list[Point]:
    """All points in the order in which they are worth having: rivals of the default before the rest.

    Other tools repair nothing.
    """
    found = [
        Point(pair, ratio, method, seed, ("none",) if method in PEERS else tuple(repairs))
        for group in ([m for m in methods if m in RIVALS], [m for m in methods if m not in RIVALS])
        for pair in pairs
        for ratio in ratios
        for method in group
        for seed in range(seeds if method.partition(":")[0] in CHANCE else 1)
    ]
    return [
        point
        for point in found
        if takes(point.method, point.pair) and (point.method not in TWO_SETS or point.pair in WITH_GENERAL)
    ]


@cache
def loaded(name: str) -> Pair:
    """A pair, read once."""
    return PAIRS[name]()


def rows(point: Point) -> list[Row]:
    """The scores of one point, or why it has none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            make = by_peer if point.method in PEERS else by_sparsecc
            found = make(point, Path(folder))
        except SparseccError as e:
            found = [{"repair": repair_, "reason": str(e)} for repair_ in point.repairs]
    facts = {"pair": point.pair, "ratio": point.ratio, "method": point.method, "seed": point.seed}
    return [{**facts, **row} for row in found]


def by_sparsecc(point: Point, folder: Path) -> list[Row]:
    """Choose and remove as a compile with samples does; repair the result in each way."""
    begun = time.perf_counter()
    pair = loaded(point.pair)
    criterion, _, allocator = point.method.partition(":")
    options = CompileOptions(
        ratio=point.ratio, criterion=criterion, allocator=allocator, calib="samples", seed=point.seed
    )
    compilation = compilation_of(pair, options, folder)
    analysis = compilation.begin(normalise(load_ir(pair.model)))
    groups = find_groups(analysis, prune=options.prune)
    chosen = choose(compilation, analysis, groups, point.ratio)
    kept = kept_values(analysis, chosen.keep)
    cut = _name_of(point.pair, groups, chosen.keep)
    remove(analysis, chosen.keep)
    facts = {
        "removed": round(chosen.removed, 4),
        "predicted_error": None if chosen.predicted is None else round(chosen.predicted, 4),
        "advised": chosen.advised,
        "choose_s": round(time.perf_counter() - begun, 2),
    }
    return [
        {"repair": method, **_scored(pair, analysis.model, kept, method, cut, folder), **facts}
        for method in point.repairs
    ]


def compilation_of(pair: Pair, options: CompileOptions, folder: Path) -> Compilation:
    """A compile of the pair's model with its samples."""
    general = None if pair.general is None else CalibrationSet.of(pair.general)
    whole_batches = not takes_any_batch(load_ir(pair.model))
    samples = CalibrationSet.of(*pair.samples.divided(whole_batches=whole_batches))
    return Compilation(pair.model, options, Scratch(folder), calibration=samples, general=general)


def _scored(pair: Pair, pruned: ir.Model, kept: Kept, method: str, cut: str, folder: Path) -> Row:
    """The quality of a cut model after a repair; measured once for each (cut, repair)."""
    if (cut, method) not in _SCORED:
        begun = time.perf_counter()
        model = pruned.clone()
        if method != "none":
            dense = normalise(load_ir(pair.model))
            compilation = compilation_of(pair, CompileOptions(), folder)
            repair(compilation, dense, model, kept, pair.samples, method)
        seconds = round(time.perf_counter() - begun, 2)
        runner = open_session(write(model, folder / "pruned.onnx"), threads=1)
        _SCORED[cut, method] = {"score": round(pair.accuracy(runner.run), 4), "repair_s": seconds}
    return _SCORED[cut, method]


def _name_of(pair: str, groups: Sequence[Group], keep: Keep) -> str:
    """The hash of what is left of a pair: methods that agree on that need not be measured twice."""
    digest = hashlib.sha256(pair.encode())
    for group in groups:
        slots = keep.get(group.atom)
        digest.update(b"whole" if slots is None else slots.tobytes())
    return digest.hexdigest()


def by_peer(point: Point, folder: Path) -> list[Row]:
    """Another tool at the same work, or as close as it comes."""
    begun = time.perf_counter()
    pair = loaded(point.pair)
    removed, run = at_equal_work(PEERS[point.method](point.pair, pair, folder), point.ratio)
    seconds = round(time.perf_counter() - begun, 2)
    score = round(pair.accuracy(run), 4)
    return [{"repair": "none", "score": score, "removed": round(removed, 4), "choose_s": seconds}]


def run(points: Sequence[Point], store: Path, seconds: float) -> dict[str, Any]:
    """Make the points that `store` lacks, for as long as there is time; returns all that stand."""
    stored: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {"pairs": {}, "rows": []}
    todo = _missing(points, stored["rows"])
    stored["host"] = {
        "machine": platform.machine(),
        **{name: version(name) for name in ("onnxruntime", "numpy", "onnx")},
    }
    store.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    while todo and time.monotonic() < end:
        point = todo.pop(0)
        if point.pair not in stored["pairs"]:
            pair = loaded(point.pair)
            dense = pair.accuracy(open_session(pair.model, threads=1).run)
            stored["pairs"][point.pair] = {"dense": dense, "measure": pair.measure}
        made = rows(point)
        stored["rows"] += made
        print(line_of(made), flush=True)
        whole = store.with_suffix(".part")
        whole.write_text(json.dumps(stored, indent=1))
        os.replace(whole, store)
    print(f"{len(todo)} points are left: run it again" if todo else "all is done")
    return stored


def _missing(points: Sequence[Point], stored: Sequence[Row]) -> list[Point]:
    """What is left of the points, with the repairs that are left of each."""
    done = {(row["pair"], row["ratio"], row["method"], row["seed"], row["repair"]) for row in stored}
    left = []
    for p in points:
        repairs = tuple(r for r in p.repairs if (p.pair, p.ratio, p.method, p.seed, r) not in done)
        left += [replace(p, repairs=repairs)] if repairs else []
    return left


def publish(stored: dict[str, Any], document: Path) -> None:
    """Replace what stands between the marks; every method of each pair stands in accuracy.md beside it."""
    head, _, rest = document.read_text().partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    if not tail:
        sys.exit(f"{document} lacks the marks: {' … '.join(MARKS)}")
    document.write_text(f"{head}{MARKS[0]}\n\n{compared(stored)}\n\n{ranked(stored)}\n\n{MARKS[1]}{tail}")
    every = document.parent / "accuracy.md"
    before = every.read_text().partition(TABLES)[0]
    every.write_text(f"{before}{TABLES}{matrices(stored)}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, print the tables, draw the plot, publish when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--methods", default=",".join((*RIVALS, *OTHERS, *TWO_SETS)))
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    parser.add_argument("--repairs", default=",".join(REPAIRS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path, default=STORE)
    parser.add_argument("--publish", type=Path)
    given = parser.parse_args(arguments)
    if given.publish:
        publish(json.loads(given.json.read_text()), given.publish)
        return
    ratios = [float(ratio) for ratio in given.ratios.split(",")]
    lists = [one.split(",") for one in (given.pairs, given.methods, given.repairs)]
    points = wanted(lists[0], lists[1], ratios, lists[2], given.seeds)
    stored = run(points, given.json, given.seconds)
    if stored["rows"]:
        print(tables(stored))
        if find_spec("matplotlib") is None:
            print("no plot was drawn: pip install matplotlib")
        else:
            draw(stored, given.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()

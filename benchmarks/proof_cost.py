"""What does a proof cost beside the bare comparisons with the masked dense model and of what was built?

    python benchmarks/proof_cost.py [--ratio 0.5] [--rounds 3] MODEL ...
    python benchmarks/proof_cost.py --beside CHECKOUT MODEL ...      what proves in another revision, by turns

Both are run by turns in one process on one pruned graph, in seconds of processor time with the making of the masked
model: as a compile does it, and with nothing planted, no value of a layer shown, and what was built run on the same
inputs, without its constants and other inputs. Loading what was built counts in neither. With --beside whole compiles
run by turns, in processes of their own, and the stages that only prove are added up. Exits with 1 where the medians
are more than MOST apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsecc.compilation import Compilation
from sparsecc.graph.rewrite import remove
from sparsecc.options import CompileOptions
from sparsecc.reference.layer_values import layer_values
from sparsecc.runtime.numerics import worst_error
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import DECIDING, MAKING, Work, prune, walk
from sparsecc.verify import prove
from sparsecc.verify.probes import Passed

ROOT = Path(__file__).resolve().parents[1]
MOST = 2.0
"""Times the bare comparisons that a proof may take."""
BEHIND = MAKING[1 + [stage.run for stage in MAKING].index(prune) :]


def seconds(path: Path, ratio: float, rounds: int, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Of a whole proof and of the bare one, medians: "removal" and "built"."""
    options = CompileOptions(
        ratio=ratio, target="onnx", measure=False, criterion="l2", allocator="uniform", recover="none"
    )
    work = walk(Work(Compilation(path, options, Scratch(folder)), folder), DECIDING)
    analysis, keep, probes = work.analysis, work.decision.choice.keep, work.probes
    with_layers, full = timed(lambda: probes.of_removal(analysis, keep, layer_values(analysis, keep)))
    without, bare = timed(lambda: probes.of_removal(analysis, keep))
    cuts = remove(analysis, keep)
    pairs = list[tuple[float, float]]()
    for _ in range(rounds):
        least = bare + timed(lambda: prove.prove(analysis.model, probes, without))[1]
        pairs.append(
            (
                full + timed(lambda: prove.prove(analysis.model, probes, replace(with_layers, cuts=cuts)))[1],
                least,
            )
        )
    removal = [statistics.median(one) for one in zip(*pairs, strict=True)]
    walk(work, BEHIND)
    built = [statistics.median(one) for one in zip(*(of_built(work) for _ in range(rounds)), strict=True)]
    return {"removal": removal[0], "built": built[0]}, {"removal": removal[1], "built": built[1]}


def of_built(work: Work) -> tuple[float, float]:
    """Seconds of all checks of what was built, and of a run on each probe beside the pruned graph."""
    probes, compilation = work.probes, work.compilation
    runner = probes.artefact(work.backend, work.compiled)
    model, plan = work.analysis.model, work.decision.plan
    whole = timed(lambda: probes.of_built(work.backend, work.compiled, model, plan, Passed()))[1]

    def compare() -> list[float]:
        found = [runner.run(compilation.narrowed.feeds(feeds)) for feeds in compilation.feeds]
        return [worst_error(*both) for both in zip(probes.pruned, found, strict=True)]

    return whole, timed(compare)[1]


STAGES = ("mask", "prove", "verify")
"""Of a compile, those that prove."""
CODE = """
import dataclasses, json, sys, time
from pathlib import Path
from contextlib import contextmanager
from sparsecc.compilation import Compilation
from sparsecc.options import CompileOptions
from sparsecc.tasks.compile import compile_model
seconds, announced = {}, Compilation.stage
@contextmanager
def stage(self, name, *shares):
    begun = time.process_time()
    with announced(self, name, *shares):
        yield
    seconds[name] = time.process_time() - begun
Compilation.stage = stage
asked = {"ratio": float(sys.argv[2]), "target": "onnx", "measure": False, "criterion": "l2", "allocator": "uniform"}
options = CompileOptions(**asked)
plain = options.to_request() if hasattr(options, "to_request") else dataclasses.asdict(options)
compile_model({"model": sys.argv[1], "output": sys.argv[3], "force": True, "options": plain}, lambda *e: None)
print(json.dumps(seconds))
"""


def beside(path: Path, ratio: float, rounds: int, checkout: Path) -> tuple[float, float]:
    """Seconds of what proves here and in another revision, medians."""
    found = list[list[float]]()
    for _ in range(rounds):
        found.append([])
        for root in (ROOT, checkout):
            with tempfile.TemporaryDirectory() as folder:
                told = subprocess.run(
                    [sys.executable, "-c", CODE, str(path.resolve()), str(ratio), f"{folder}/out"],
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": str(root.resolve()), "OPENBLAS_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=True,
                )
            of_stages = json.loads(told.stdout.splitlines()[-1])
            found[-1].append(sum(of_stages[name] for name in STAGES))
    here, there = (statistics.median(one) for one in zip(*found, strict=True))
    return here, there


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the processor time that it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="a checkout of another revision")
    given = parser.parse_args()
    worst = 0.0
    for path in given.models:
        if given.beside is not None:
            here, there = beside(path, given.ratio, given.rounds, given.beside)
            worst = max(worst, here / there)
            print(f"{path.name}: {here / there:.2f} times: {here:.2f} s here, {there:.2f} s there")
            continue
        with tempfile.TemporaryDirectory() as folder:
            whole, bare = seconds(path, given.ratio, given.rounds, Path(folder))
        of = sum(whole.values()) / sum(bare.values())
        worst = max(worst, of)
        print(
            f"{path.name}: {of:.2f} times: {_told(whole)}, bare {_told(bare)}",
        )
    sys.exit(worst > MOST)


def _told(found: dict[str, float]) -> str:
    return f"{found['removal']:.2f} + {found['built']:.2f} s (removal + built)"


if __name__ == "__main__":
    main()

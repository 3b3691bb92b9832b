"""What do planted faults cost beside the bare comparison with the masked dense model?

    python benchmarks/proof_cost.py [--ratio 0.5] [--rounds 3] MODEL ...

Both are run by turns in one process on one pruned graph, in seconds of processor time with the making of the masked
model: as a compile does it, and with nothing planted and no value of a layer shown. Exits with 1 where the medians are
more than MOST apart.
"""

from __future__ import annotations

import argparse
import statistics
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
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import DECIDING, Work, walk
from sparsecc.verify import prove

MOST = 2.0
"""Times the bare comparison that a proof may take."""


def seconds(path: Path, ratio: float, rounds: int, folder: Path) -> tuple[float, float]:
    """Of a proof with planted faults and without, medians."""
    options = CompileOptions(
        ratio=ratio, target="onnx", measure=False, criterion="l2", allocator="uniform", recover="none"
    )
    work = walk(Work(Compilation(path, options, Scratch(folder))), DECIDING)
    analysis, keep, probes = work.analysis, work.decision.choice.keep, work.probes
    with_layers, full = timed(lambda: probes.of_removal(analysis, keep, layer_values(analysis, keep)))
    without, bare = timed(lambda: probes.of_removal(analysis, keep))
    cuts = remove(analysis, keep)
    found: dict[str, list[float]] = {"planted": [], "bare": []}

    for _ in range(rounds):
        made = timed(lambda: prove.prove(analysis.model, probes, replace(with_layers, cuts=cuts)))
        found["planted"].append(full + made[1])
        made = timed(lambda: prove.prove(analysis.model, probes, without))
        found["bare"].append(bare + made[1])
    return statistics.median(found["planted"]), statistics.median(found["bare"])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the processor time that it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    worst = 0.0
    for path in given.models:
        with tempfile.TemporaryDirectory() as folder:
            planted, bare = seconds(path, given.ratio, given.rounds, Path(folder))
        worst = max(worst, planted / bare)
        print(
            f"{path.name}: {planted:.2f} s with planted faults, {bare:.2f} s without, {planted / bare:.2f} times"
        )
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()

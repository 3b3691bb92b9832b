"""Compile every file of the shared corpus and print, per folder, what came of it.

    python benchmarks/corpus.py [--ratio 0 0.5] [--sample 400] [--jobs 2] [--journal FILE] [NAME ...]
    python benchmarks/corpus.py --alone --ratio 0.5 --journal FILE --minutes 7

Every file must give exactly one of: a bundle that passed its own checks, or one line and an exit code that is
not ours to be ashamed of. Bugs (exit 70), crashes and time-outs (exit 5), partial output and slow files are
listed by name. A run with a journal goes on where the last one stopped. With `--alone` only files count that ONNX
Runtime runs by itself on inputs made from their types and shapes (`judges/runs_alone.py`), and each that is refused is
told with its reason. Looks for the files in SPARSECC_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from materials import shared

from sparsecc.bundle.folder import Bundle, sweep
from sparsecc.errors import SparseccError
from sparsecc.worker import Worker

DEADLINE = 60.0
MEMORY = 4 << 30
ALONE = 20.0
"""Seconds that the judge has for a file."""


@dataclass(frozen=True)
class Outcome:
    """What one compile came to: exit code 0 with a complete bundle, or another with its line."""

    file: str
    ratio: float
    exit: int
    seconds: float
    line: str = ""
    removed: float = 0.0
    error: float = 0.0
    stray: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """One of pruned, kept, refused, bug, stopped, stray."""
        if self.stray:
            return "stray"
        known = {0: "pruned" if self.removed else "kept", 1: "refused", 2: "refused", 3: "refused"}
        return known.get(self.exit, "stopped" if self.exit == 5 else "bug")


KINDS = ("pruned", "kept", "refused", "bug", "stopped", "stray")


def compiled(worker: Worker, path: Path, name: str, ratio: float, folder: Path) -> Outcome:
    """Compile one file in a warm worker and look at what lies in the output folder afterwards."""
    begun = time.perf_counter()
    out = folder / "out"
    request = {
        "model": str(path),
        "output": str(out),
        "force": True,
        "options": {"ratio": ratio, "measure": False},
    }
    try:
        made = worker.run("sparsecc.tasks.compile:compile_model", request, deadline=DEADLINE)
    except SparseccError as e:
        seconds = time.perf_counter() - begun
        if e.exit_code == 5:
            sweep(out)  # as `sparsecc.compile` does: what the killed worker had begun
        stray = tuple(p.name for p in folder.iterdir())
        return Outcome(name, ratio, e.exit_code, seconds, str(e), stray=stray)
    seconds = time.perf_counter() - begun
    stray = tuple(Bundle.open(out).verify_manifest())
    report = made["report"]
    error = float(report["verification"]["max_relative_error"])
    return Outcome(name, ratio, 0, seconds, "", report["removed"]["share"], error, stray)


class Judge:
    """Whether ONNX Runtime runs files by itself: a process that is started again where a file ends it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        here = Path(__file__).resolve().parent / "judges" / "runs_alone.py"
        how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, str(here)], text=True, **how)

    def runs(self, path: Path) -> bool:
        """Whether it runs, within ALONE seconds."""
        timer = threading.Timer(ALONE, self.process.kill)
        timer.start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(path, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        timer.cancel()
        if not answer:
            self.process.kill()
            self._start()
        return bool(answer) and not answer.startswith("-")

    def close(self) -> None:
        self.process.kill()


def run(
    root: Path, files: Sequence[Path], ratios: Sequence[float], jobs: int, end: float
) -> Iterator[Outcome]:
    """All outcomes as they come, from `jobs` threads with a worker each; none is begun after `end` (monotonic)."""
    waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
    for path in [*files, *[None] * jobs]:
        waiting.put(path)

    def serve() -> None:
        with Worker(memory=MEMORY, write=[Path(tempfile.gettempdir())]) as worker:
            while (path := waiting.get()) is not None and time.monotonic() < end:
                for ratio in ratios:
                    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
                        name = path.relative_to(root).as_posix()
                        done.put(compiled(worker, path, name, ratio, Path(folder)))
        done.put(None)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    running = jobs
    while running:
        outcome = done.get()
        if outcome is None:
            running -= 1
        else:
            yield outcome


def alone(files: Sequence[Path], known: Path) -> list[Path]:
    """The files that ONNX Runtime runs by itself; the answers are kept in `known`."""
    answers = json.loads(known.read_text()) if known.exists() else {}
    judge = Judge()
    for path in files:
        if str(path) not in answers:
            answers[str(path)] = judge.runs(path)
    judge.close()
    known.write_text(json.dumps(answers))
    return [path for path in files if answers[str(path)]]


def sample(root: Path, files: list[Path], number: int) -> list[Path]:
    """A share of every folder, at least ten files of each, the same ones every time."""
    by_folder: dict[str, list[Path]] = {}
    for path in files:
        by_folder.setdefault(path.relative_to(root).parts[0], []).append(path)
    chosen = []
    for paths in by_folder.values():
        share = max(10, number * len(paths) // len(files))
        chosen += random.Random(0).sample(paths, min(share, len(paths)))
    return sorted(chosen)


_NAMES = re.compile(r"'[^']*'|\S*/\S+|\b[\w.]*\d[\w.]*\b")


def reason(line: str) -> str:
    """A line without its names and numbers, to count lines of one kind."""
    return _NAMES.sub("…", line.rpartition(".onnx: ")[2])[:110]


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts per folder and ratio."""
    rows = [
        f"{'folder':16s} {'ratio':>5s} {'files':>6s} "
        + " ".join(f"{k:>8s}" for k in KINDS)
        + "  p50 s   max s"
    ]
    places = sorted({(o.file.split("/")[0], o.ratio) for o in outcomes})
    for place, ratio in [*places, *(("all", r) for r in sorted({o.ratio for o in outcomes}))]:
        own = [o for o in outcomes if o.ratio == ratio and place in ("all", o.file.split("/")[0])]
        kinds = Counter(o.kind for o in own)
        seconds = [o.seconds for o in own]
        counts = " ".join(f"{kinds[k]:8d}" for k in KINDS)
        times = f"{statistics.median(seconds):6.2f} {max(seconds):7.2f}"
        rows.append(f"{place:16s} {ratio:5g} {len(own):6d} {counts} {times}")
    return "\n".join(rows)


def journalled(path: Path | None) -> list[Outcome]:
    """What earlier runs wrote."""
    if path is None or not path.exists():
        return []
    rows = map(json.loads, path.read_text().splitlines())
    return [Outcome(**{**row, "stray": tuple(row["stray"])}) for row in rows]


def reasons(outcomes: Sequence[Outcome], *kinds: str) -> str:
    """The lines of these kinds, counted, with an example each."""
    found = Counter((o.kind, o.exit, reason(o.line)) for o in outcomes if o.kind in kinds)
    example = {(o.kind, o.exit, reason(o.line)): o.file for o in outcomes}
    return "\n".join(f"{n:5d} {k[0]} {k[1]} {k[2]}   ({example[k]})" for k, n in found.most_common())


def main() -> None:
    """Run, print the tables, fail where there was a bug."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--sample", type=int, help="about so many files, some of every folder")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--journal", type=Path, help="outcomes line by line; those in it are not run again")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after these, to go on by the journal"
    )
    parser.add_argument("--alone", action="store_true", help="only files that ONNX Runtime runs by itself")
    parser.add_argument("--list", type=Path, help="run the files named in this list only")
    parser.add_argument("names", nargs="*", help="only files whose path has one of these in it")
    given = parser.parse_args()
    root = shared() / "corpus"
    files = sorted(root.rglob("*.onnx"))
    if not files:
        sys.exit(f"no corpus under {root}: set SPARSECC_SHARED")
    if given.names:
        files = [f for f in files if any(n in f.as_posix() for n in given.names)]
    if given.list:
        files = [root / line for line in given.list.read_text().split()]
    if given.sample:
        files = sample(root, files, given.sample)
    if given.alone:
        files = alone(files, (given.journal or Path("corpus")).with_suffix(".alone.json"))
    outcomes, end = journalled(given.journal), time.monotonic() + 60 * given.minutes
    done = {outcome.file for outcome in outcomes}
    files = [f for f in files if f.relative_to(root).as_posix() not in done]
    for outcome in run(root, files, given.ratio, given.jobs, end):
        outcomes.append(outcome)
        if given.journal:
            with given.journal.open("a") as journal:
                print(json.dumps(asdict(outcome)), file=journal)
        if outcome.kind in ("bug", "stopped", "stray"):
            print(
                f"{outcome.kind} {outcome.exit} {outcome.file} ratio {outcome.ratio:g}: {outcome.line[:300]}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    print(table(outcomes))
    print(reasons(outcomes, *KINDS[2:]))
    if given.alone:
        kept_out = [o for o in outcomes if o.kind not in ("pruned", "kept")]
        print(*(f"{o.kind} {o.file}: {o.line}" for o in kept_out), sep="\n")
        print(f"{len(kept_out)} of {len(outcomes)} that run by themselves are refused")
    slow = sorted((o for o in outcomes if o.seconds > 5), key=lambda o: -o.seconds)
    print(*(f"slow {o.seconds:.1f} s {o.file} ratio {o.ratio:g}" for o in slow[:20]), sep="\n")
    sys.exit(any(o.kind in ("bug", "stopped", "stray") for o in outcomes))


if __name__ == "__main__":
    main()

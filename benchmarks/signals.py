"""Random signals at random moments: nothing torn, nothing left here or on a board, no orphan after a second.

    python benchmarks/signals.py [--number 500] [--seconds 3000] [--json FILE]

INT, TERM, HUP and KILL go to a command, to its worker, or to its whole process group, while it compiles (with and
without measuring), profiles, searches, or compiles and measures on a board (an sshd on this machine, with a home and a
temporary folder of its own). The moment is drawn from the whole of a run. After each, no process of it is alive a
second later, here or on the board; its exit code is one of the table; it said at most one line, and the truth about
what it had written; and the output is whole or absent. A Ctrl-C before Python has come to our code is answered by
Python itself. After every 25 an untouched run of each command must succeed and sweep whatever was left. Counts are
added up in the JSON file: a run may be ended and gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsecc.bundle.folder import Bundle
from sparsecc.errors import EXIT_CODES
from tests.sshd import Server, running_sshd

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("compile", "measured", "profile", "search", "board")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL")
VICTIMS = ("parent", "child", "group")
ROUND = 25
"""Signals between two runs that must succeed."""
ORPHAN_SECONDS = 1.0
MARK = "SPARSECC_SIGNALS"
"""In the environment of every process here and on the board that belongs to this benchmark."""


class Ground:
    """Where the victims work, and what must be found there."""

    def __init__(self, place: Path, server: Server, home: Path) -> None:
        self.place, self.temporary, self.board = place / "place", place / "tmp", server.folder
        for folder in (self.place, self.temporary, place / "cache"):
            folder.mkdir()
        self.mark = f"{MARK}={place}"
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(place / "cache"),
            "XDG_STATE_HOME": str(place / "state"),
            MARK: str(place),
        }
        self.model = self.place / "tiny.onnx"
        save_tiny(self.model)
        self.seconds = {kind: self.undisturbed(kind) for kind in KINDS}

    @property
    def out(self) -> Path:
        return self.place / "out"

    def command(self, kind: str) -> list[str]:
        start, model = [sys.executable, "-m", "sparsecc"], str(self.model)
        if kind == "profile":
            return [*start, "profile", model, "-q"]
        if kind == "search":
            ratios = ["--ratios", "0.2,0.5", "--rounds", "0", "--jobs", "2"]
            return [*start, "search", model, *ratios, "--no-measure", "-q", "-o", str(self.place / "front")]
        output = [*start, "compile", model, "--ratio", "0.3", "--force", "-q", "-o", str(self.out)]
        more = {"compile": ["--no-measure"], "board": ["--device", f"ssh://board?python={sys.executable}"]}
        return [*output, *more.get(kind, [])]

    def start(self, kind: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(kind), env=self.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=answer_signals,
        )  # fmt: skip

    def undisturbed(self, kind: str) -> float:
        """Run as a user would; seconds. It must succeed."""
        if kind == "search":
            shutil.rmtree(self.place / "front", ignore_errors=True)
        begun = time.perf_counter()
        with self.start(kind) as run:
            _, said = run.communicate()
        assert run.returncode == 0, f"an untouched {kind} ended with {run.returncode}: {said}"
        return time.perf_counter() - begun

    def require_clean(self) -> None:
        """The next commands succeed, and nothing is left of those that were ended."""
        for kind in KINDS:
            self.undisturbed(kind)
        assert Bundle.open(self.out).verify_manifest() == []
        beside = {path.name for path in self.place.iterdir()} - {"out", "front", "tiny.onnx"}
        assert not beside, f"left beside the output: {beside}"
        search = {path.name for path in (self.place / "front").iterdir()}
        assert search == {"points", "points.jsonl", "front.json", "front.html"}, search
        left = [path.name for path in self.temporary.iterdir()]
        assert not left, f"left in the temporary folder: {left}"
        left = [path.name for path in self.board.iterdir() if "sparsecc" in path.name]
        assert not left, f"left on the board: {left}"
        assert not list(self.alive()), f"still running: {list(self.alive())}"

    def alive(self) -> Iterator[str]:
        """Processes of ours: those with the mark, here and in the sessions of the board."""
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield (
                        (folder / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")[-200:]
                        .decode("utf-8", "replace")
                    )
            except OSError:
                continue

    def require_no_orphan(self, what: str) -> None:
        end = time.monotonic() + ORPHAN_SECONDS
        while (left := list(self.alive())) and time.monotonic() < end:
            time.sleep(0.02)
        assert not left, f"{what}: alive a second later: {left}"


OURS = re.compile(r"/sparsecc/(\S+?)\"")
FIRST = {"__init__.py", "__main__.py"}
"""Files of ours in a traceback that Python itself printed before the first of our handlers stood."""


def answer_signals() -> None:
    """As in a terminal: shells let what they start in the background ignore Ctrl-C, and `nohup` HUP."""
    for name in SIGNALS[:-1]:
        signal.signal(signal.Signals[name], signal.SIG_DFL)


def save_tiny(path: Path) -> None:
    """Two products with a Relu between: 64 channels to choose from, a few milliseconds of every stage."""
    draw = np.random.default_rng(0)
    weights = {"w": (16, 64), "v": (64, 8)}
    constants = [
        numpy_helper.from_array(draw.normal(size=s).astype(np.float32), n) for n, s in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    first = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])
    last = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])
    graph = helper.make_graph(nodes, "tiny", [first], [last], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def hit(ground: Ground, kind: str, name: str, victim: str, moment: float) -> str:
    """One signal at one moment; what came of it."""
    what = f"{kind}, {name} to the {victim} after {moment:.2f} of its time"
    before, begun = state(ground), time.perf_counter()
    with ground.start(kind) as run:
        time.sleep(moment * ground.seconds[kind])
        arrived = send(run, signal.Signals[name], victim)
        _, said = run.communicate()
        seconds = time.perf_counter() - begun
        ground.require_no_orphan(what)
    code, lines = run.returncode, said.splitlines()
    assert (code in EXIT_CODES and code != 70) or code == -signal.Signals[name], f"{what}: {code}: {said}"
    if lines and lines[-1] == "KeyboardInterrupt" and set(OURS.findall(said)) <= FIRST:
        return "ended by Python before our code"
    require_true(ground, kind, lines, before, what)
    if not arrived or code == 0:
        ground.seconds[kind] = min(ground.seconds[kind], seconds)
        return "had finished"
    return "ended at once" if code < 0 else f"exit code {code}"


def require_true(ground: Ground, kind: str, lines: list[str], before: int | None, what: str) -> None:
    """At most one line, which tells whether the bundle was written."""
    after = state(ground)
    assert len(lines) <= 1, f"{what}: {lines}"
    if kind in ("compile", "measured", "board") and lines:
        if "nothing was written" in lines[0]:
            assert after == before, f"{what}: {lines}"
        if "was already written" in lines[0]:
            assert after != before, f"{what}: {lines}"


def state(ground: Ground) -> int | None:
    """The inode of the bundle, which must be whole; None where there is none."""
    if not ground.out.exists():
        return None
    assert Bundle.open(ground.out).verify_manifest() == []
    return ground.out.stat().st_ino


def send(run: subprocess.Popen[str], number: signal.Signals, victim: str) -> bool:
    """Whether there was one to send it to; a worker that has not started is waited for."""
    try:
        if victim == "parent":
            run.send_signal(number)
        elif victim == "group":
            os.killpg(run.pid, number)
        else:
            os.kill(_child(run), number)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return run.returncode is None


def _child(run: subprocess.Popen[str]) -> int:
    """The youngest child. ProcessLookupError where the command ended without another."""
    while run.poll() is None:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        if children:
            return int(children[-1])
        time.sleep(0.01)
    raise ProcessLookupError


def main() -> None:
    """Signals until the number or the time is reached; an assertion ends the run at the first fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "benchmarks" / "signals.json")
    given = parser.parse_args()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    counts = Counter(json.loads(given.json.read_text()) if given.json.exists() else {})
    for found in results(given.number, given.seconds, counts):
        counts += found
        given.json.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    for name, number in sorted(counts.items()):
        print(f"{name:40s} {number:6d}")


def results(number: int, seconds: float, done: Mapping[str, int]) -> Iterator[Counter[str]]:
    """What came of each signal and of each look at what was left, until so many signals were sent in all."""
    end, sent = time.monotonic() + seconds, done.get("signals", 0)
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        place = Path(folder)
        (place / "sshd").mkdir()
        with running_sshd(place / "sshd", {MARK: str(place)}) as server:
            ground = Ground(place, server, server.home(place / "home"))
            chance = random.Random(sent)
            while sent < number and time.monotonic() < end:
                kind, name, victim = (chance.choice(names) for names in (KINDS, SIGNALS, VICTIMS))
                came = hit(ground, kind, name, victim, chance.random())
                yield Counter({"signals": 1, f"{kind}, {name} to {victim}: {came}": 1})
                sent += 1
                if sent % ROUND == 0:
                    ground.require_clean()
                    yield Counter({"clean afterwards": 1})
            ground.require_clean()
            yield Counter({"clean afterwards": 1})


if __name__ == "__main__":
    main()

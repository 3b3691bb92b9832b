"""Kill compiles and cache writes at random moments; afterwards every output folder is a whole bundle or absent.

    python benchmarks/kills.py [--number 500] [--seconds 240] [--json FILE]

Three kinds take turns: `command` kills the command line and every process it started; `compile` kills a process
that is in the middle of the compile itself; `cache` kills one that fills and reads a cache others use. After
each kill the output is held against its manifest and the cache read back whole; after every 25 the next compile
must succeed, be equal to the first, and sweep what was left. Counts are added up in the JSON file, so that a
run may be ended and gone on with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sparsecc.bundle.folder import Bundle
from sparsecc.system.cache import Cache
from sparsecc.system.temp_folders import locked_folder
from sparsecc.tasks.compile import compile_model

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "digits_resnet.onnx"
OPTIONS = {"ratio": 0.3, "measure": False}
ROUND = 25
"""Kills between two compiles that must succeed."""
KEYS = 12
FINISHED = "finished before it was killed"


class Ground:
    """Where the victims work, and what must be found there."""

    def __init__(self, place: Path) -> None:
        self.place, self.temporary = place / "place", place / "tmp"
        self.cache = place / "cache"
        for folder in (self.place, self.temporary, self.cache):
            folder.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(self.cache)
        tempfile.tempdir = str(self.temporary)
        begun = time.perf_counter()
        self.sound = self.compiled("first")
        self.seconds = time.perf_counter() - begun

    @property
    def out(self) -> Path:
        return self.place / "out"

    def compiled(self, name: str) -> dict[str, str]:
        """Compile as a user would, and give the hash of every file that is not measured."""
        output = ["-o", str(self.place / name), "--force", "--quiet", "--no-measure"]
        done = subprocess.run([*_command(), *output], env=self.environment(), cwd=ROOT, check=False)
        assert done.returncode == 0, f"the next compile ended with {done.returncode}"
        bundle = Bundle.open(self.place / name)
        assert bundle.verify_manifest() == []
        return {file: fact["sha256"] for file, fact in bundle.manifest["files"].items()}

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary)}

    def prepare(self, old_bundle: bool) -> None:
        """An older bundle to replace, or none."""
        shutil.rmtree(self.out, ignore_errors=True)
        if old_bundle:
            shutil.copytree(self.place / "first", self.out)

    def state(self) -> str:
        """`complete` or `absent`; anything else is what this benchmark looks for."""
        if not self.out.exists():
            return "absent"
        problems = Bundle.open(self.out).verify_manifest()
        assert not problems, problems
        return "complete"

    def require_next(self) -> None:
        """The next compile succeeds, gives the same bytes, and nothing is left of the killed ones."""
        time.sleep(0.3)  # a worker dies with its parent; the system needs a moment for that
        assert self.compiled("out") == self.sound
        left = [path.name for path in self.place.iterdir() if path.name not in ("out", "first")]
        assert not left, f"left beside the output: {left}"
        left = [path.name for path in self.temporary.iterdir()]
        assert not left, f"left in the temporary folder: {left}"
        shutil.rmtree(self.out)


def _command() -> list[str]:
    return [sys.executable, "-m", "sparsecc", "compile", str(MODEL), "--ratio", str(OPTIONS["ratio"])]


def kill_command(ground: Ground, moment: float) -> str:
    """The command line in a process of its own, killed with everything it started."""
    output = ["-o", str(ground.out), "--force", "--quiet", "--no-measure"]
    process = subprocess.Popen([*_command(), *output], env=ground.environment(), cwd=ROOT)
    time.sleep(0.3 + moment * ground.seconds)
    for pid in [process.pid, *_descendants(process.pid)]:
        _kill(pid)
    return ended(process.wait(), ground)


def kill_compile(ground: Ground, moment: float) -> str:
    """The compile itself, in a fork of this process that has everything loaded."""
    request = {"model": str(MODEL), "output": str(ground.out), "force": True, "options": OPTIONS}

    def work() -> None:
        scratch, _ = locked_folder(ground.temporary, "worker")  # as a worker has one
        tempfile.tempdir = str(scratch)
        compile_model(request, lambda event: None)

    return _killed(ground, moment * 0.25 * ground.seconds, work)


def kill_cache(ground: Ground, moment: float) -> str:
    """A writer and reader of a small cache, in which things make room for each other."""
    _killed(ground, moment * 0.15, lambda: _use_cache(ground.cache))  # which never ends by itself
    store = _small_cache(ground.cache)
    found = [store.get(str(key)) for key in range(KEYS)]
    assert all(value in (None, _value(key)) for key, value in enumerate(found))
    store.put("after", b"the next write succeeds")
    assert store.get("after") == b"the next write succeeds"
    return "filled" if any(found) else "empty"


def _use_cache(folder: Path) -> None:
    store = _small_cache(folder)
    for number in range(10**9):
        key = number % KEYS
        assert store.get(str(key)) in (None, _value(key))
        store.put(str(key), _value(key))


def _small_cache(folder: Path) -> Cache:
    return Cache(folder / "small", limit=(KEYS - 3) * 65_000)


def _value(key: int) -> bytes:
    return hashlib.sha256(str(key).encode()).digest() * 2000


def _killed(ground: Ground, seconds: float, work: Callable[[], object]) -> str:
    """Do the work in a fork and kill that after so many seconds."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    time.sleep(seconds)
    _kill(pid)
    return ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), ground)


def ended(status: int, ground: Ground) -> str:
    """What the output is now, of a victim that ended so."""
    assert status in (0, -signal.SIGKILL), f"ended with {status} before it was killed"
    return ground.state() if status else FINISHED


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [*found, *(grandchild for child in found for grandchild in _descendants(child))]


KINDS: dict[str, Callable[[Ground, float], str]] = {
    "command": kill_command,
    "compile": kill_compile,
    "cache": kill_cache,
}
TURNS = ("command", *("compile", "compile", "cache") * 3)


def main() -> None:
    """Kill until the number or the time is reached; an assertion ends the run at the first fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=500, help="kills of compiles; cache writes come on top")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "benchmarks" / "kills.json")
    given = parser.parse_args()
    counts: Counter[str] = Counter(json.loads(given.json.read_text()) if given.json.exists() else {})
    given.json.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        ground = Ground(Path(place))
        while _compiles(counts) < given.number and time.monotonic() < end:
            kills = Counter(_round(ground, random.Random(counts.total())))
            ground.require_next()
            counts += kills + Counter({"next compile succeeded": 1})
            given.json.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    for name, number in sorted(counts.items()):
        print(f"{name:24s} {number:6d}")


def _round(ground: Ground, chance: random.Random) -> list[str]:
    found = []
    for number in range(ROUND):
        ground.prepare(old_bundle=chance.random() < 0.5)
        kind = TURNS[number % len(TURNS)]
        found.append(f"{kind}: {KINDS[kind](ground, chance.random())}")
    return found


def _compiles(counts: Counter[str]) -> int:
    kills = {n: k for n, k in counts.items() if n.startswith(("command:", "compile:")) and FINISHED not in n}
    return sum(kills.values())


if __name__ == "__main__":
    main()

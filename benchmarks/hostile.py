"""Compile every hostile file of the shared materials and print what came of it, with time and memory.

    python benchmarks/hostile.py [--json FILE] [NAME ...]

A case must be refused or accepted as `expect.json` says, in under 60 s within 4 GiB, and leave nothing but a
complete bundle. Looks for the files in SPARSECC_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from materials import shared

import sparsecc
from sparsecc.bundle import Bundle
from sparsecc.errors import SparseccError
from sparsecc.text import escape

SECONDS = 60.0
MEMORY = 4 << 30


@dataclass(frozen=True)
class Case:
    """One folder of hostile/: what is wanted of it and what came; `faults` is empty when all is well."""

    name: str
    wanted: str
    exit: int
    seconds: float
    line: str
    faults: tuple[str, ...]


def cases(root: Path, names: list[str]) -> Iterator[Case]:
    """Every case, or those whose name has one of `names` in it."""
    for name, wanted in sorted(json.loads((root / "expect.json").read_text()).items()):
        if not names or any(part in name for part in names):
            yield tried(root / name, wanted)


def tried(folder: Path, wanted: str) -> Case:
    """Compile the model of one case at ratio 0.5 and look for everything that must not happen."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hostile-") as place:
        out = Path(place) / "out"
        code, line = compiled(model_in(folder), out)
        seconds = time.perf_counter() - begun
        faults = tuple(_faults(wanted, code, line, seconds, Path(place)))
    return Case(folder.name, wanted, code, seconds, line, faults)


def compiled(path: Path, out: Path) -> tuple[int, str]:
    """The exit code and the line of a compile, its deadlines as they are by default."""
    try:
        sparsecc.compile(path, output=out, ratio=0.5, measure=False, memory=MEMORY)
    except SparseccError as e:
        return e.exit_code, str(e)
    return 0, ""


def model_in(folder: Path) -> Path:
    """The file of a case that is to be compiled."""
    found = sorted(folder.glob("*.onnx")) or sorted(p for p in folder.iterdir() if p.is_file())
    return found[0]


def _faults(wanted: str, code: int, line: str, seconds: float, place: Path) -> Iterator[str]:
    if code not in (0, 2, 5):
        yield f"exit code {code}"
    if wanted == "refuse" and code == 0:
        yield "accepted"
    if wanted == "accept" and code != 0:
        yield "refused"
    if seconds > SECONDS:
        yield f"{seconds:.0f} s"
    if line != escape(line):
        yield "a message of several lines or with control characters"
    left = sorted(p.name for p in place.iterdir())
    if left != (["out"] if code == 0 else []):
        yield f"left {left}"
    if code == 0:
        yield from Bundle.open(place / "out").verify_manifest()


def main() -> None:
    """Print one line per case; exit 1 where one is at fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    root = shared() / "hostile"
    if not root.is_dir():
        sys.exit(f"no hostile files under {root}: set SPARSECC_SHARED")
    found = []
    for case in cases(root, given.names):
        found.append(case)
        verdict = "; ".join(case.faults) or "ok"
        facts = f"{case.name:24s} {case.wanted:7s} {case.exit:3d} {case.seconds:5.1f} s"
        print(f"{facts} {verdict}: {case.line[:110]}", flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(c) for c in found], indent=1))
    bad = [c for c in found if c.faults]
    print(f"{len(found) - len(bad)} of {len(found)} as they must be")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

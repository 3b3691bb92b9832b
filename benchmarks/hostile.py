"""Compile every hostile file of the shared materials and print what came of it, with time, memory and containment.

    python benchmarks/hostile.py [--json FILE] [--again] [NAME ...]

A case must be refused or accepted as `expect.json` says, in under 60 s and 4 GiB of resident memory, open no file
outside the model's folder, its own places and the installation, and leave nothing but a complete bundle. Every
case runs the command line under strace (where that is installed). Cases that the JSON file has are not run again
without --again. Looks for the files in SPARSECC_SHARED or ../shared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from materials import shared

from sparsecc.bundle.folder import Bundle
from sparsecc.escaping import escape

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60.0
MEMORY = 4 << 30
SYSTEM = (
    *("/usr/lib", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"),
    *(
        "/etc/localtime",
        "/etc/locale.alias",
        "/etc/ssl/openssl.cnf",
        "/.dockerenv",
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
        "/dev/shm",
    ),
)
"""What libraries open of the system: code, and facts about the machine; no file of the user."""
OPENED = re.compile(r"= \d+<(/[^>]*)>$", re.MULTILINE)
"""How strace -y shows the file that a call opened, links resolved."""


@dataclass(frozen=True)
class Case:
    """One folder of hostile/: what is wanted of it and what came; `faults` is empty when all is well."""

    name: str
    wanted: str
    exit: int
    seconds: float
    resident: int
    opened: int
    line: str
    faults: tuple[str, ...]


def tried(folder: Path, wanted: str) -> Case:
    """Compile the model of one case at ratio 0.5 and look for everything that must not happen."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        place = Path(name).resolve()
        for inner in ("made", "home", "tmp"):
            (place / inner).mkdir()
        code, line, seconds, resident = compiled(model_in(folder), place)
        trace = place / "trace"
        opened = set(OPENED.findall(trace.read_text("utf-8", "replace"))) if trace.exists() else set()
        faults = [*_faults(wanted, code, line, place), *_outside(opened, folder, place)]
        faults += [f"{seconds:.0f} s"] if seconds > SECONDS else []
        faults += [f"{resident >> 20} MiB"] if resident > MEMORY else []
    return Case(folder.name, wanted, code, seconds, resident, len(opened), line, tuple(faults))


def compiled(path: Path, place: Path) -> tuple[int, str, float, int]:
    """Exit code, last line, seconds, and the largest resident memory of any process of a compile."""
    trace = ["strace", "-f", "-qq", "-y", "-e", "trace=open,openat,openat2,creat", "-o", str(place / "trace")]
    output = ["-o", str(place / "made" / "out"), "--quiet", "--no-measure"]
    command = [sys.executable, "-m", "sparsecc", "compile", str(path), "--ratio", "0.5", *output]
    places = {"HOME": place / "home", "TMPDIR": place / "tmp"}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*(trace if shutil.which("strace") else []), *command, "--memory-limit", "4GiB"],
        env={**_own_environment(), **{k: str(v) for k, v in places.items()}},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    timer = threading.Timer(3 * SECONDS, os.killpg, (process.pid, 9))
    timer.start()
    assert process.stderr is not None
    said = process.stderr.read().decode("utf-8", "replace")
    _, status, used = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, said.rstrip("\n"), time.perf_counter() - begun, used.ru_maxrss << 10


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}


def model_in(folder: Path) -> Path:
    """The file of a case that is to be compiled."""
    whole = folder / "model.onnx"
    return whole if whole.is_file() else min(p for p in folder.iterdir() if p.is_file())


def _outside(opened: set[str], folder: Path, place: Path) -> Iterator[str]:
    """Files that were opened and are none of the model's, of this run's places, or of the installation."""
    ours = (folder.resolve(), place, ROOT, Path(sys.prefix), Path(sys.base_prefix).resolve())
    allowed = (*map(str, ours), *SYSTEM)
    for path in sorted(opened):
        name = os.path.normpath(path)
        if not any(name == one or name.startswith(one + "/") for one in allowed):
            yield f"opened {name}"


def _faults(wanted: str, code: int, line: str, place: Path) -> Iterator[str]:
    is_short = code == 1 and " is written, but only " in line  # of the ratio: the bundle is there
    if code not in (0, 2, 5) and not is_short:
        yield f"exit code {code}"
    if wanted == "refuse" and (code == 0 or is_short):
        yield "accepted"
    if wanted == "accept" and code != 0 and not is_short:
        yield "refused"
    if line != escape(line):
        yield "a message of several lines or with control characters"
    left = sorted(p.name for p in (place / "made").iterdir())
    if left != (["out"] if code == 0 or is_short else []):
        yield f"left {left}"
    if any((place / "tmp").iterdir()):
        yield "left temporary files"
    if code == 0 or is_short:
        yield from Bundle.open(place / "made" / "out").verify_manifest()


def main() -> None:
    """Print one line per case; exit 1 where one is at fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "benchmarks" / "hostile.json")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    root = shared() / "hostile"
    if not root.is_dir():
        sys.exit(f"no hostile files under {root}: set SPARSECC_SHARED")
    found = json.loads(given.json.read_text()) if given.json.exists() and not given.again else {}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for name, wanted in sorted(json.loads((root / "expect.json").read_text()).items()):
        if name not in found and (not given.names or any(part in name for part in given.names)):
            found[name] = asdict(tried(root / name, wanted))
            given.json.write_text(json.dumps(found, indent=1))
            print(_row(found[name]), flush=True)
    bad = [case for case in found.values() if case["faults"]]
    print(f"{len(found) - len(bad)} of {len(found)} as they must be, {_summary(list(found.values()))}")
    sys.exit(bool(bad))


def _row(case: dict[str, object]) -> str:
    faults = case["faults"]
    verdict = "; ".join(map(str, faults)) if isinstance(faults, list | tuple) and faults else "ok"
    memory = int(str(case["resident"])) >> 20
    facts = f"{case['name']:24} {case['wanted']:7} {case['exit']:3} {case['seconds']:5.1f} s {memory:5d} MiB"
    return f"{facts} {verdict}: {str(case['line'])[:110]}"


def _summary(cases: list[dict[str, float]]) -> str:
    slowest = max((case["seconds"] for case in cases), default=0)
    largest = int(max((case["resident"] for case in cases), default=0)) >> 20
    codes = {code: sum(case["exit"] == code for case in cases) for code in (0, 2, 5)}
    untraced = sum(not case["opened"] for case in cases)
    trace = f"; {untraced} not traced" if untraced else ""
    ends = f"{codes[0]} compiled, {codes[2]} refused, {codes[5]} stopped"
    return f"{ends}; slowest {slowest:.1f} s, largest {largest} MiB{trace}"


if __name__ == "__main__":
    main()

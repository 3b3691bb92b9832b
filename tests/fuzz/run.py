"""Coverage-guided fuzzing with atheris (`pip install atheris`), one target at a time or all in turn:

python -m tests.fuzz.run [loader recipe bundle plan axes] [--seconds 60] [--json FILE]

What is executed is counted and added up in the JSON file. The corpus is kept under out/fuzz/, and an input that
fails under tests/fuzz/found/, where `pytest tests/test_fuzz.py` tries it ever after.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "tests" / "fuzz" / "found"
LONGEST = 4096
"""Bytes of one input."""


def run(name: str, seconds: float) -> dict[str, Any]:
    """Fuzz one target in a process of its own; how many inputs it executed, and what it found."""
    corpus, found = ROOT / "out" / "fuzz" / name, FOUND / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    options = [f"-max_total_time={seconds:.0f}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=4096"]
    command = [sys.executable, "-m", "tests.fuzz.run", "--child", name, *options]
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        paths = [f"-artifact_prefix={found}/", "-print_final_stats=1", str(corpus)]
        done = subprocess.run([*command, *paths], cwd=ROOT, stderr=log, stdout=log)
        log.seek(0)
        text = log.read()
    executed = [int(n) for n in re.findall(r"^(?:stat::number_of_executed_units:|#)\s*(\d+)", text, re.M)]
    new = sorted(path.name for path in set(found.iterdir()) - before)
    if done.returncode:
        print(text[-4000:], file=sys.stderr)
    return {"executions": max(executed, default=0), "seconds": time.monotonic() - begun, "found": new}


def child(name: str, arguments: list[str]) -> None:
    """What runs in that process."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with atheris.instrument_imports(include=["sparsecc"]):
        from tests.fuzz.seeds import SEEDS
        from tests.fuzz.targets import TARGETS
    corpus = Path(arguments[-1])
    for number, seed in enumerate(SEEDS[name]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def added(path: Path, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The totals in the file with these results added; written back."""
    totals: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, result in results.items():
        old = totals.get(name, {"executions": 0, "seconds": 0.0, "found": []})
        totals[name] = {key: old[key] + result[key] for key in old}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
    return totals


def main() -> None:
    """Fuzz the targets that are named, or all; exit 1 when something was found."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "fuzz" / "executions.json")
    given = parser.parse_args()
    wrong = False
    for name in given.targets or sorted(TARGETS):
        result = run(name, given.seconds)
        total = added(given.json, {name: result})[name]["executions"]
        wrong |= bool(result["found"])
        facts = f"{result['executions']:9d} executions in {result['seconds']:4.0f} s, {total:10d} in all"
        print(f"{name:8s} {facts}; found: {', '.join(result['found']) or 'nothing'}", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()

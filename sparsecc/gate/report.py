"""What a gate shows: text, Markdown for pull requests, JUnit XML for CI, a history file and its trend."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sparsecc.errors import InputError, SystemFailureError

_NUMBERS = ("change", "low", "high", "baseline_ms", "current_ms")
"""What a timed run records."""
_SIDES = (("baseline", "before"), ("current", "after"))
_SIGNS = {"OK": "pass", "REGRESSION": "FAIL", "INCONCLUSIVE": "????"}


Result = Mapping[str, Any]
"""What a gate found, as `GateResult.to_json` says it."""


def text_rows(result: Result) -> list[tuple[str, str]]:
    """(what, fact) rows for a terminal."""
    rows = [("verdict", f"{result['verdict']}: {result['reason']}")]
    rows += [
        (check["name"], ("" if check["ok"] else "FAIL ") + check["detail"]) for check in result["checks"]
    ]
    if alone := result["self_check"]:
        low, high = (f"{math.expm1(alone[end]):+.1%}" for end in ("low", "high"))
        rows.append(("self-check", f"the baseline against itself: {low} to {high}"))
    if measured := result["latency"]:
        clock = "processor time" if measured["clock"] == "cpu" else "wall clock"
        before, after = (measured[f"{side}_ms"]["p50"] for side in ("before", "after"))
        rows.append(("baseline", f"{before:.3f} ms (median, {clock}, {measured['threads']} threads)"))
        rows.append(("current", f"{after:.3f} ms (median, {measured['pairs']} interleaved pairs)"))
        wall = measured.get("wall", measured)["speedup"]
        change, high, low = (f"{1 / speedup - 1:+.1%}" for speedup in (wall["estimate"], *wall["ci95"]))
        rows.append(("wall clock", f"{change} ({low} to {high})"))
    return rows


def markdown(results: Iterable[Result]) -> str:
    """A summary table for a pull request."""
    lines = ["| model | verdict | change (95 %) | allowed | why |", "|---|---|---|---|---|"]
    for result in results:
        change = "not timed"
        if timed := result["change"]:
            low, high = timed["ci95"]
            change = f"{timed['estimate']:+.1%} ({low:+.1%} to {high:+.1%})"
        allowed = f"{result['max_regression']:.1%}"
        cells = (result["name"], f"**{result['verdict']}**", change, allowed, result["reason"])
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def github_benchmark(results: Iterable[Result]) -> str:
    """The medians of both models as github-action-benchmark reads them (customSmallerIsBetter)."""
    rows = [
        {"name": f"{result['name']}: {side}", "unit": "ms", "value": median, "extra": f"p90 {p90:.4g} ms"}
        for result in results
        for side, median, p90 in _medians(result)
    ]
    return json.dumps(rows, indent=1) + "\n"


def bencher(results: Iterable[Result]) -> str:
    """The medians of both models in the Bencher Metric Format, in nanoseconds, with the 90th percentile above."""
    rows = {
        f"{result['name']}: {side}": {"latency": {"value": median * 1e6, "upper_value": p90 * 1e6}}
        for result in results
        for side, median, p90 in _medians(result)
    }
    return json.dumps(rows, indent=1) + "\n"


def _medians(result: Result) -> list[tuple[str, float, float]]:
    """(side, median, 90th percentile) in milliseconds; nothing of what was not timed."""
    if (measured := result["latency"]) is None:
        return []
    return [(of, measured[f"{side}_ms"]["p50"], measured[f"{side}_ms"]["p90"]) for of, side in _SIDES]


def junit(results: Sequence[Result]) -> str:
    """JUnit XML: a regression is a failure, what could not be told an error."""
    suite = ElementTree.Element("testsuite", name="sparsecc gate", tests=str(len(results)))
    suite.set("failures", str(sum(r["verdict"] == "REGRESSION" for r in results)))
    suite.set("errors", str(sum(r["verdict"] == "INCONCLUSIVE" for r in results)))
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            name=_xml(result["name"]),
            classname="sparsecc.gate",
            time=f"{_seconds(result['latency']):.3f}",
        )
        tag = {"REGRESSION": "failure", "INCONCLUSIVE": "error"}.get(result["verdict"])
        if tag is not None:
            ElementTree.SubElement(case, tag, message=_xml(result["reason"]), type=result["verdict"])
        out = ElementTree.SubElement(case, "system-out")
        out.text = _xml("\n".join(f"{what}: {fact}" for what, fact in text_rows(result)))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _seconds(latency: Mapping[str, Any] | None) -> float:
    """How long all runs took together, by a clock that other processes move."""
    samples = (latency or {}).get("samples_ms", {})
    return sum(sum(times) for clock, times in samples.items() if not clock.startswith("cpu")) / 1e3


def _xml(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold."""
    return "".join(c for c in text if c in "\t\n" or (ord(c) >= 0x20 and not 0xD800 <= ord(c) <= 0xDFFF))


def append_history(file: Path, result: Result, *, when: str, revision: str = "") -> None:
    """Add one line of JSON. `when` is an ISO time. Milliseconds in it are shown; they decide nothing."""
    change, measured = result["change"], result["latency"]
    entry: dict[str, Any] = {
        "when": when,
        "revision": revision,
        "name": result["name"],
        "verdict": result["verdict"],
    }
    if change and measured:
        low, high = change["ci95"]
        entry |= {"change": change["estimate"], "low": low, "high": high}
        entry |= {f"{of}_ms": measured[f"{side}_ms"]["p50"] for of, side in _SIDES}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
    except OSError as e:
        raise SystemFailureError(
            f"{file}: the history cannot be written: {e.strerror}: check the path"
        ) from e


def history_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a history, oldest first: when, revision, name, verdict, change, milliseconds.

    InputError for a file that cannot be read, and for a line that no gate wrote.
    """
    try:
        if not file.is_file():
            raise InputError(f"{file}: is not a plain file: start a new one")
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{file}: not readable as a gate history (JSON lines): {e}: start a new file") from e
    return [_entry(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _entry(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or (
        "change" in entry and not all(map(_is_number, map(entry.get, _NUMBERS)))
    ):
        raise InputError(f"{file}, line {number} is no result of a gate: start a new file")
    return entry


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30

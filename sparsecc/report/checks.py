"""What was checked of a compile, each with its mark: passed, doubtful, failed, or not a matter of passing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparsecc.report.verdict import Judgement, verdict

Mark = Literal["passed", "doubtful", "failed", ""]

SIGNS: dict[Mark, str] = {"passed": "✓", "doubtful": "?", "failed": "✗", "": ""}
STYLES: dict[Mark, str] = {"passed": "good", "doubtful": "warn", "failed": "bad", "": ""}
_USES: dict[Judgement, Mark] = {
    "usable": "passed",
    "doubtful": "doubtful",
    "useless": "failed",
    "not judged": "doubtful",
}


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, what was found, and whether that is as it should be."""

    what: str
    found: str
    mark: Mark = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.mark]

    @property
    def style(self) -> str:
        return STYLES[self.mark]


def checks(report: Mapping[str, Any]) -> list[Check]:
    """Of the surgery, of what was built, and of what it is worth; [] where nothing was."""
    return [*_verification(report), *_fidelity(report), *_goal(report)]


def text(value: Any) -> str:
    """A plain fact as a cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verification(report: Mapping[str, Any]) -> Iterator[Check]:
    facts = report.get("verification") or {}
    if "status" in facts:
        told = facts["status"] if not facts.get("reason") else f"{facts['status']}: {facts['reason']}"
        yield Check("status", told, "passed" if facts["status"] == "proved" else "failed")
    if planted := facts.get("planted"):
        tried, noticed = planted["tried"], planted["noticed"]
        yield Check(
            "planted faults", f"{noticed} of {tried} noticed", "passed" if noticed == tried else "failed"
        )
    for key, value in facts.items():
        if isinstance(value, str | int | float | bool) and key not in ("status", "reason"):
            yield Check(key.replace("_", " "), text(value), _held(key, facts))


def _held(key: str, facts: Mapping[str, Any]) -> Mark:
    """Whether a figure of the verification is as it should be: all of these are required, or the compile says so."""
    if key in ("layers_in_type", "layers_in_pattern"):
        return "failed" if facts.get("losses") else "passed"
    if key == "max_relative_error":
        return "passed" if facts.get("status") == "proved" else ""
    return "passed" if key in ("runs", "checker", "artefact_relative_error") else ""


def _fidelity(report: Mapping[str, Any]) -> Iterator[Check]:
    facts, said = report.get("fidelity") or {}, verdict(report)
    if facts or report.get("accuracy"):
        yield Check("what was lost", said.lost, _USES[said.judgement])
    for key, value in facts.items():
        if isinstance(value, str | int | float | bool):
            yield Check(key.replace("_", " "), text(value))


def _goal(report: Mapping[str, Any]) -> Iterator[Check]:
    if goal := report.get("goal"):
        if goal["met"] is None:
            yield Check("goal", "foretold, not measured")
        else:
            yield Check("goal", "met" if goal["met"] else "missed", "passed" if goal["met"] else "failed")

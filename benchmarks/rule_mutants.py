"""Break every rule in turn and say which breakage no case of the rule tests notices.

    python benchmarks/rule_mutants.py [--compiles] [--json FILE] [--seconds 240] [--again] [OPERATOR ...]

A mutant drops a rule (the operator is pinned), drops its fix (sizes stay dense) or frees every pin it sets.
It is caught when a case that contains the operator finds other free slots, other outputs or another reason.
With `--compiles` no expectation of a test helps: every case, those of pins too, runs through a compile up to its
proof, and there are mutants that drop one pin of several. A mutant is caught where a compile ends with an error or is
not proved, and survives where all are proved and one cuts an axis that the right rules keep whole. Others tell
nothing: nothing more is cut, or no case that holds the operator is proved under the right rules.

Results are stored as they come, and known ones are not run again: with `--seconds` in pieces. Exits with 1
where less than GOAL of the mutants are caught.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc.compilation import Compilation
from sparsecc.errors import SparseccError
from sparsecc.options import CompileOptions
from sparsecc.rules import RULES, Rule
from sparsecc.rules.site import Site
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import STAGES, Work, prove_pruned, walk
from tests import rule_checks

FILES = sorted((Path(__file__).resolve().parents[1] / "tests").glob("test_rules_*.py"))
GOAL = 0.95
OUT = Path("out/benchmarks/rule_mutants.json")
OUT_COMPILES = Path("out/benchmarks/rule_mutants_compiles.json")
PINS = 4
"""So many pins of a rule are dropped one by one, counted in the order in which it sets them."""
SURVIVED, CAUGHT, HARMLESS, NO_CASE = "survived", "caught", "cuts nothing more", "no case is proved"
RUNS = (rule_checks.check, rule_checks.why_pinned)
"""Checks whose cases ONNX Runtime runs."""
UP_TO_PROOF = STAGES[: 1 + [stage.run for stage in STAGES].index(prove_pruned)]
Check = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One call of a check, as a test made it."""

    check: Check
    arguments: dict[str, Any]
    result: Any


class Recorder:
    """A pytest plugin that notes every check instead of running it."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
            for name in ("check", "check_free", "why_pinned"):
                if hasattr(module, name):
                    setattr(module, name, self.recorded(getattr(rule_checks, name)))

    def recorded(self, check: Check) -> Check:
        def note(*given: Any, **named: Any) -> Any:
            bound = inspect.signature(check).bind(*given, **named)
            result = check(*given, **named)
            kept = result if check is rule_checks.why_pinned else None
            self.cases.append(Case(check, dict(bound.arguments), kept))
            return result

        return note


def recorded_cases() -> list[Case]:
    """Every case of the rule tests."""
    recorder = Recorder()
    calm = [
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]  # sparsecc, which is a plugin too, is imported already
    options = ["-q", "--no-header", "-p", "no:cacheprovider", *calm]
    code = pytest.main([*options, *map(str, FILES)], plugins=[recorder])
    if code:
        sys.exit("the rule tests fail without any mutation: mend them first")
    return recorder.cases


Mutant = tuple[str, str, str, Rule | None]
"""(domain, operator, what is broken, the rule in its place)."""


def mutants(*, one_by_one: bool = False) -> Iterator[Mutant]:
    """Every rule dropped, without its fix, without its pins, and `one_by_one` without each of its first pins."""
    for (domain, name), rule in list(RULES.items()):
        yield domain, name, "rule", None
        if rule.fix is not None:
            yield domain, name, "fix", replace(rule, fix=None)
        yield domain, name, "pins", replace(rule, follow=_unpinned(rule, None, _title(domain, name, "pins")))
        for number in range(PINS if one_by_one else 0):
            yield domain, name, f"pin {number}", replace(rule, follow=_unpinned(rule, number))


@contextmanager
def in_force(domain: str, name: str, rule: Rule | None) -> Iterator[None]:
    """The mutated rule in place of the real one."""
    original = RULES.pop((domain, name))
    if rule is not None:
        RULES[domain, name] = rule
    yield
    RULES[domain, name] = original


SET: dict[str, int] = {}
"""How many pins a rule was seen to set at a node, by the title of its mutant without any."""


def _unpinned(rule: Rule, number: int | None, title: str = "") -> Callable[[Site], None]:
    """The rule, of whose pins nothing comes; of its `number`-th pin alone where that is given. The number that there
    are is kept under `title`."""

    def follow(site: Site) -> None:
        calls, pin = count(), Site.pin

        def pins(site: Site, *given: Any, **named: Any) -> None:
            if next(calls) != number and number is not None:
                pin(site, *given, **named)

        with mock.patch.object(Site, "pin", pins):
            rule.follow(site)
        SET[title] = max(SET.get(title, 0), next(calls))

    return follow


def _holds(case: Case, domain: str, name: str) -> bool:
    """Whether a case contains the operator."""
    prefix, text = f"{domain}.{name}" if domain else name, case.arguments["text"]
    return f"{prefix}(" in text or f"{prefix}<" in text


def is_caught(domain: str, name: str, cases: list[Case]) -> bool:
    """Whether any case that holds the operator fails under the mutation in force."""
    for case in cases:
        if not _holds(case, domain, name):
            continue
        try:
            result = case.check(**case.arguments)
        except Exception:  # noqa: BLE001 - whatever goes wrong, it was noticed
            return True
        if case.result is not None and result != case.result:
            return True
    return False


def outcome(case: Case) -> tuple[str, frozenset[tuple[str, int]]]:
    """(what a compile of a case says, the axes of constants that it cuts)."""
    given = case.arguments
    proto = rule_checks.model_of(given["text"], given.get("opset", 23), given.get("values"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        onnx.save(proto, path)
        options = CompileOptions(ratio=0.5, target="onnx", measure=False, allocator="uniform", align=1)
        try:
            work = walk(Work(Compilation(path, options, Scratch(Path(folder) / "work"))), UP_TO_PROOF)
        except SparseccError as e:
            return str(e), frozenset()
    gone = {(cut.value.name or "", axis) for cut in work.removal.cuts for axis in cut.slots}
    return str(work.verification["status"]), frozenset(gone)


class Compiles:
    """What the compile of every case says under the right rules, found once."""

    def __init__(self) -> None:
        self.right: dict[int, tuple[str, frozenset[tuple[str, int]]]] = {}

    def learn(self, domain: str, name: str, cases: list[Case]) -> list[Case]:
        """The cases that hold the operator and are proved under the right rules."""
        held = [case for case in cases if _holds(case, domain, name) and case.check in RUNS]
        for case in held:
            if id(case) not in self.right:
                self.right[id(case)] = outcome(case)
        return [case for case in held if self.right[id(case)][0] == "proved"]

    def verdict(self, cases: list[Case]) -> str:
        """What compiles of the cases say of the mutation in force: CAUGHT, SURVIVED, HARMLESS or NO_CASE."""
        more = False
        for case in cases:
            try:
                status, gone = outcome(case)
            except Exception:  # noqa: BLE001 - whatever goes wrong, it was noticed
                return CAUGHT
            if status != "proved":
                return CAUGHT
            more = more or not gone <= self.right[id(case)][1]
        return SURVIVED if more else HARMLESS if cases else NO_CASE


def counted(rows: dict[str, str], *, pins: bool) -> dict[str, bool]:
    """Those that say something, and whether they are caught: most rules set no pin, or one that the case's inputs or
    outputs set as well. With `pins` these count too: compiles say which of them free a slot."""
    told = {title: verdict == CAUGHT for title, verdict in rows.items() if verdict in (CAUGHT, SURVIVED)}
    return {title: caught for title, caught in told.items() if caught or pins or not title.endswith(": pins")}


def main() -> None:
    """Run what is not known yet, print what survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operators", nargs="*")
    parser.add_argument("--compiles", action="store_true", help="let compiles notice, not tests")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    given.json = given.json or (OUT_COMPILES if given.compiles else OUT)
    rows: dict[str, str] = json.loads(given.json.read_text()) if given.json.exists() else {}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    known = list(mutants(one_by_one=given.compiles))
    waiting = [m for m in known if not given.operators or m[1] in given.operators]
    if not given.again:
        waiting = [m for m in waiting if _title(*m[:3]) not in rows]
    waiting.sort(key=lambda m: m[3] is None)  # a rule that is gone pins: the others first
    cases = recorded_cases() if waiting else []
    compiles = Compiles()
    for domain, name, what, rule in waiting:
        if time.monotonic() > end:
            break
        held = compiles.learn(domain, name, cases) if given.compiles else cases
        with in_force(domain, name, rule):
            if what.startswith("pin ") and SET.get(_title(domain, name, "pins"), PINS) <= int(what[4:]):
                verdict = HARMLESS
            elif given.compiles:
                verdict = compiles.verdict(held)
            else:
                verdict = CAUGHT if is_caught(domain, name, cases) else SURVIVED
        rows[_title(domain, name, what)] = verdict
        given.json.write_text(json.dumps(rows, indent=1))
    told = counted(rows, pins=given.compiles)
    print(*(title for title, caught in told.items() if not caught), sep="\n")
    left = sum(_title(*m[:3]) not in rows for m in known)
    print(f"{sum(told.values())} of {len(told)} mutants caught, {left} not run yet")
    sys.exit(sum(told.values()) < GOAL * len(told))


def _title(domain: str, name: str, what: str) -> str:
    return f"{domain or 'onnx'}.{name}: {what}"


if __name__ == "__main__":
    main()

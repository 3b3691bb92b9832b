"""Breaks every rule in turn and says which breakage no case notices: `python -m tests.rule_mutants`.

A mutant drops a rule (the operator is pinned), drops its fix (sizes stay dense) or frees every pin it sets.
It is caught when a case that contains the operator finds other free slots, other outputs or another reason.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sparsecc.rules import RULES, Rule
from sparsecc.rules.site import Site
from tests import rule_checks

FILES = sorted(Path(__file__).parent.glob("test_rules_*.py"))
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
    code = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *map(str, FILES)], plugins=[recorder])
    if code:
        sys.exit("the rule tests fail without any mutation: mend them first")
    return recorder.cases


@contextmanager
def pins_nothing() -> Iterator[None]:
    """Rules may pin, but nothing comes of it."""
    with mock.patch.object(Site, "pin"):
        yield


def mutants() -> Iterator[tuple[str, str, Rule | None]]:
    """(domain, operator, the rule in its place)."""
    for (domain, name), rule in list(RULES.items()):
        yield domain, name, None
        if rule.fix is not None:
            yield domain, name, replace(rule, fix=None)
        yield domain, name, replace(rule, follow=_unpinned(rule))


def _unpinned(rule: Rule) -> Callable[[Site], None]:
    def follow(site: Site) -> None:
        with pins_nothing():
            rule.follow(site)

    return follow


def is_caught(domain: str, name: str, cases: list[Case]) -> bool:
    """Whether any case that holds the operator fails under the mutation in force."""
    prefix = f"{domain}.{name}" if domain else name
    for case in cases:
        text = case.arguments["text"]
        if f"{prefix}(" not in text and f"{prefix}<" not in text:
            continue
        try:
            result = case.check(**case.arguments)
        except Exception:  # noqa: BLE001 - whatever goes wrong, it was noticed
            return True
        if case.result is not None and result != case.result:
            return True
    return False


def main() -> None:
    """Print what survives."""
    cases, survivors, total = recorded_cases(), [], 0
    for domain, name, rule in mutants():
        original = RULES[domain, name]
        kind = (
            "dropped" if rule is None else "fix dropped" if rule.fix is not original.fix else "pins dropped"
        )
        if rule is None:
            del RULES[domain, name]
        else:
            RULES[domain, name] = rule
        caught = is_caught(domain, name, cases)
        RULES[domain, name] = original
        if kind == "pins dropped" and not caught:
            continue  # most rules set no pin, or one that the case's graph input or output sets as well
        total += 1
        if not caught:
            survivors.append(f"{domain or 'onnx'}.{name}: {kind}")
    print("\n".join(survivors))
    print(f"{total - len(survivors)} of {total} mutants caught")


if __name__ == "__main__":
    main()

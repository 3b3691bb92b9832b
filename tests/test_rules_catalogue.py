"""The table of rules is complete, documented, and every row of it has a case in which it matters."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from sparsecc.graph.analysis import analyse
from sparsecc.rules import PINNED, RULES, reason_for_pin, rule_for
from sparsecc.rules.catalogue import entries, page
from tests.rule_checks import loaded

CASES = sorted(Path(__file__).parent.glob("test_rules_*.py"))


def test_every_operator_of_onnx_has_a_rule_or_a_reason() -> None:
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas()}
    missing = sorted(known - RULES.keys() - PINNED.keys())
    assert not missing, "add a row to a file in sparsecc/rules, or pin them with a reason"


def test_no_operator_has_both() -> None:
    assert not RULES.keys() & PINNED.keys()


def test_names_are_those_of_onnx() -> None:
    """A misspelt name would be a rule that never runs; one is ONNX Runtime's, kept in the default domain."""
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    ours = {key for key in (*RULES, *PINNED) if key[0] != "com.microsoft"}
    assert ours - known == {("", "SimplifiedLayerNormalization")}


def test_names_are_those_of_onnx_runtime() -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known = {(s.domain, s.name) for s in get_all_operator_schema()}
    ours = {key for key in (*RULES, *PINNED) if key[0] == "com.microsoft"}
    assert ours <= known


def test_every_rule_has_a_case() -> None:
    text = "\n".join(p.read_text() for p in CASES)
    words = set(re.findall(r"\w+", text))
    assert not sorted(name for _, name in RULES if name not in words)


def test_every_entry_says_something() -> None:
    assert all(len(e.text) > 5 for e in entries())


def test_the_page_is_that_of_the_code(root: Path) -> None:
    assert (root / "docs" / "operators.md").read_text() == page(), (
        "python -m sparsecc.rules.catalogue > docs/operators.md"
    )


def test_an_unknown_operator_is_pinned_by_name() -> None:
    assert rule_for("org.example", "Mystery") is None
    assert reason_for_pin("org.example", "Mystery") == "no rule for operator org.example.Mystery"
    assert rule_for("ai.onnx", "Relu") is rule_for("", "Relu")


def test_analysis_never_raises(shared: Path) -> None:
    """Over a sample of ONNX' own node tests: one in twelve."""
    files = sorted((shared / "corpus" / "onnx-node").glob("*.onnx"))[::12]
    if not files:
        pytest.skip("no node tests there")
    for file in files:
        analyse(loaded(onnx.load(file)))

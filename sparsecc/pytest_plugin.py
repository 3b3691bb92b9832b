"""The pytest plug-in: the fixture `sparsecc_latency`, which fails a test when a model became slower.

def test_no_slower(sparsecc_latency):
    sparsecc_latency.assert_not_slower("new.onnx", "released.onnx", max_regression=0.05)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sparsecc.gate.gate import GateResult

Model = str | os.PathLike[str]


@dataclass(frozen=True)
class Latency:
    """What the fixture gives. `pairs` and `seconds` are those of the gate's first look."""

    pairs: int = 160
    seconds: float = 12.0
    inconclusive: str = "fail"

    def assert_not_slower(
        self,
        current: Model,
        baseline: Model,
        *,
        max_regression: float = 0.05,
        threads: int = 1,
        feeds: Mapping[str, Any] | None = None,
    ) -> GateResult:
        """Fail when `current` is slower than `baseline` by more than `max_regression`.

        Where the machine could not tell, the test fails: it was asked to judge. With `--sparsecc-inconclusive=skip` it
        is skipped.
        Both are ONNX files or bundles; the result can be looked at further.
        """
        __tracebackhide__ = True
        from sparsecc.gate.gate import gate
        from sparsecc.measure.interleave import Budget

        budget = Budget(pairs=self.pairs, seconds=self.seconds, warmup_seconds=0.4)
        result = gate(
            Path(current),
            Path(baseline),
            max_regression=max_regression,
            threads=threads,
            feeds=feeds,
            budget=budget,
        )
        if result.verdict == "REGRESSION":
            pytest.fail(f"{result.name} is slower: {result.reason}", pytrace=False)
        if result.verdict == "INCONCLUSIVE":
            stop = pytest.fail if self.inconclusive == "fail" else pytest.skip
            stop(f"{result.name}: {result.reason}")
        return result


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a test run does where the machine could not tell."""
    parser.getgroup("sparsecc").addoption(
        "--sparsecc-inconclusive",
        choices=("skip", "fail"),
        default="fail",
        help="what a latency check does when the machine could not tell (default: fail)",
    )


@pytest.fixture
def sparsecc_latency(request: pytest.FixtureRequest) -> Latency:
    """Interleaved latency checks: `assert_not_slower(current, baseline, max_regression=0.05)`."""
    return Latency(inconclusive=request.config.getoption("--sparsecc-inconclusive"))

"""A slice of the benchmark of random signals."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.signals import results


@pytest.mark.slow
def test_random_signals_leave_nothing_torn_and_nothing_behind() -> None:
    pytest.importorskip("asyncssh")
    counts = sum(results(20, 600.0, {}), Counter())
    assert counts["signals"] > 0
    assert counts["clean afterwards"] > 0

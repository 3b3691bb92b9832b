"""With sparsecc installed, pytest has the fixture `sparsecc_latency`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsecc.pytest_plugin import Latency


def test_the_model_is_no_slower_than_the_released_one(sparsecc_latency: Latency) -> None:
    """Compares both files side by side on this machine."""
    sparsecc_latency.assert_not_slower("models/net.onnx", "released/net.onnx", max_regression=0.05)

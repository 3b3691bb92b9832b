"""What `sparsecc inspect` tells of every architecture of the zoo."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from sparsecc.tasks.inspect import inspect
from tests.test_inspect import require_whole
from tests.zoo import ZOO
from tests.zoo.export import ZooUnavailable, onnx_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_shares_of_an_architecture_add_up(name: str) -> None:
    try:
        path = onnx_path(name)
    except ZooUnavailable as e:
        pytest.skip(str(e))
    found = inspect({"model": str(path), "options": {}}, lambda event: None)
    require_whole(found)
    assert 0 <= found["prunable"]["macs_share"] <= 1

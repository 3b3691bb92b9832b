"""The same share can go at every opset that an exporter writes, and in files converted further up."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.pruning import removable
from tests.zoo.export import Exporter, ZooUnavailable, at_opset

EQUAL = 0.01


def share(name: str, exporter: Exporter, opset: int, folder: Path) -> float | None:
    """The share that can go, None where neither the exporter nor onnx makes that file."""
    try:
        onnx.save(at_opset(name, exporter, opset), folder / "model.onnx")
    except ZooUnavailable:
        return None
    return removable(analyse(normalise(load_ir(folder / "model.onnx"))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet_basic", "mobilenet_v3", "lstm_bidirectional", "groupnorm_net", "vit"]
)
@pytest.mark.parametrize(
    ("exporter", "opsets"), [("torchscript", (9, 11, 13, 14, 16, 20, 25)), ("dynamo", (20, 23, 25))]
)
def test_shares_are_those_of_opset_18(
    name: str, exporter: Exporter, opsets: tuple[int, ...], tmp_path: Path
) -> None:
    wanted = share(name, exporter, 18, tmp_path)
    assert wanted is not None
    assert wanted > 0.4
    found = {opset: share(name, exporter, opset, tmp_path) for opset in opsets}
    assert {o: s for o, s in found.items() if s is not None and abs(s - wanted) > EQUAL} == {}
    assert sum(s is not None for s in found.values()) > 1

"""The groups found in torch are those found in the ONNX file of the same module, and one plan fits both."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

from tests.torch_sides import DIFFERENCES, plan_error, sides  # noqa: E402
from tests.zoo import ZOO  # noqa: E402
from tests.zoo.export import ZooUnavailable  # noqa: E402

HERE = (
    "squeezenet",
    "nhwc_flatten",
    "shufflenet_v1",
    "torch_cross_attention",
    "mixtral",
    "cbam_resnet",
    "gan_generator",
    "vit_fused_chunk",
    "lstm_classifier",
    "capsules",
)


def check(name: str, scratch: Path) -> None:
    try:
        both = sides(name)
    except ZooUnavailable as e:
        pytest.skip(str(e))
    known = DIFFERENCES.get(name)
    assert both.extra == ((known.torch_only, known.onnx_only) if known else (0, 0))
    assert both.torch_groups
    error = plan_error(both, ZOO[name].build().example(), scratch)
    assert error <= 1e-4 or (known is not None and not known.same)


@pytest.mark.parametrize("name", HERE)
def test_groups_and_outputs_equal_those_of_onnx(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ZOO) - set(HERE)))
def test_groups_and_outputs_equal_those_of_onnx_everywhere(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)

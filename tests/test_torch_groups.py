"""The groups found in torch are those found in the ONNX file of the same module."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

import sparsecc.torch as st  # noqa: E402
from sparsecc.graph.analysis import analyse  # noqa: E402
from sparsecc.graph.groups import Group, find_groups  # noqa: E402
from sparsecc.loading.models import load_ir  # noqa: E402
from sparsecc.loading.normalise import normalise  # noqa: E402
from tests.zoo import ZOO  # noqa: E402
from tests.zoo.export import ZooUnavailable, onnx_path  # noqa: E402

Members = frozenset[tuple[str, int]]
HERE = ("squeezenet", "nhwc_flatten")


def members(groups: list[Group], names: set[str]) -> set[Members]:
    """The free groups, seen through the parameters that both sides name."""
    found = {frozenset(m for m in g.members if m[0] in names) for g in groups if g.is_free}
    return {f for f in found if f}


def compare(name: str) -> tuple[set[Members], set[Members]]:
    """(groups in torch, groups in ONNX) of a zoo entry."""
    try:
        path = onnx_path(name, "dynamo")
    except ZooUnavailable as e:
        pytest.skip(str(e))
    model = ZOO[name].build()
    shapes = {n: list(p.shape) for n, p in model.module.named_parameters(remove_duplicate=False)}
    proto = normalise(load_ir(path))
    inits = proto.graph.initializers
    names = {n for n, s in shapes.items() if n in inits and list(inits[n].shape or ()) == s and s}
    on_torch = st.groups_of(model.module, model.example())
    return members(on_torch, names), members(find_groups(analyse(proto)), names)


@pytest.mark.parametrize("name", HERE)
def test_groups_equal_those_of_onnx(name: str) -> None:
    on_torch, on_onnx = compare(name)
    assert on_torch
    assert on_torch == on_onnx


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_groups_equal_those_of_onnx_everywhere(name: str) -> None:
    on_torch, on_onnx = compare(name)
    assert on_torch == on_onnx

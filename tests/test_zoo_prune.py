"""Half of every free group of the zoo's models goes at random; what is left equals the masked dense model."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import Group, find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from tests.pruning import Pruned, prune_half
from tests.zoo import FAST, ZOO
from tests.zoo.export import EXPORTERS, Exporter, ZooUnavailable, onnx_path
from tests.zoo.known import FAILURES

COVERED = 0.95
LESS: dict[str, float] = {"ssd": 0.9, "nhwc_flatten": 0.8}
"""Entries of which less can go: their inputs and outputs hold more of the weights."""


def pruned(name: str, exporter: Exporter, scratch: Path) -> Pruned:
    try:
        path = onnx_path(name, exporter)
    except ZooUnavailable as e:
        if (name, exporter) not in FAILURES:
            raise
        pytest.skip(str(e))
    return prune_half(path, scratch)


def check(found: Pruned) -> None:
    """Exact, changed by the masks, as small as predicted, and right by the plan alone where nothing mixes."""
    assert found.is_exact, f"differs by {found.error:.2g}, rounding explains {found.rounding:.2g}"
    assert found.predicted == found.left
    if found.planned_error is not None:
        assert found.planned_error <= max(1e-4, 16 * found.rounding)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", FAST)
def test_half_of_every_group_can_go(name: str, exporter: Exporter, tmp_path: Path) -> None:
    found = pruned(name, exporter, tmp_path)
    check(found)
    assert found.changed > 1e-3, "the masks changed nothing: the comparison proves nothing"
    assert found.coverage >= LESS.get(name, COVERED)
    assert found.unfollowed == {}


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", sorted(set(ZOO) - set(FAST)))
def test_half_of_every_group_of_the_whole_zoo_can_go(name: str, exporter: Exporter, tmp_path: Path) -> None:
    check(pruned(name, exporter, tmp_path))


# What is found in transformers -----------------------------------------------------------------------


@cache
def groups(name: str, exporter: Exporter) -> tuple[Group, ...]:
    return tuple(find_groups(analyse(normalise(load_ir(onnx_path(name, exporter))))))


def found(name: str, exporter: Exporter) -> Counter[tuple[str, int]]:
    """(kind, size) of the free groups, counted."""
    return Counter((g.kind, g.size) for g in groups(name, exporter) if g.is_free)


_PLAIN = {("head", 4): 2, ("head_dim", 12): 4}
"""Two layers of four heads, whose queries with keys and whose values have widths of their own."""

EXPECTED: dict[str, dict[tuple[str, int], int]] = {
    "bert": {("channel", 48): 2, ("channel", 104): 2, **_PLAIN},  # the residual, and the pooler
    "gpt2": {("channel", 48): 1, ("channel", 104): 2, **_PLAIN},
    "vit_fused_chunk": {("channel", 44): 1, ("channel", 108): 2, **_PLAIN},
    # One axis of three stacks queries, keys and values: they share their width.
    "vit_fused_unbind": {("channel", 44): 1, ("channel", 108): 2, ("head", 4): 2, ("head_dim", 12): 2},
    # Key heads and their repeats; the rotation of pairs is computed once for both layers.
    "llama_gqa": {
        ("channel", 40): 1,
        ("channel", 104): 2,
        ("head", 2): 4,
        ("head_dim", 6): 1,
        ("head_dim", 12): 2,
    },
}
"""Per model its free groups: residual width, MLPs, heads, head widths. Nothing else may be free."""


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", EXPECTED)
def test_heads_widths_and_the_residual_are_found(name: str, exporter: Exporter) -> None:
    assert dict(found(name, exporter)) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_both_exporters_give_the_same_share(name: str) -> None:
    shares = []
    for exporter in EXPORTERS:
        graph = normalise(load_ir(onnx_path(name, exporter))).graph
        sizes = {n: v.const_value.size for n, v in graph.initializers.items() if v.const_value is not None}
        free = {member for g in groups(name, exporter) if g.is_free for member, _ in g.members}
        shares.append(sum(sizes[n] for n in free))
    assert shares[0] == pytest.approx(shares[1], rel=0.01)

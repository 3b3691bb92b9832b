"""What a module's own forward does besides computing: it cuts axes into equal pieces, and keeps tensors for later."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

import torch
from torch import Tensor, nn

import sparsecc.torch


class Halves(nn.Module):
    """The stage of YOLOv8: one half passes by, the other goes through a layer, all are joined."""

    def __init__(self, cut: str = "chunk") -> None:
        super().__init__()
        self.width, self.cut = 16, cut
        self.enter, self.inner = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.leave = nn.Conv2d(48, 8, 1)
        with torch.no_grad():  # the first half matters less: left to itself it loses more
            self.enter.weight[:16] *= 0.2

    def pieces(self, x: Tensor) -> list[Tensor]:
        if self.cut == "chunk":
            return list(x.chunk(2, 1))
        return list(x.split((self.width, self.width), 1) if self.cut == "sizes" else x.split(self.width, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.pieces(self.enter(x).relu())
        parts.append(self.inner(parts[-1]).relu() + parts[-1])
        joined: Tensor = self.leave(torch.cat(parts, 1))
        return joined


@pytest.mark.parametrize("cut", ["chunk", "sizes", "size"])
@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_halves_that_forward_cuts_stay_equal(cut: str, criterion: str) -> None:
    torch.manual_seed(0)
    module, x = Halves(cut), torch.randn(4, 3, 8, 8)
    given: dict[str, Any] = {}
    if criterion == "taylor":  # batches that can be gone through only once
        given = {"batches": iter([x, x + 1]), "loss": lambda module, batch: module(batch).square().mean()}
    small = sparsecc.torch.prune(module, x, ratio=0.4, criterion=criterion, align=1, form="module", **given)
    assert type(small) is Halves
    plan = sparsecc.torch.plan_of(small)
    assert plan.removed >= 0.4
    width = small.enter.weight.shape[0]
    assert width < 32
    assert small.inner.weight.shape[:2] == (width // 2, width // 2)
    small(torch.randn(2, 3, 16, 16)).mean().backward()


def test_pieces_that_the_graph_form_cuts_may_differ() -> None:
    torch.manual_seed(0)
    small = sparsecc.torch.prune(Halves(), torch.randn(4, 3, 8, 8), ratio=0.4, align=1, form="graph")
    kept = dict(small.named_parameters())
    assert kept["inner.weight"].shape[0] != kept["enter.weight"].shape[0] / 2


class Remembers(nn.Module):
    """Keeps a tensor of every call in a plain attribute, as detectors keep their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
        self.anchors: Any = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        self.anchors = found.mean((2, 3))
        self.calls += 1
        return found


def test_what_forward_keeps_is_not_left_behind_by_the_export() -> None:
    module = Remembers().train()
    before = module.anchors = torch.ones(2)
    small = sparsecc.torch.prune(module, torch.randn(2, 3, 8, 8), ratio=0.5)
    assert module.anchors is before
    assert module.calls == 0
    assert module.training
    assert isinstance(small, Remembers)
    copy.deepcopy(small)
    assert small.training

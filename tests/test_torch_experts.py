"""Mixtures in torch: experts chosen by topk are followed to the weights that are picked; also smaller rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import GoalError  # noqa: E402
from sparsecc.graph.groups import Group  # noqa: E402
from sparsecc.torch.pruning import study  # noqa: E402

KINDS = ("channels", "experts")
Read = Callable[[Tensor, Tensor], Tensor]


class Mixture(nn.Module):
    """Two of six experts for every row; `read` may use the numbers of the chosen ones otherwise."""

    def __init__(self, read: Read | None = None, *, largest: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(8, 6)
        self.stacked = nn.Parameter(torch.randn(6, 10, 8))
        self.back = nn.Parameter(torch.randn(6, 8, 10))
        self.read, self.largest = read, largest

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).topk(2, largest=self.largest)
        numbers = chosen.flatten()
        rows = x.repeat_interleave(2, 0).unsqueeze(-1)
        hidden = torch.relu(torch.bmm(self.stacked[numbers], rows))
        mixed = torch.bmm(self.back[numbers], hidden).view(-1, 2, 8) * share.unsqueeze(-1)
        out = mixed.sum(1)
        return out if self.read is None else self.read(out, chosen)


def groups(module: nn.Module, *inputs: Tensor) -> list[Group]:
    return study(module, inputs, align=1, kinds=KINDS).groups


def rows() -> Tensor:
    made: Tensor = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    return made


def test_experts_go_with_their_scores_and_as_many_stay_as_are_chosen() -> None:
    module = Mixture()
    free = {g.kind: g for g in groups(module, rows()) if g.is_free}
    assert (free["expert"].size, free["expert"].least, free["channel"].size) == (6, 2, 10)
    assert {t for t, _ in free["expert"].members} == {"router.weight", "router.bias", "stacked", "back"}
    small = st.prune(module, rows(), ratio=0.6, metric="params", kinds=("experts",), align=1)
    assert st.plan_of(small).error <= 1e-4
    assert len(small.get_parameter("stacked")) == 2
    with pytest.raises(GoalError, match="only 66"):
        st.prune(module, rows(), ratio=0.8, metric="params", kinds=("experts",), align=1)


def test_experts_stay_unless_they_are_asked_for() -> None:
    found = study(Mixture(), rows(), align=1).groups
    assert next(g.pinned for g in found if g.kind == "expert") == "expert groups were not asked to be pruned"


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda out, chosen: out + chosen.sum(-1, keepdim=True), "read as data"),
        (lambda out, chosen: (out, chosen), "reach graph output"),
    ],
)
def test_numbers_used_otherwise_pin_the_experts(read: Read, reason: str) -> None:
    pinned = [g.pinned for g in groups(Mixture(read), rows()) if ("stacked", 0) in g.members]
    assert reason in (pinned[0] or "")


def test_the_smallest_scores_are_not_followed() -> None:
    pinned = [g.pinned for g in groups(Mixture(largest=False), rows()) if ("router.bias", 0) in g.members]
    assert "searched axis" in (pinned[0] or "")


class AnyBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 12), nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.einsum("...i,ij", self.into(x), self.out)
        return found


def test_an_equation_with_an_ellipsis_and_no_arrow_is_followed() -> None:
    found = [g for g in groups(AnyBatch(), torch.randn(2, 3, 8)) if g.is_free]
    assert [(g.size, len(g.members)) for g in found] == [(12, 3)]


class EmptyEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.into(x)
        found: Tensor = self.out(torch.cat([wide.relu(), wide[:, 12:]], -1))
        return found


def test_a_cut_of_nothing_pins_nothing() -> None:
    module = EmptyEnd()
    assert [g.size for g in groups(module, rows()) if g.is_free] == [12]
    assert st.plan_of(st.prune(module, rows(), ratio=0.4, align=1)).error <= 1e-4

"""What is said of single groups of a torch module holds, alone and together, in both forms and in a training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import InputError  # noqa: E402


class Net(nn.Module):
    """Two convolutions with a norm, a transposed one, a head: 24, 32, 20 and 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.second = nn.Conv2d(24, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 20, 2, 2)
        self.hidden, self.head = nn.Linear(20, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.second(self.first(x)))))
        out: Tensor = self.head(torch.relu(self.hidden(x.mean((2, 3)))))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def widths(module: nn.Module) -> tuple[int, ...]:
    sizes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    return (
        sizes["first.0.weight"][0],
        sizes["second.weight"][0],
        sizes["up.weight"][1],
        sizes["hidden.weight"][0],
    )


def pruned(net: nn.Module, **said: Any) -> nn.Module:
    small = st.prune(net, X, align=1, **said)
    assert st.plan_of(small).error <= 1e-4, "equal to the masked dense module"
    return small


SAID: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "a share of one": ({"ratio_for": {"second.weight:0": 0.25}}, (24, 24, 20, 16)),
    "shares by glob": ({"ratio_for": {"*": 0.5, "second.weight:0": 0.25}}, (12, 24, 10, 8)),
    "at most": ({"at_most": {"first": 6, "hidden.weight:0": 0.25, "up*": 10}}, (6, 10, 10, 4)),
    "slots by number": ({"slots": {"second": [0, 3, 5]}}, (24, 3, 20, 16)),
    "slots of a transposed convolution": ({"slots": {"up": [1, 2]}}, (24, 32, 2, 16)),
    "a mask of an axis": ({"slots": {"hidden.weight:0": np.arange(16) % 2 == 0}}, (24, 32, 20, 8)),
    "several": (
        {
            "ratio_for": {"second.weight:0": 0.5},
            "at_most": {"first": 8},
            "slots": {"hidden": torch.tensor([4, 9])},
        },
        (8, 16, 20, 2),
    ),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("form", ["module", "graph"])
def test_just_what_is_said_goes_without_a_ratio(name: str, form: str, net: Net) -> None:
    said, wanted = SAID[name]
    assert widths(pruned(net, ratio=0, form=form, **said)) == wanted


def test_a_mask_of_all_elements_lets_go_what_is_zero_throughout(net: Net) -> None:
    mask = torch.ones_like(net.second.weight)
    mask[[2, 7]] = 0
    mask[:, 5] = 0
    small = pruned(net, ratio=0, slots={"second.weight": mask})
    assert widths(small) == (23, 30, 20, 16)
    kept = st.plan_of(small).tensors["second.weight"]
    assert set(range(32)) - set(kept[0].tolist()) == {2, 7}
    assert set(range(24)) - set(kept[1].tolist()) == {5}


def test_the_others_make_up_a_ratio_within_floors_and_protected_slots(net: Net) -> None:
    with torch.no_grad():
        net.hidden.weight[3] = 0  # the first to go, were it not protected
    said: dict[str, Any] = {
        "ratio_for": {"second": 0.25},
        "at_least": {"first": 20},
        "protect": {"hidden": [3]},
    }
    small = pruned(net, ratio=0.35, metric="params", **said)
    plan = st.plan_of(small)
    first, second, _, _ = widths(small)
    assert second == 24
    assert plan.removed >= 0.35
    assert first >= 20
    assert 3 in plan.tensors.get("hidden.weight", {0: np.arange(16)})[0]


def test_the_plan_of_one_pruning_is_gone_on_from(net: Net) -> None:
    """The result is smaller, lacks all that the first lacks, and equals the first dense module without it."""
    first = pruned(net, ratio=0.3)
    for plan in (st.plan_of(first), st.plan_of(first).to_json()):
        second = pruned(net, ratio=0.6, plan=plan)
        before, after = st.plan_of(first).tensors, st.plan_of(second).tensors
        assert st.plan_of(second).removed > st.plan_of(first).removed
        assert all(set(after[n][a]) <= set(kept) for n, axes in before.items() for a, kept in axes.items())
    again = pruned(net, ratio=0, plan=st.plan_of(first))
    assert widths(again) == widths(first)
    assert torch.equal(again(X), first(X))


def test_training_loops_keep_to_it(net: Net) -> None:
    pruner = st.Pruner(
        net,
        X,
        ratio=0.4,
        steps=4,
        every=1,
        align=1,
        ratio_for={"second.weight:0": 0.5},
        at_least={"first": 22},
    )
    for _ in range(4):
        pruner.step()
    small = pruner.finish()
    assert widths(small)[1] == 16
    assert widths(small)[0] >= 22


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such group": (
        {"ratio_for": {"secnd": 0.5}},
        "ratio_for 'secnd' matches nothing: the nearest names are 'second",
    ),
    "pinned": (
        {"ratio_for": {"head.weight:0": 0.5}},
        "ratio_for 'head.weight:0' names nothing that can be cut",
    ),
    "no such slot": ({"protect": {"second": [40]}}, "protect 'second': there is no slot 40"),
    "no such parameter": ({"slots": {"third": [0]}}, "slots names 'third', which is no parameter"),
    "no such axis": ({"slots": {"second.weight:7": [0]}}, "slots: 'second.weight' has axes 0 to 3"),
    "an axis is missing": ({"slots": {"second.weight": [0]}}, "write 'second.weight:0'"),
    "a mask of another size": (
        {"slots": {"second": np.ones(5, bool)}},
        r"the mask of 'second' has shape \[5\]",
    ),
    "a slot beyond": ({"slots": {"second": [32]}}, "slots: 'second' has 32 slots, no slot 32"),
    "neither": ({"slots": {"second": "all"}}, "neither a mask nor the numbers"),
    "nothing left": ({"slots": {"second": []}}, "nothing is left of 'second.weight:0'"),
    "bounds that exclude": (
        {"at_least": {"first": 20}, "at_most": {"first": 10}},
        "give bounds that leave a choice",
    ),
    "a plan of another module": (
        {"plan": st.TorchPlan({"second.weight": {0: np.array([50])}}, [], "macs", 1.0, 1.0, True)},
        "plan: axis 0 of 'second.weight' is not as Net has it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name: str, net: Net) -> None:
    said, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        st.prune(net, X, ratio=0, **said)

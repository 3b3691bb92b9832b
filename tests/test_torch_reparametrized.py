"""Weights that a weight norm or a spectral norm computes are pruned as the plain ones that they are equal to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.torch.pruning import decide, study  # noqa: E402

Norm = Callable[..., Any]
NORMS: dict[str, Norm] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of all": lambda layer, axis=0: parametrizations.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "weight norm, hook": torch.nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, hook": torch.nn.utils.spectral_norm,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


class Vocoder(nn.Module):
    """Convolution, transposed convolution (its norm along axis 1), a grouped one, a linear layer."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first = norm(nn.Conv1d(5, 16, 3, padding=1))
        self.up = norm(nn.ConvTranspose1d(16, 24, 4, 2, 1))
        self.alone = norm(nn.Conv1d(24, 24, 3, padding=1, groups=24))
        self.wide = norm(nn.Linear(24, 20))
        self.last = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.alone(torch.relu(self.up(torch.relu(self.first(x))))))
        y: Tensor = self.last(torch.relu(self.wide(x.transpose(1, 2))))
        return y


def made(norm: str) -> tuple[Vocoder, Vocoder, Tensor]:
    """(with norms, the same with plain weights, inputs)."""
    torch.manual_seed(0)
    module = Vocoder(NORMS[norm])
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name.endswith(("original0", "_g")):
                tensor.mul_(1 + 0.5 * torch.rand_like(tensor))
    module.train()
    module(torch.randn(2, 5, 12))  # a spectral norm's vectors move
    module.eval()
    plain = Vocoder(lambda layer: layer)
    x = torch.randn(2, 5, 12)
    module(x)
    with torch.no_grad():
        for path, part in plain.named_modules():
            for name, tensor in part.named_parameters(recurse=False):
                tensor.copy_(getattr(module.get_submodule(path), name))
    assert torch.allclose(module(x), plain.eval()(x), atol=1e-5)
    return module, plain, x


def slots_of(norm: str) -> dict[str, list[int]]:
    """The same slots of the same layers, by the names that the tensors have."""
    kept = {"first": list(range(0, 16, 2)), "up": list(range(3, 15)), "wide": [1, 2, 3, 5, 8, 13]}
    axes = {"up": 1}
    tails = {
        "weight norm": "parametrizations.weight.original1", "weight norm of all": "parametrizations.weight.original1",
        "weight norm, hook": "weight_v", "spectral norm": "parametrizations.weight.original",
        "spectral norm, hook": "weight_orig", "": "weight",
    }  # fmt: skip
    return {f"{layer}.{tails[norm]}:{axes.get(layer, 0)}": slots for layer, slots in kept.items()}


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_left_is_that_of_the_plain_module(norm: str, form: str) -> None:
    module, plain, x = made(norm)
    before = copy.deepcopy(module.state_dict())
    small = st.prune(module, x, ratio=0, slots=slots_of(norm), form=form, align=1)
    wanted = st.prune(plain, x, ratio=0, slots=slots_of(""), form="module", align=1)
    assert torch.allclose(small.eval()(x), wanted.eval()(x), atol=1e-5)
    plans = [st.plan_of(small), st.plan_of(wanted)]
    assert plans[0].removed == pytest.approx(plans[1].removed)
    assert plans[0].removed > 0.4
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
def test_as_many_groups_are_free_as_in_the_plain_module(norm: str) -> None:
    module, plain, x = made(norm)
    sizes = [sorted(g.size for g in st.groups_of(one, x) if g.is_free) for one in (module, plain)]
    assert sizes[0] == sizes[1] == [16, 20, 24]


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_same_slots_go_as_of_the_plain_module(norm: str, criterion: str) -> None:
    """Vectors alone have lengths of any size; what counts is the weight that they make."""
    module, plain, x = made(norm)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if "weight norm" in norm and name.endswith(("original1", "_v")):
                tensor.mul_(torch.linspace(0.5, 3, tensor.shape[0]).reshape(-1, *[1] * (tensor.dim() - 1)))
        module(x)
        for path, part in plain.named_modules():
            for name, tensor in part.named_parameters(recurse=False):
                tensor.copy_(getattr(module.get_submodule(path), name))
    plans = [st.plan_of(st.prune(one, x, ratio=0.5, align=1, criterion=criterion)) for one in (module, plain)]
    kept = [{row["size"]: row["slots"] for row in plan.groups if row["pinned"] is None} for plan in plans]
    assert kept[0] == kept[1]
    assert all(0 < len(slots) < size for size, slots in kept[0].items())


def test_weights_in_bfloat16_are_scored_too() -> None:
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 12)), nn.ReLU(), nn.Linear(12, 2))
    found = study(module.to(torch.bfloat16), torch.ones(3, 6, dtype=torch.bfloat16), align=1)
    masks, _ = decide(found, 0.5)
    assert [int(mask.sum()) for mask in masks.values()] == [6]


@pytest.mark.parametrize("norm", NORMS)
def test_the_smaller_module_trains_on_with_its_norms(norm: str) -> None:
    module, _, x = made(norm)
    small: Any = st.prune(module, x, ratio=0.5, form="module", align=1)
    assert small.first.out_channels < 16
    assert parametrize.is_parametrized(small.first) == ("hook" not in norm)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    small.train()
    losses = []
    for _ in range(8):
        loss = (small(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_plan_makes_the_same_of_the_dense_module_again(norm: str) -> None:
    module, _, x = made(norm)
    small = st.prune(module, x, ratio=0.5, form="module", align=1)
    plan = st.TorchPlan.of_json(st.plan_of(small).to_json())
    again = st.apply_plan(module, plan)
    assert torch.allclose(small.eval()(x), again.eval()(x), atol=1e-5)
    sizes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (small, again)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("norm", ["weight norm", "weight norm, hook", "spectral norm"])
def test_masks_in_training_leave_a_module_that_is_finite(norm: str) -> None:
    module, _, x = made(norm)
    pruner = st.Pruner(module, x, ratio=0.5, steps=6, every=2, align=1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module.train()
    for _ in range(6):
        loss = (module(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
    assert torch.isfinite(module(x)).all()
    module.eval()
    masked = module(x)
    small = pruner.finish().eval()
    assert torch.isfinite(small(x)).all()
    assert torch.allclose(small(x), masked, atol=1e-4)


def test_an_orthogonal_weight_loses_rows_of_what_it_begins_from() -> None:
    """Its rotation stays whole; slots of what is rotated may go. `prune` holds it against the dense module."""
    first = parametrizations.orthogonal(nn.Linear(6, 12))
    module = nn.Sequential(first, nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 2)).eval()
    x = torch.randn(3, 6)
    assert {g.size: g.is_free for g in st.groups_of(module, x)}[6] is False
    small: Any = st.prune(module, x, ratio=0.5, form="module", align=1)
    assert small[0].weight.shape[0] < 12

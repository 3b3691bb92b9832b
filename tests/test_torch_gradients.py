"""Gradient criteria: what is not read has no score, and each has the identity that its definition promises."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import InputError  # noqa: E402
from sparsecc.torch.pruning import Loss, Study, fresh_scores, study  # noqa: E402
from sparsecc.torch.scores.gradients import GRADIENT_CRITERIA  # noqa: E402

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
OUTPUTS = ("ntk", "ntk-adam", "lrp", "lrp_alpha", "lrp_epsilon")
"""Criteria whose `loss` gives the outputs."""


def network(activation: type[nn.Module] = nn.Tanh, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=bias), activation(), nn.Linear(8, 3, bias=bias))


def objective(criterion: str) -> Loss:
    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        found: Tensor = module(batch)
        return found if criterion in OUTPUTS else (found - 1).square().mean()

    return loss


def scores(found: Study, criterion: str, batches: list[Tensor]) -> np.ndarray:
    made = fresh_scores(found, criterion, batches, objective(criterion))
    assert made is not None
    (only,) = made.values()
    return only


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "snip", "lrp", "lrp_alpha", "lrp_epsilon"])
def test_slots_that_nothing_reads_go_first(criterion: str) -> None:
    """A channel whose output is not read has no effect, whatever its weights."""
    module = network()
    with torch.no_grad():
        module.get_parameter("0.weight")[[1, 4, 6]] = 50.0
        module.get_parameter("2.weight")[:, [1, 4, 6]] = 0.0
    loss = objective(criterion)
    found = scores(study(module, X, criterion=criterion), criterion, [X, -X])
    assert np.ptp(found[[1, 4, 6]]) < 1e-9
    assert found[[1, 4, 6]].max() < np.delete(found, [1, 4, 6]).min()
    small = st.prune(module, X, ratio=0.375, align=1, criterion=criterion, batches=[X, -X], loss=loss)
    assert st.plan_of(small).tensors["0.weight"][0].tolist() == [0, 2, 3, 5, 7]
    by_weight = st.prune(module, X, ratio=0.375, align=1, criterion="l2")
    assert st.plan_of(by_weight).tensors["0.weight"][0].tolist() != [0, 2, 3, 5, 7]


def test_second_order_is_exact_where_the_loss_is_quadratic_in_one_weight() -> None:
    """One weight a slot, a loss that is a sum of squares of them: the score is the change of the loss."""
    module = nn.Sequential(nn.Linear(1, 5, bias=False), nn.Linear(5, 5, bias=False))
    with torch.no_grad():
        module.get_parameter("1.weight").copy_(torch.eye(5))
    module.get_parameter("1.weight").requires_grad_(False)
    target = torch.tensor([0.3, -1.0, 2.0, 0.1, -0.4])

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        found: Tensor = (m(batch) - target).square().sum()
        return found

    made = fresh_scores(study(module, torch.ones(2, 1)), "taylor2", [torch.ones(1, 1)], loss)
    assert made is not None
    with torch.no_grad():
        weights = module.get_parameter("0.weight").ravel()
        change = (target.square() - (weights - target).square()).abs()
    (only,) = made.values()
    assert np.allclose(only, change.numpy(), atol=1e-6)


def test_gradient_flow_is_the_slope_of_the_squared_gradient() -> None:
    """GraSP of a slot is half of what |g|² changes by when all it owns is scaled."""
    module, loss = network(), objective("grasp")
    found = study(module, X)
    made = scores(found, "grasp", [X])

    def flow_at(slot: int, scale: float) -> float:
        other = network()
        with torch.no_grad():
            for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
                other.get_parameter(name).select(axis, slot).mul_(scale)
        grads = torch.autograd.grad(loss(other, X), list(other.parameters()))
        return sum(float(g.double().square().sum()) for g in grads)

    slopes = np.array([(flow_at(u, 1.01) - flow_at(u, 0.99)) / 0.02 / 2 for u in range(8)])
    shift = made[0] - slopes[0]  # scores are lifted so that none is negative
    assert np.allclose(made - shift, slopes, rtol=0.02, atol=2e-3 * np.abs(slopes).max())


def test_relevance_is_conserved_from_layer_to_layer() -> None:
    """Without biases, over ReLUs, what enters a unit leaves it: both of its layers say the same shares."""
    module = network(nn.ReLU, bias=False)
    made = scores(study(module, X), "lrp", [X])
    with torch.no_grad():
        hidden = torch.relu(X @ module.get_parameter("0.weight").T)
        winner = module(X).argmax(-1)
        relevance = (hidden * module.get_parameter("2.weight")[winner]).sum(0).abs()
    wanted = 2 * relevance / relevance.sum()
    assert np.allclose(made, wanted.numpy(), atol=1e-4)


def test_the_tangent_kernel_is_that_of_the_outputs() -> None:
    """A linear model's kernel does not depend on its weights but through the other layer's: |w·∂trace/∂w|."""
    module = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 1, bias=False))
    made = scores(study(module, X[:2]), "ntk", [X[:1]])
    first, second = (p.detach() for p in module.parameters())
    length = X[0].square().sum()
    # trace = |second|²·|x|² + |first x|², and the score holds half of w·∂trace/∂w of both layers
    by_second = second.square().ravel() * length
    by_first = (first * X[0] * (first @ X[0])[:, None]).abs().sum(1)
    assert np.allclose(made, (by_second + by_first).numpy(), rtol=1e-4)


@pytest.mark.parametrize("criterion", sorted(GRADIENT_CRITERIA))
def test_every_criterion_prunes_and_leaves_the_module_as_it_was(criterion: str) -> None:
    module = network()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    loss = objective(criterion)
    small = st.prune(module, X, ratio=0.4, align=1, criterion=criterion, batches=[X], loss=loss)
    assert st.plan_of(small).removed >= 0.4
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_missing_pieces_are_named() -> None:
    with pytest.raises(InputError, match="give batches=… and loss="):
        st.prune(network(), X, criterion="grasp")
    with pytest.raises(InputError, match="batches gave nothing"):
        st.prune(network(), X, criterion="snip", batches=[], loss=objective("snip"))

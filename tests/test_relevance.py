"""Relevance by the rules of LRP: outputs stay what they are, and what enters a layer leaves it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

from sparsecc.criteria.gradient import Gradients  # noqa: E402
from sparsecc.data.samples import Samples  # noqa: E402
from sparsecc.graph.groups import find_groups  # noqa: E402
from sparsecc.torch.pruning import fresh_scores, study  # noqa: E402
from sparsecc.torch.scores.relevance import ALPHA, EPSILON, EPSILONS, Relevance, Rules  # noqa: E402
from tests.repair_models import analysed, normal  # noqa: E402

BOTH = pytest.mark.parametrize("rules", [ALPHA, EPSILONS], ids=["alpha", "epsilon"])


class Residual(nn.Module):
    """Convolutions, a residual sum, both kinds of pool, a product of two branches and a matrix product: all of ReLUs
    or of what is linear."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=bias)
        self.gate = nn.Linear(8, 8, bias=bias)
        self.last = nn.Linear(8, 5, bias=bias)
        self.mixing = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = torch.max_pool2d(torch.relu(h + self.second(h)), 2)
        flat = torch.flatten(torch.nn.functional.adaptive_avg_pool2d(h, 1), 1)
        flat = flat * torch.relu(self.gate(flat)) @ self.mixing.T
        out: Tensor = self.last(flat)
        return out


def images() -> Tensor:
    drawn: Tensor = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn.requires_grad_()
    return drawn


def relevance(module: nn.Module, x: Tensor, rules: Rules) -> tuple[float, float]:
    """What starts at the winning outputs, and what arrives at the input."""
    with Relevance(rules):
        value = module(x).amax(-1).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), float((x * gradient).detach().sum())


def test_no_relevance_is_lost_without_biases() -> None:
    begun, arrived = relevance(Residual(), images(), ALPHA)
    assert arrived == pytest.approx(begun, rel=1e-4)


def test_biases_take_none_of_it_by_alpha() -> None:
    module = Residual(bias=True)
    x = images()
    plain = module(x).amax(-1).sum()
    (gradient,) = torch.autograd.grad(plain, x)
    assert float((x * gradient).detach().sum()) != pytest.approx(float(plain.detach()), rel=0.01)
    begun, arrived = relevance(module, x, ALPHA)
    assert arrived == pytest.approx(begun, rel=1e-3)  # all but where nothing else contributes


def test_a_bias_that_is_added_apart_takes_none_either() -> None:
    w, b, x = nn.Parameter(torch.rand(3, 4)), nn.Parameter(torch.rand(4)), images()[:, :, 0, 0]
    with Relevance(ALPHA):
        value = (x @ w + b).sum()
    (gradient,) = torch.autograd.grad(value, x)
    assert float((x * gradient).detach().sum()) == pytest.approx(float(value.detach()), rel=1e-4)


@BOTH
@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid])
def test_curved_functions_pass_all_on(activation: type[nn.Module], rules: Rules) -> None:
    begun, arrived = relevance(activation(), images(), rules)
    assert arrived == pytest.approx(begun, rel=1e-4)


@BOTH
def test_outputs_are_what_they_were(rules: Rules) -> None:
    module, x = Residual(bias=True), images()
    with Relevance(rules):
        found = module(x)
    assert torch.equal(found, module(x))


def test_alpha_is_its_formula() -> None:
    """R_i = x_i Σ_j w⁺_ij R_j / Σ_i' x_i' w⁺_i'j, from the winner down to the hidden units."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    x = torch.rand(1, 6)
    with torch.no_grad():
        hidden = torch.relu(x @ module.get_parameter("0.weight").T)[0]
        parts = hidden * module.get_parameter("2.weight")[int(module(x).argmax())].clamp(min=0)
        wanted = 2 * parts / parts.sum()
    made = fresh_scores(study(module, torch.rand(4, 6)), "lrp_alpha", [x], lambda m, b: m(b))
    assert made is not None
    np.testing.assert_allclose(next(iter(made.values())), wanted.numpy(), atol=1e-5)


def test_epsilon_is_its_formula() -> None:
    """R_i = x_i Σ_j w_ij R_j / (z_j + ε sign z_j)."""
    x, w = images()[:, :, 0, 0], torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    weight = nn.Parameter(w)
    with Relevance(EPSILONS):
        value = torch.nn.functional.linear(x, weight)
    begun = torch.rand(4, 4)
    (gradient,) = torch.autograd.grad(value, x, begun / value.detach())
    z = x @ w.T
    size = EPSILON * z.square().mean().sqrt()
    wanted = x * ((begun / (z + size * z.sign())) @ w)
    torch.testing.assert_close(x * gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("criterion", "bias"), [("lrp_alpha", True), ("lrp_epsilon", False)])
def test_a_graph_and_a_module_say_the_same(criterion: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias))
    first, second = ("x, w1, b1", "h, w2, b2") if bias else ("x, w1", "h, w2")
    nodes = f"a = Gemm<transB=1>({first}) h = Relu(a) y = Gemm<transB=1>({second})"
    names = ("w1", "b1", "w2", "b2") if bias else ("w1", "w2")
    arrays = dict(zip(names, (p.detach().numpy() for p in module.parameters()), strict=True))
    data = normal(4, 6, seed=5)
    analysis = analysed(f"g (float[n, 6] x) => (float[n, 3] y) {{ {nodes} }}", arrays)
    (group,) = [g for g in find_groups(analysis) if g.is_free]
    graph = Gradients(analysis, Samples(({"x": data},), True), 0).of(criterion)[group.atom]
    batch = torch.from_numpy(data)
    made = fresh_scores(study(module, batch), criterion, [batch], lambda m, b: m(b))
    assert made is not None
    np.testing.assert_allclose(graph, next(iter(made.values())), rtol=1e-4, atol=1e-6)

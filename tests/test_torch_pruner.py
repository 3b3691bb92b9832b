"""Gradual pruning in the user's own loop: schedules, masks that hold, a penalty that shrinks, a finish."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import InputError  # noqa: E402
from sparsecc.torch.pruner import SCHEDULES, Pruner  # noqa: E402


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(32) % 3


def test_schedules_start_and_end_where_they_should() -> None:
    assert {f(1.0) for f in SCHEDULES.values()} == {1.0}
    assert [SCHEDULES["iterative"](d) for d in (0.19, 0.2, 0.59, 0.6)] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert SCHEDULES["at-end"](0.99) == 0.0
    assert SCHEDULES["linear"](0.25) == 0.25
    assert SCHEDULES["cubic"](0.5) == 0.875
    assert SCHEDULES["one-shot"](0.0) == 1.0


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_masks_hold_and_finish_is_exact(schedule: str) -> None:
    model = module()
    pruner = Pruner(model, X, ratio=0.5, steps=12, every=3, schedule=schedule, align=1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    dead = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(X), Y) + 1e-3 * pruner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
        dead.append(int((model.get_parameter("2.weight").abs().sum(1) == 0).sum()))
    assert dead[-1] > max(dead[0], 1) or schedule == "one-shot"
    assert dead[-1] == dead[-3] > 0
    assert (dead[-5] == 0) == (schedule == "at-end")
    assert (dead[0] > 0) == (schedule == "one-shot")
    masked = model(X).detach()
    small = pruner.finish()
    assert st.plan_of(small).removed >= 0.5
    assert torch.allclose(small(X), masked, atol=1e-5)


def test_rewinding_brings_early_weights_back_under_the_new_masks() -> None:
    model = module()
    pruner = Pruner(model, X, ratio=0.5, steps=10, every=1, schedule="iterative", rewind=1, align=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    early: Tensor | None = None
    for step in range(1, 11):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        trained = model.get_parameter("0.weight").detach().clone()
        pruner.step()
        now = model.get_parameter("0.weight").detach()
        early = now.clone() if early is None else early
        alive = now.abs().sum(1) > 0
        returned = bool(torch.equal(now[alive], early[alive]))
        assert returned == (step in (1, 2, 4, 6, 8, 10)), step
        assert returned or torch.equal(now[alive], trained[alive])
    assert 0 < int(alive.sum()) < 16


def spread(model: nn.Module) -> Tensor:
    """Of the first hidden layer: the norm of every slot's own weights."""
    found: Tensor = model.get_parameter("0.weight").detach().norm(dim=1)
    return found


def descend(model: nn.Module, pruner: Pruner, rate: float, steps: int = 30) -> None:
    for _ in range(steps):
        pruner.done += 1
        grads = torch.autograd.grad(pruner.penalty(), list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                if grad is not None:
                    parameter.sub_(rate * grad)


def test_growing_regularisation_shrinks_what_will_go_and_nothing_else() -> None:
    model = module()
    pruner = Pruner(model, X, ratio=0.5, steps=30, schedule="at-end", regulariser="growing", align=1)
    before = model.get_parameter("2.bias").detach().clone()
    descend(model, pruner, 300.0)
    after = model.get_parameter("2.bias").detach()
    small = pruner.finish()
    kept = st.plan_of(small).tensors["2.bias"][0].tolist()
    gone = [i for i in range(16) if i not in kept]
    assert torch.equal(after[kept], before[kept])
    assert (after[gone].abs() < 0.2 * before[gone].abs()).all()


def test_polarization_parts_the_slots() -> None:
    model = module()
    before = spread(model)
    pruner = Pruner(model, X, ratio=0.5, steps=30, regulariser="polarization", align=1)
    descend(model, pruner, 20.0)
    after = spread(model)
    small, large = before.argsort()[:4], before.argsort()[-4:]
    assert (after[small] / before[small]).mean() < 0.6
    assert (after[large] / before[large]).mean() > (after[small] / before[small]).mean() + 0.3


def test_the_penalty_draws_whole_slots_to_zero() -> None:
    model = module()
    pruner = Pruner(model, X, align=1)

    def norms() -> Tensor:
        found: Tensor = (
            model.get_parameter("0.weight").detach().square().sum(1)
            + model.get_parameter("0.bias").detach().square()
        )
        return found + model.get_parameter("2.weight").detach().square().sum(0)

    before = norms()
    pruner.penalty().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    assert (norms() < before).all()


def test_wrong_schedules_are_named() -> None:
    with pytest.raises(InputError, match="choose from one-shot, linear, cubic"):
        Pruner(module(), X, schedule="sudden")
    with pytest.raises(InputError, match="choose from lasso, growing, polarization"):
        Pruner(module(), X, regulariser="none")
    with pytest.raises(InputError, match="at least 1"):
        Pruner(module(), X, steps=0)

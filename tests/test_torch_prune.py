"""torch in, training on: modules get smaller, compute what they should, and train, compile and export on."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import GoalError, InputError  # noqa: E402
from sparsecc.torch.graph_form import PrunedGraph  # noqa: E402
from tests.zoo import ZOO  # noqa: E402

SIZES_HELD = ("squeezenet", "lstm_classifier")
"""Entries of the zoo that keep their own modules."""
SIZES_BAKED = ("torch_multihead", "vit_fused_chunk")
"""Entries whose forward holds sizes that only the graph form can change."""


class Net(nn.Module):
    """Convolutions with a residual, a group convolution, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.back = nn.Conv2d(32, 16, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.wide(x)))
        result: Tensor = self.head(self.drop(x.mean((2, 3))))
        return result


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def images(count: int = 4) -> Tensor:
    made: Tensor = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return made


def elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def train(module: nn.Module, steps: int = 8) -> list[float]:
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), 2e-2)
    x, y = images(16), torch.arange(16) % 5
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", SIZES_HELD)
def test_own_modules_stay_where_their_forward_allows_it(name: str) -> None:
    model = ZOO[name].build()
    small = st.prune(model.module, model.example(), ratio=0.3, align=1)
    plan = st.plan_of(small)
    assert (plan.form, type(small)) == ("module", type(model.module))
    assert plan.error <= 1e-4
    assert plan.removed >= 0.3
    assert elements(small) < elements(model.module)
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in model.module.named_parameters()]
    for inputs in model.alternatives().values():
        assert all(torch.isfinite(o).all() for o in st_outputs(small, inputs))


def st_outputs(module: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        found = module(*inputs)
    return [found] if isinstance(found, Tensor) else [t for t in found if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", SIZES_BAKED)
def test_hard_coded_sizes_give_the_graph_form(name: str) -> None:
    model = ZOO[name].build()
    small = st.prune(model.module, model.example(), ratio=0.3, align=1, form="graph")
    plan = st.plan_of(small)
    assert isinstance(small, PrunedGraph)
    assert plan.error <= 1e-4
    assert plan.removed >= 0.3
    dense = {n for n, _ in model.module.named_parameters()}
    assert {n for n, _ in small.named_parameters()} <= dense
    assert st_outputs(small, model.example(batch=3))[0].shape[0] == 3 or name == "torch_multihead"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_entry_of_the_zoo_is_pruned_rightly(name: str) -> None:
    model = ZOO[name].build()
    small = st.prune(model.module, model.example(), ratio=0.2, align=1)
    assert st.plan_of(small).error <= 1e-4
    assert elements(small) < elements(model.module)


def test_the_masked_dense_module_is_the_measure() -> None:
    """Zero the removed outputs of the dense layers by hand: the pruned module must compute the same."""
    dense = net().eval()
    small = st.prune(dense, images(), ratio=0.4, align=1)
    masked = copy.deepcopy(dense)
    plan = st.plan_of(small)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            for axis, slots in plan.tensors.get(name, {}).items():
                gone = torch.ones(parameter.shape[axis], dtype=torch.bool)
                gone[torch.from_numpy(slots)] = False
                parameter.index_fill_(axis, torch.nonzero(gone).ravel(), 0.0)
    x = images(6)
    assert torch.allclose(small.eval()(x), masked(x), atol=1e-5)
    assert not torch.allclose(small(x), dense(x), atol=1e-3)


def test_attributes_say_the_new_sizes() -> None:
    small: Any = st.prune(net(), images(), ratio=0.5, align=1)
    assert small.stem.out_channels == small.stem.weight.shape[0] == small.norm.num_features < 16
    assert small.wide.groups * small.wide.weight.shape[1] == small.wide.in_channels == small.stem.out_channels
    assert small.head.in_features == small.head.weight.shape[1] == small.back.out_channels
    assert small.head.out_features == 5


def test_in_place_changes_the_module_itself() -> None:
    module = net()
    before = elements(module)
    assert st.prune(module, images(), ratio=0.5, align=1, inplace=True) is module
    assert elements(module) < before


@pytest.mark.parametrize("form", ["module", "graph"])
def test_it_trains_on(form: str) -> None:
    small = st.prune(net(), images(), ratio=0.5, align=1, form=form)
    losses = train(small, 60)
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    small.eval()
    assert torch.equal(small(images()), small(images()))
    small.train()
    assert not torch.equal(small(images()), small(images()))


@pytest.mark.parametrize("form", ["module", "graph"])
def test_amp_and_export_keep_working(form: str) -> None:
    small = st.prune(net(), images(), ratio=0.5, align=1, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = small(images()).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())
    exported = torch.export.export(small.eval(), (images(),)).module()
    assert torch.allclose(exported(images()), small(images()), atol=1e-5)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_compile_keeps_working(form: str) -> None:
    small = st.prune(net(), images(), ratio=0.5, align=1, form=form).eval()
    compiled = torch.compile(small, backend="aot_eager")
    assert torch.allclose(compiled(images()), small(images()), atol=1e-5)


def test_optimizer_state_follows_the_kept_slots() -> None:
    dense = net()
    optimizer = torch.optim.AdamW(dense.parameters(), 1e-2)
    dense(images()).square().mean().backward()
    optimizer.step()
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in dense.named_parameters()}
    small = st.prune(dense, images(), ratio=0.5, align=1)
    st.prune_optimizer(optimizer, dense, small)
    wanted = st.prune_state_dict(moments, small)
    for name, parameter in small.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], wanted[name])
        assert optimizer.state[parameter]["step"] == 1
    small(images()).square().mean().backward()
    optimizer.step()


def test_state_dicts_of_the_dense_module_fit() -> None:
    dense = net()
    small = st.prune(dense, images(), ratio=0.5, align=1)
    small.load_state_dict(st.prune_state_dict(dense.state_dict(), small))
    with pytest.raises(InputError, match="not that of the dense module"):
        st.prune_state_dict(small.state_dict(), small)


def test_tied_parameters_stay_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 16)
            self.hidden = nn.Linear(16, 16)
            self.out = nn.Linear(16, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.hidden(self.embed(x)))
            return found

    tokens = torch.arange(6).reshape(2, 3)
    small: Any = st.prune(Tied(), tokens, ratio=0.4, align=1)
    assert small.out.weight is small.embed.weight
    assert small.out.weight.shape[1] < 16


def test_unknown_operators_pin_with_a_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.c(self.b(torch.special.i0(self.a(x))))
            return found

    groups = st.groups_of(Odd(), torch.randn(4, 8))
    reasons = {m[0]: g.pinned for g in groups for m in g.members}
    assert "no rule for aten.special_i0" in str(reasons["a.bias"])
    assert reasons["b.bias"] is None


def test_wrong_calls_are_told_in_one_line() -> None:
    with pytest.raises(InputError, match="unknown form"):
        st.prune(net(), images(), form="tree")
    with pytest.raises(InputError, match="unknown criterion"):
        st.prune(net(), images(), criterion="magic")
    with pytest.raises(InputError, match="needs gradients"):
        st.prune(net(), images(), criterion="taylor")
    with pytest.raises(GoalError, match="lower the ratio"):
        st.prune(net(), images(), ratio=0.999)
    with pytest.raises(InputError, match="carries no plan"):
        st.plan_of(net())


def test_without_torch_the_import_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from sparsecc.errors import UnavailableError\n"
        "try:\n    import sparsecc.torch\n"
        "except UnavailableError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "sparsecc.torch needs torch: run pip install 'sparsecc[torch]'"


class Projected(nn.Module):
    """An LSTM whose hidden state is a projection of its cells."""

    def __init__(self, layers: int, *, both: bool, bias: bool) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 16, layers, proj_size=10, bidirectional=both, bias=bias, batch_first=True)
        self.out = nn.Linear(20 if both else 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.cell(x)[0])
        return result


@pytest.mark.parametrize(("layers", "both", "bias"), [(1, False, True), (2, True, True), (2, False, False)])
def test_cells_and_projections_of_an_lstm_go_apart(layers: int, both: bool, bias: bool) -> None:
    torch.manual_seed(0)
    small = st.prune(Projected(layers, both=both, bias=bias), torch.randn(2, 5, 6), ratio=0.5, align=1)
    plan = st.plan_of(small)
    assert plan.form == "module"
    cell = small.get_submodule("cell")
    sizes = {row["size"]: row["kept"] for row in plan.groups}
    assert {16, 10} <= set(sizes)
    assert cell.hidden_size == sizes[16]
    assert cell.proj_size == sizes[10]


def test_a_ratio_out_of_reach_names_what_is_largest_of_what_stays() -> None:
    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.big, self.last = nn.Linear(6, 8), nn.Linear(8, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(torch.cumsum(self.big(self.first(x).relu()), 1))
            return result

    with pytest.raises(GoalError, match=r"can go, not 90.0%; 'big.weight' stays \(.*cumsum.*\): lower"):
        st.prune(Rolled(), torch.randn(2, 6), ratio=0.9)

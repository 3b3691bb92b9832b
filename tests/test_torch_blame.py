"""Whose fault it is where something does not run in torch: the user's, or ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import GoalError, InputError, InternalError  # noqa: E402
from sparsecc.torch.graph_form import graph_form  # noqa: E402
from sparsecc.torch.onnx_ops.call import OPS  # noqa: E402
from sparsecc.torch.rules import table  # noqa: E402
from tests.repair_models import normal  # noqa: E402
from tests.test_loading import MLP, saved  # noqa: E402


class Two(nn.Module):
    """Two linear layers; `wild` adds numbers that differ from call to call, `decides` asks what the values are."""

    def __init__(self, *, wild: bool = False, decides: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)  # of some weights every unit that stays is off at X
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.wild, self.decides = wild, decides

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if self.wild:
            hidden = hidden + torch.randn_like(hidden)
        if self.decides and float(hidden.sum()) > 0:
            hidden = 2 * hidden
        result: Tensor = self.second(hidden)
        return result


X = torch.ones(2, 6)


def test_inputs_that_the_module_does_not_take_are_the_users() -> None:
    with pytest.raises(
        InputError, match=r"Two does not run on these example inputs .*inputs that its forward takes"
    ):
        st.prune(Two(), torch.ones(2, 5))


def test_so_are_inputs_that_export_takes_and_the_module_does_not() -> None:
    """torch.export looks at no types: it follows integers into a linear layer of floats."""
    for form in ("auto", "graph"):
        with pytest.raises(InputError, match=r"Two does not run on these example inputs .*same dtype"):
            st.prune(Two(), torch.ones(2, 6, dtype=torch.int64), form=form)


def test_what_export_does_not_follow_is_told_as_such() -> None:
    with pytest.raises(InputError, match=r"Two: torch\.export cannot follow it"):
        st.prune(Two(decides=True), X)


@pytest.mark.parametrize("form", ["auto", "module", "graph"])
def test_a_module_that_never_answers_the_same_is_the_users(form: str) -> None:
    with pytest.raises(InputError, match="other outputs each time"):
        st.prune(Two(wild=True), X, form=form, align=1)


def test_a_module_that_answers_nan_is_told_so_and_infinities_are_answers() -> None:
    broken, masked = Two(), nn.Sequential(Two(), nn.Threshold(9.0, -math.inf))
    with torch.no_grad():
        broken.second.bias[0] = math.nan
    with pytest.raises(InputError, match="Two answers NaN on these example inputs"):
        st.prune(broken, X, align=1)
    assert st.plan_of(st.prune(masked, X, align=1)).error == 0


def test_a_wrong_graph_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slicing that leaves the slots in another order than the masks say."""

    def wrong(program: Any, tensors: Any, changes: Any) -> Any:
        turned = {axis: kept[::-1].copy() for axis, kept in tensors["second.weight"].items()}
        return graph_form(program, {**tensors, "second.weight": turned}, changes)

    monkeypatch.setattr("sparsecc.torch.pruning.graph_form", wrong)
    with pytest.raises(InternalError, match=r"Two: the pruned graph is wrong .*please report it"):
        st.prune(Two(), X, form="graph", align=1)


def test_a_rule_that_raises_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(site: Any) -> None:
        raise KeyError("nobody knows")

    monkeypatch.setitem(table.ATEN, "relu", table.AtenRule(follow))
    with pytest.raises(
        InternalError, match=r"Two runs, what was made of it does not .*nobody knows.*please report"
    ):
        st.prune(Two(), X)


def test_a_module_in_training_is_asked_as_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch norm over one sample raises while it trains, and learns from what it sees: neither says whose fault it
    is, nor may the question change the module."""

    def follow(site: Any) -> None:
        raise KeyError("nobody knows")

    monkeypatch.setitem(table.ATEN, "relu", table.AtenRule(follow))
    module = nn.Sequential(nn.BatchNorm1d(6), Two(), nn.BatchNorm1d(3)).train()
    with pytest.raises(InternalError, match=r"runs, what was made of it does not .*nobody knows"):
        st.prune(module, torch.ones(1, 6))
    assert module.training
    assert module[2].training
    assert module[0].num_batches_tracked == 0


def test_a_forward_with_sizes_written_in_is_the_users_to_choose() -> None:
    class Fixed(Two):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(torch.relu(self.first(x)).reshape(-1, 8))
            return result

    with pytest.raises(GoalError, match="its own forward does not allow these sizes"):
        st.prune(Fixed(), X, form="module", align=1)


def test_an_onnx_file_that_runs_and_does_not_in_torch_is_our_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "m.onnx", MLP, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    module = st.from_onnx(path)
    with pytest.raises(InputError, match="nor does the file in ONNX Runtime: give inputs"):
        module(np.ones((2, 5), np.float32))

    with pytest.raises(InputError, match="nor does the file in ONNX Runtime: give inputs"):
        module(torch.ones(2, 6, dtype=torch.bfloat16))

    def wrong(call: Any, x: Tensor) -> Tensor:
        return x.reshape(3, 7)

    monkeypatch.setitem(OPS, "Relu", wrong)
    with pytest.raises(
        InternalError, match=r"Relu .*does not run in torch .*the file does.*please report it"
    ):
        module(np.ones((2, 6), np.float32))

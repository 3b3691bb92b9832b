"""Convolutions with weights of their own for each sample (StyleGAN2), in torch: as many groups as samples."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import sparsecc.torch as st  # noqa: E402


class Modulated(nn.Module):
    """StyleGAN2's convolution (Karras et al., 2020): modulated by the style, demodulated; `up` transposes it."""

    def __init__(self, inputs: int, outputs: int, *, up: bool = False) -> None:
        super().__init__()
        self.outputs, self.up = outputs, up
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3) / 8)
        self.modulation = nn.Linear(6, inputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weight = self.weight * self.modulation(style).view(batch, 1, channels, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        joined = x.reshape(1, batch * channels, height, width)
        if self.up:
            weight = weight.transpose(1, 2).reshape(batch * channels, self.outputs, 3, 3)
            out = functional.conv_transpose2d(joined, weight, stride=2, groups=batch)
        else:
            weight = weight.reshape(batch * self.outputs, channels, 3, 3)
            out = functional.conv2d(joined, weight, padding=1, groups=batch)
        result: Tensor = out.view(batch, self.outputs, *out.shape[2:])
        return result


class Generator(nn.Module):
    """A constant, two modulated convolutions of which one doubles the picture, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.first, self.second = Modulated(8, 12), Modulated(12, 10, up=True)
        self.bias = nn.Parameter(torch.randn(1, 12, 1, 1))
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, style: Tensor) -> Tensor:
        x = self.constant.repeat(style.shape[0], 1, 1, 1)
        x = functional.leaky_relu(self.first(x, style) + self.bias, 0.2)
        result: Tensor = self.last(functional.leaky_relu(self.second(x, style), 0.2))
        return result


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_torch_generator_loses_channels_and_keeps_a_batch_of_any_size(form: str) -> None:
    torch.manual_seed(0)
    net, style = Generator(), torch.randn(2, 6)
    free = {g.size: {name for name, _ in g.members} for g in st.groups_of(net, style) if g.is_free}
    assert {8, 10, 12} == set(free)
    assert free[12] == {
        "first.weight",
        "bias",
        "second.weight",
        "second.modulation.weight",
        "second.modulation.bias",
    }
    small = st.prune(net, style, ratio=0.5, align=1, form=form)
    plan = st.plan_of(small)
    assert plan.error < 1e-5
    assert all(row["kept"] < row["size"] for row in plan.groups if row["pinned"] is None)
    answers = [small(torch.ones(batch, 6)).detach().numpy() for batch in (1, 7)]
    assert np.allclose(answers[1][3], answers[0][0], atol=1e-5)


class Scaled(nn.Module):
    """Each sample has weights of its own for `each` channels of a group: as many groups as samples have such."""

    def __init__(self, each: int) -> None:
        super().__init__()
        self.each = each
        self.first, self.style, self.last = nn.Conv2d(3, 16, 1), nn.Linear(6, 16 * each), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, size = x.shape[0], x.shape[2:]
        joined = self.first(x).reshape(1, batch * 16, *size)
        weight = self.style(style).view(batch * 16, self.each, 1, 1)
        out = functional.conv2d(joined, weight, groups=batch * 16 // self.each)
        result: Tensor = self.last(torch.relu(out).view(batch, 16, *size))
        return result


@pytest.mark.parametrize("each", [1, 2])
def test_channels_that_are_groups_of_each_sample_go(each: int) -> None:
    torch.manual_seed(0)
    net, x, style = Scaled(each), torch.randn(2, 3, 4, 4), torch.randn(2, 6)
    small: nn.Module = st.prune(net, (x, style), ratio=0.5, align=1, form="graph")
    assert st.plan_of(small).error < 1e-5
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    whole = small(x, style)
    assert torch.allclose(small(x[1:], style[1:]), whole[1:], atol=1e-5)

"""Building blocks that several families share."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn


def conv_norm(
    into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, when given, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Classify(nn.Module):
    """Backbone, global average pool, linear head."""

    def __init__(self, body: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.flatten(self.pool(self.body(x)), 1))
        return out


class Residual(nn.Module):
    """act(branch(x) + shortcut(x)); the shortcut is the identity when none is given."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut if shortcut is not None else nn.Identity()
        self.act = act if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means."""

    def __init__(self, channels: int, hidden: int, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = gate if gate is not None else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        gates: Tensor = self.gate(self.expand(torch.relu(self.reduce(means))))
        return x * gates


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an NCHW tensor, by way of NHWC."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RmsNorm(nn.Module):
    """The last axis divided by its root mean square, as torch's own, which not every exporter takes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Select(nn.Module):
    """Calls a `transformers` model with positional inputs and returns the named fields of what it gives."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], fields: tuple[str, ...], **fixed: object
    ) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.fields = fields
        self.fixed = fixed

    def forward(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, (a, b, c), strict=False))
        result = self.model(**given, **self.fixed)
        return tuple(getattr(result, name) for name in self.fields)


def made(name: str, *arguments: Any, **settings: Any) -> Any:
    """What the `transformers` class of that name gives for these arguments."""
    return getattr(transformers, name)(*arguments, **settings)

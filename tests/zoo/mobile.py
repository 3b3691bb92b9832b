"""Convolutional classifiers for small devices, and re-parameterised or multi-scale residual ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import Classify, Residual, SqueezeExcite, conv_norm
from tests.zoo.registry import Model, entry, image_model


def _separable(into: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(into, into, 3, stride, into, nn.ReLU6()), conv_norm(into, out, 1, act=nn.ReLU6())
    )


def _inverted(
    into: int,
    out: int,
    expand: int,
    stride: int = 1,
    *,
    kernel: int = 3,
    act: nn.Module | None = None,
    excite: SqueezeExcite | None = None,
) -> nn.Module:
    """Expand, depthwise, gate when given, project without activation; a residual where sizes allow."""
    act = act if act is not None else nn.ReLU6()
    branch = nn.Sequential(
        conv_norm(into, expand, 1, act=act),
        conv_norm(expand, expand, kernel, stride, expand, act),
        *([excite] if excite is not None else []),
        conv_norm(expand, out, 1),
    )
    return Residual(branch) if stride == 1 and into == out else branch


@entry("cnn", "depthwise")
def mobilenet_v1() -> Model:
    blocks = [_separable(16, 28, 1), _separable(28, 44, 2), _separable(44, 76, 2), _separable(76, 84, 1)]
    return image_model(Classify(nn.Sequential(conv_norm(3, 16, 3, 2, act=nn.ReLU6()), *blocks), 84), 32, 48)


@entry("cnn", "depthwise", "residual")
def mobilenet_v2() -> Model:
    blocks = [
        _inverted(12, 18, 36, 2),
        _inverted(18, 18, 54),
        _inverted(18, 26, 60, 2),
        _inverted(26, 26, 78),
        _inverted(26, 26, 78),
    ]
    body = nn.Sequential(
        conv_norm(3, 12, 3, 2, act=nn.ReLU6()), *blocks, conv_norm(26, 100, 1, act=nn.ReLU6())
    )
    return image_model(Classify(body, 100), 32, 48)


@entry("cnn", "depthwise", "gate")
def mobilenet_v3() -> Model:
    """Hard swish and hard sigmoid gates; the head has a hidden layer."""

    def gated(into: int, out: int, expand: int, stride: int) -> nn.Module:
        gate = SqueezeExcite(expand, expand // 4, nn.Hardsigmoid())
        return _inverted(into, out, expand, stride, kernel=5, act=nn.Hardswish(), excite=gate)

    body = nn.Sequential(
        conv_norm(3, 16, 3, 2, act=nn.Hardswish()),
        _inverted(16, 22, 40, 2, act=nn.ReLU()),
        gated(22, 22, 56, 1),
        gated(22, 30, 64, 2),
        gated(30, 30, 72, 1),
        conv_norm(30, 88, 1, act=nn.Hardswish()),
    )
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(88, 96), nn.Hardswish(), nn.Linear(96, 10)]
    return image_model(nn.Sequential(body, *head), 32, 48)


@entry("cnn", "depthwise", "residual")
def mnasnet() -> Model:
    blocks = [
        _inverted(14, 20, 42, 2, act=nn.ReLU()),
        _inverted(20, 20, 60, kernel=5, act=nn.ReLU()),
        _inverted(20, 34, 68, 2, kernel=5, act=nn.ReLU()),
        _inverted(34, 34, 102, act=nn.ReLU()),
    ]
    stem = [
        conv_norm(3, 24, 3, 2, act=nn.ReLU()),
        conv_norm(24, 24, 3, 1, 24, nn.ReLU()),
        conv_norm(24, 14, 1),
    ]
    return image_model(
        Classify(nn.Sequential(*stem, *blocks, conv_norm(34, 92, 1, act=nn.ReLU())), 92), 32, 48
    )


@entry("cnn", "depthwise", "gate")
def efficientnet() -> Model:
    def block(into: int, out: int, expand: int, stride: int, kernel: int) -> nn.Module:
        gate = SqueezeExcite(expand, max(into // 4, 4))
        return _inverted(into, out, expand, stride, kernel=kernel, act=nn.SiLU(), excite=gate)

    body = nn.Sequential(
        conv_norm(3, 18, 3, 2, act=nn.SiLU()),
        block(18, 24, 72, 2, 3),
        block(24, 24, 84, 1, 5),
        block(24, 36, 96, 2, 5),
        block(36, 36, 108, 1, 3),
        conv_norm(36, 112, 1, act=nn.SiLU()),
    )
    return image_model(Classify(body, 112), 32, 48)


class _Shuffle(nn.Module):
    """Deals channels of `groups` groups out in turn."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        split = x.view(batch, self.groups, channels // self.groups, height, width)
        return split.transpose(1, 2).reshape(batch, channels, height, width)


class _ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; concat with a pool where it downsamples (V1)."""

    def __init__(self, into: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        new = out - into if stride == 2 else out
        mid = out // 2
        self.branch = nn.Sequential(
            conv_norm(into, mid, 1, 1, groups, nn.ReLU()),
            _Shuffle(groups),
            conv_norm(mid, mid, 3, stride, mid),
            conv_norm(mid, new, 1, 1, groups),
        )
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is None:
            return torch.relu(x + self.branch(x))
        return torch.relu(torch.cat([self.pool(x), self.branch(x)], 1))


@entry("cnn", "grouped", "shuffle")
def shufflenet_v1() -> Model:
    units = [
        _ShuffleUnit(24, 72, 2, 3),
        _ShuffleUnit(72, 72, 1, 3),
        _ShuffleUnit(72, 132, 2, 3),
        _ShuffleUnit(132, 132, 1, 3),
    ]
    return image_model(Classify(nn.Sequential(conv_norm(3, 24, 3, 2, act=nn.ReLU()), *units), 132), 32, 48)


class _SplitUnit(nn.Module):
    """ShuffleNet V2: half of the channels pass by, the other half is worked on; then a shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1, act=nn.ReLU()),
            conv_norm(half, half, 3, 1, half),
            conv_norm(half, half, 1, act=nn.ReLU()),
        )
        self.shuffle = _Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        out: Tensor = self.shuffle(torch.cat([kept, self.branch(worked)], 1))
        return out


class _DownUnit(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.left = nn.Sequential(conv_norm(into, into, 3, 2, into), conv_norm(into, half, 1, act=nn.ReLU()))
        self.right = nn.Sequential(
            conv_norm(into, half, 1, act=nn.ReLU()),
            conv_norm(half, half, 3, 2, half),
            conv_norm(half, half, 1, act=nn.ReLU()),
        )
        self.shuffle = _Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(torch.cat([self.left(x), self.right(x)], 1))
        return out


@entry("cnn", "depthwise", "shuffle")
def shufflenet_v2() -> Model:
    body = nn.Sequential(
        conv_norm(3, 20, 3, 2, act=nn.ReLU()),
        _DownUnit(20, 56),
        _SplitUnit(56),
        _SplitUnit(56),
        _DownUnit(56, 104),
        _SplitUnit(104),
        conv_norm(104, 120, 1, act=nn.ReLU()),
    )
    return image_model(Classify(body, 120), 32, 48)


class _Ghost(nn.Module):
    """Half of the output by a convolution, half from it by a cheap depthwise one; cut to `out`."""

    def __init__(self, into: int, out: int, *, relu: bool) -> None:
        super().__init__()
        first = (out + 1) // 2
        act = nn.ReLU() if relu else None
        self.out = out
        self.primary = conv_norm(into, first, 1, act=act)
        self.cheap = conv_norm(first, first, 3, 1, first, act)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.out]


@entry("cnn", "depthwise", "concat")
def ghostnet() -> Model:
    def block(into: int, mid: int, out: int, stride: int) -> Residual:
        middle = [conv_norm(mid, mid, 3, 2, mid)] if stride == 2 else []
        branch = nn.Sequential(_Ghost(into, mid, relu=True), *middle, _Ghost(mid, out, relu=False))
        if stride == 1 and into == out:
            return Residual(branch)
        return Residual(
            branch, nn.Sequential(conv_norm(into, into, 3, stride, into), conv_norm(into, out, 1))
        )

    body = nn.Sequential(
        conv_norm(3, 16, 3, 2, act=nn.ReLU()),
        block(16, 48, 24, 2),
        block(24, 72, 24, 1),
        block(24, 84, 40, 2),
        block(40, 120, 40, 1),
    )
    return image_model(Classify(body, 40), 32, 48)


class _Rep(nn.Module):
    """RepVGG while training: 3x3, 1x1 and a bare BatchNorm, summed."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.three, self.one = conv_norm(into, out, 3, stride), conv_norm(into, out, 1, stride)
        self.bare = nn.BatchNorm2d(into) if into == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        total = self.three(x) + self.one(x)
        return torch.relu(total if self.bare is None else total + self.bare(x))


@entry("cnn", "residual")
def repvgg() -> Model:
    body = nn.Sequential(_Rep(3, 18, 2), _Rep(18, 18), _Rep(18, 38, 2), _Rep(38, 38), _Rep(38, 58, 2))
    return image_model(Classify(body, 58), 32, 48)


class _Res2(nn.Module):
    """Res2Net: the middle is split in `scale` parts, each sees the sum of its own and the part before."""

    def __init__(self, channels: int, mid: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.into = conv_norm(channels, mid, 1, act=nn.ReLU())
        self.parts = nn.ModuleList(
            conv_norm(mid // scale, mid // scale, act=nn.ReLU()) for _ in range(scale - 1)
        )
        self.out = conv_norm(mid, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.into(x).chunk(self.scale, dim=1)
        outputs = [first]
        for part, piece in zip(self.parts, rest, strict=True):
            outputs.append(part(piece if len(outputs) == 1 else piece + outputs[-1]))
        return torch.relu(self.out(torch.cat(outputs, 1)) + x)


@entry("cnn", "residual", "concat")
def res2net() -> Model:
    body = nn.Sequential(
        conv_norm(3, 44, 3, 2, act=nn.ReLU()),
        _Res2(44, 56, 4),
        conv_norm(44, 60, 3, 2, act=nn.ReLU()),
        _Res2(60, 64, 4),
    )
    return image_model(Classify(body, 60), 24, 36)

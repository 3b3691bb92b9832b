"""Classic convolutional classifiers: plain, residual, dense, grouped and multi-branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import Classify, Residual, SqueezeExcite, conv_norm
from tests.zoo.registry import Model, entry, image_model


def _basic(into: int, out: int, stride: int = 1, *extra: nn.Module) -> Residual:
    branch = nn.Sequential(conv_norm(into, out, 3, stride, act=nn.ReLU()), conv_norm(out, out), *extra)
    shortcut = conv_norm(into, out, 1, stride) if stride > 1 or into != out else None
    return Residual(branch, shortcut, nn.ReLU())


def _bottleneck(
    into: int, mid: int, out: int, stride: int = 1, groups: int = 1, *extra: nn.Module
) -> Residual:
    branch = nn.Sequential(
        conv_norm(into, mid, 1, act=nn.ReLU()),
        conv_norm(mid, mid, 3, stride, groups, act=nn.ReLU()),
        conv_norm(mid, out, 1),
        *extra,
    )
    shortcut = conv_norm(into, out, 1, stride) if stride > 1 or into != out else None
    return Residual(branch, shortcut, nn.ReLU())


def _stem(out: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(3, out, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1))


@entry("cnn", "residual")
def resnet_basic() -> Model:
    body = nn.Sequential(_stem(16), _basic(16, 16), _basic(16, 24, 2), _basic(24, 24), _basic(24, 40, 2))
    return image_model(Classify(body, 40), 32, 48)


@entry("cnn", "residual")
def resnet_bottleneck() -> Model:
    body = nn.Sequential(
        _stem(16),
        _bottleneck(16, 12, 48),
        _bottleneck(48, 12, 48),
        _bottleneck(48, 20, 80, 2),
        _bottleneck(80, 20, 80),
    )
    return image_model(Classify(body, 80), 32, 48)


class _PreActivation(nn.Module):
    """BatchNorm and ReLU before each convolution; the sum is left raw."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(into)
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(into, out, 1, stride, bias=False) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(active)))) + kept
        return out


@entry("cnn", "residual")
def wide_resnet() -> Model:
    blocks = [_PreActivation(14, 44, 1), _PreActivation(44, 44, 1), _PreActivation(44, 60, 2)]
    body = nn.Sequential(nn.Conv2d(3, 14, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(60), nn.ReLU())
    return image_model(Classify(body, 60), 16, 24)


class _PadShortcut(nn.Module):
    """The CIFAR shortcut without parameters: every second pixel, zeros for the new channels."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.before, self.after = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


@entry("cnn", "residual")
def resnet_cifar_pad() -> Model:
    def down(into: int, out: int) -> Residual:
        branch = nn.Sequential(conv_norm(into, out, 3, 2, act=nn.ReLU()), conv_norm(out, out))
        return Residual(branch, _PadShortcut(out - into), nn.ReLU())

    body = nn.Sequential(
        conv_norm(3, 16, act=nn.ReLU()), _basic(16, 16), down(16, 32), _basic(32, 32), down(32, 52)
    )
    return image_model(Classify(body, 52), 16, 24)


@entry("cnn")
def vgg_flatten() -> Model:
    features: list[nn.Module] = []
    into = 3
    for out, pool in ((16, False), (20, True), (28, False), (36, True), (44, True)):
        features += [nn.Conv2d(into, out, 3, 1, 1), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
        into = out
    head = [
        nn.Flatten(),
        nn.Linear(44 * 9, 72),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(72, 56),
        nn.ReLU(),
        nn.Linear(56, 10),
    ]
    return image_model(nn.Sequential(*features, *head), 24)


@entry("cnn")
def alexnet() -> Model:
    features = [
        nn.Conv2d(3, 24, 7, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2),
        nn.Conv2d(24, 40, 5, 1, 2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(40, 56, 3, 1, 1), nn.ReLU(), nn.Conv2d(56, 32, 3, 1, 1, groups=2), nn.ReLU(),
    ]  # fmt: skip
    head = [nn.Flatten(), nn.Linear(32 * 25, 80), nn.ReLU(), nn.Linear(80, 10)]
    return image_model(nn.Sequential(*features, *head), 47)


@entry("cnn")
def nhwc_flatten() -> Model:
    class Net(nn.Module):
        """Flattens pixels outermost, channels innermost, before the classifier."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                conv_norm(3, 14, act=nn.ReLU()),
                conv_norm(14, 26, 3, 2, act=nn.ReLU()),
                conv_norm(26, 22, 3, 2),
            )
            self.head = nn.Sequential(nn.Linear(22 * 16, 48), nn.ReLU(), nn.Linear(48, 10))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.features(x)).permute(0, 2, 3, 1).flatten(1))
            return out

    return image_model(Net(), 16)


class _Branches(nn.Module):
    """Branches side by side, concatenated over channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _inception(into: int, widths: tuple[int, int, int, int, int, int]) -> _Branches:
    one, three_in, three, five_in, five, pooled = widths
    act = nn.ReLU()
    return _Branches(
        conv_norm(into, one, 1, act=act),
        nn.Sequential(conv_norm(into, three_in, 1, act=act), conv_norm(three_in, three, 3, act=act)),
        nn.Sequential(conv_norm(into, five_in, 1, act=act), conv_norm(five_in, five, 5, act=act)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(into, pooled, 1, act=act)),
    )


@entry("cnn", "concat")
def inception() -> Model:
    first = _inception(20, (16, 12, 24, 6, 10, 8))
    second = _inception(58, (18, 14, 26, 8, 12, 14))
    body = nn.Sequential(conv_norm(3, 20, 3, 2, act=nn.ReLU()), first, nn.AvgPool2d(2), second)
    return image_model(Classify(body, 70), 24, 36)


@entry("cnn", "concat")
def multi_branch_concat() -> Model:
    """Branches of branches: concats inside concats, read by a residual and a head."""
    inner = _Branches(nn.Conv2d(18, 10, 1), nn.Conv2d(18, 12, 3, 1, 1), nn.Identity())
    outer = _Branches(inner, nn.Sequential(nn.Conv2d(18, 14, 3, 1, 1), nn.ReLU()))
    mix = Residual(nn.Sequential(nn.Conv2d(54, 22, 1), nn.GELU(), nn.Conv2d(22, 54, 3, 1, 1)))
    body = nn.Sequential(nn.Conv2d(3, 18, 3, 2, 1), nn.ReLU(), outer, mix, nn.ReLU())
    return image_model(Classify(body, 54), 20, 28)


class _DenseLayer(nn.Module):
    def __init__(self, into: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(into), nn.Conv2d(into, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(2 * growth),
            nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


@entry("cnn", "concat")
def densenet() -> Model:
    def stage(into: int, layers: int, growth: int) -> list[nn.Module]:
        return [_DenseLayer(into + k * growth, growth) for k in range(layers)]

    down = [nn.BatchNorm2d(52), nn.ReLU(), nn.Conv2d(52, 26, 1, bias=False), nn.AvgPool2d(2)]
    tail = [nn.BatchNorm2d(56), nn.ReLU()]
    body = nn.Sequential(conv_norm(3, 16, act=nn.ReLU()), *stage(16, 3, 12), *down, *stage(26, 3, 10), *tail)
    return image_model(Classify(body, 56), 16, 24)


class _Fire(nn.Module):
    def __init__(self, into: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(into, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


@entry("cnn", "concat")
def squeezenet() -> Model:
    """Ends in a convolution over classes and a global pool: no linear layer."""
    body = [
        nn.Conv2d(3, 28, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        _Fire(28, 12, 32),
        _Fire(64, 14, 36),
        _Fire(72, 18, 44),
    ]
    head = [nn.Dropout(), nn.Conv2d(88, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return image_model(nn.Sequential(*body, *head), 35, 47)


@entry("cnn", "grouped")
def resnext() -> Model:
    body = nn.Sequential(
        _stem(18), _bottleneck(18, 24, 44, 1, 4), _bottleneck(44, 24, 44, 1, 4), _bottleneck(44, 32, 76, 2, 4)
    )
    return image_model(Classify(body, 76), 32, 48)


@entry("cnn", "grouped")
def regnet() -> Model:
    """Group width 8, gates inside the bottleneck as in RegNetY."""

    def block(into: int, out: int, stride: int) -> Residual:
        branch = nn.Sequential(
            conv_norm(into, out, 1, act=nn.ReLU()),
            conv_norm(out, out, 3, stride, out // 8, act=nn.ReLU()),
            SqueezeExcite(out, max(into // 4, 6)),
            conv_norm(out, out, 1),
        )
        shortcut = conv_norm(into, out, 1, stride) if into != out else None
        return Residual(branch, shortcut, nn.ReLU())

    body = nn.Sequential(
        conv_norm(3, 20, 3, 2, act=nn.ReLU()), block(20, 24, 2), block(24, 56, 2), block(56, 56, 1)
    )
    return image_model(Classify(body, 56), 32, 48)


@entry("cnn", "gate")
def se_resnet() -> Model:
    body = nn.Sequential(
        _stem(16),
        _basic(16, 28, 1, SqueezeExcite(28, 6)),
        _basic(28, 28, 1, SqueezeExcite(28, 6)),
        _basic(28, 44, 2, SqueezeExcite(44, 12)),
    )
    return image_model(Classify(body, 44), 32, 48)


class _Attend(nn.Module):
    """CBAM: a channel gate from mean and max through one shared MLP, then a spatial gate."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        self.spatial = nn.Conv2d(2, 1, 7, 1, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(maps))


@entry("cnn", "gate")
def cbam_resnet() -> Model:
    body = nn.Sequential(_stem(16), _basic(16, 28, 1, _Attend(28, 6)), _basic(28, 44, 2, _Attend(44, 12)))
    return image_model(Classify(body, 44), 32, 48)


@entry("cnn", "gate")
def spatial_attention() -> Model:
    class Gate(nn.Module):
        """A softmax over pixels pools the context, which is added back to every pixel."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.score = nn.Conv2d(channels, 1, 1)
            self.transform = nn.Sequential(
                nn.Conv2d(channels, 14, 1), nn.LayerNorm([14, 1, 1]), nn.ReLU(), nn.Conv2d(14, channels, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            weights = self.score(x).flatten(2).softmax(-1)
            context = torch.matmul(x.flatten(2), weights.transpose(1, 2)).unsqueeze(-1)
            out: Tensor = x + self.transform(context)
            return out

    body = nn.Sequential(_stem(16), _basic(16, 28), Gate(28), _basic(28, 44, 2), Gate(44))
    return image_model(Classify(body, 44), 32, 48)

"""Image to image: encoders and decoders with skips, parallel resolutions, and style networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import Residual, conv_norm
from tests.zoo.registry import Model, entry, image_model


def _double(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(into, out, act=nn.ReLU()), conv_norm(out, out, act=nn.ReLU()))


class _UNet(nn.Module):
    """Two levels; `ups` raise the resolution, skips are concatenated."""

    def __init__(self, ups: tuple[nn.Module, nn.Module], raised: tuple[int, int]) -> None:
        super().__init__()
        self.enter, self.mid, self.deep = _double(3, 14), _double(14, 26), _double(26, 44)
        self.up1, self.up2 = ups
        self.dec1, self.dec2 = _double(26 + raised[0], 28), _double(14 + raised[1], 18)
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.mid(functional.max_pool2d(first, 2))
        deep = self.deep(functional.max_pool2d(second, 2))
        joined = self.dec1(torch.cat([self.up1(deep), second], 1))
        out: Tensor = self.head(self.dec2(torch.cat([self.up2(joined), first], 1)))
        return out


@entry("segmentation", "concat")
def unet() -> Model:
    ups = nn.ConvTranspose2d(44, 22, 2, 2), nn.ConvTranspose2d(28, 12, 2, 2)
    return image_model(_UNet(ups, (22, 12)), 16, 24)


@entry("segmentation", "concat")
def unet_pixelshuffle() -> Model:
    ups = (
        nn.Sequential(nn.Conv2d(44, 88, 1), nn.PixelShuffle(2)),
        nn.Sequential(nn.Conv2d(28, 48, 1), nn.PixelShuffle(2)),
    )
    return image_model(_UNet(ups, (22, 12)), 16, 24)


@entry("segmentation", "concat")
def unet_resize() -> Model:
    ups = (
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(44, 22, 1)),
        nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(28, 12, 1)),
    )
    return image_model(_UNet(ups, (22, 12)), 16, 24)


class _Exchange(nn.Module):
    """HRNet: every resolution receives the sum of all, strided down or resized up."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, mid, coarse = widths
        self.blocks = nn.ModuleList(
            Residual(nn.Sequential(conv_norm(w, w, act=nn.ReLU()), conv_norm(w, w)), act=nn.ReLU())
            for w in widths
        )
        self.mid_fine, self.coarse_fine = conv_norm(mid, fine, 1), conv_norm(coarse, fine, 1)
        self.fine_mid, self.coarse_mid = conv_norm(fine, mid, 3, 2), conv_norm(coarse, mid, 1)
        self.mid_coarse = conv_norm(mid, coarse, 3, 2)
        self.fine_coarse = nn.Sequential(
            conv_norm(fine, fine, 3, 2, act=nn.ReLU()), conv_norm(fine, coarse, 3, 2)
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fine, mid, coarse = (block(m) for block, m in zip(self.blocks, maps, strict=True))

        def up(x: Tensor, factor: float) -> Tensor:
            return functional.interpolate(x, scale_factor=factor, mode="nearest")

        return (
            torch.relu(fine + up(self.mid_fine(mid), 2.0) + up(self.coarse_fine(coarse), 4.0)),
            torch.relu(self.fine_mid(fine) + mid + up(self.coarse_mid(coarse), 2.0)),
            torch.relu(self.fine_coarse(fine) + self.mid_coarse(mid) + coarse),
        )


class _HrNet(nn.Module):
    def __init__(self, widths: tuple[int, int, int] = (14, 22, 34)) -> None:
        super().__init__()
        act = nn.ReLU()
        fine, mid, coarse = widths
        self.stem = conv_norm(3, 18, 3, 2, act=act)
        self.enter = nn.ModuleList(
            [
                conv_norm(18, fine, act=act),
                conv_norm(18, mid, 3, 2, act=act),
                nn.Sequential(conv_norm(18, 24, 3, 2, act=act), conv_norm(24, coarse, 3, 2, act=act)),
            ]
        )
        self.stages = nn.Sequential(_Exchange(widths), _Exchange(widths))
        self.head = nn.Sequential(nn.Conv2d(sum(widths), 40, 1), nn.ReLU(), nn.Conv2d(40, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        fine, mid, coarse = self.stages(tuple(enter(x) for enter in self.enter))
        raised = [functional.interpolate(m, scale_factor=f) for m, f in ((mid, 2.0), (coarse, 4.0))]
        out: Tensor = self.head(torch.cat([fine, *raised], 1))
        return out


@entry("segmentation", "residual", "concat")
def hrnet() -> Model:
    return image_model(_HrNet(), 24, 32)


@entry("segmentation")
def autoencoder() -> Model:
    """Convolutions down to a flat code of 24 and transposed ones back."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 28, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(28 * 16, 24), nn.ReLU(), nn.Linear(24, 30 * 16), nn.ReLU(),
        nn.Unflatten(1, (30, 4, 4)),
        nn.ConvTranspose2d(30, 18, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(18, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip
    return image_model(net, 16)


@entry("segmentation", "norm")
def style_instancenorm() -> Model:
    """Reflection padding, InstanceNorm with weights, residual blocks, resize and convolution."""

    def layer(into: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.ReflectionPad2d(kernel // 2),
            nn.Conv2d(into, out, kernel, stride),
            nn.InstanceNorm2d(out, affine=True),
        )

    block = Residual(nn.Sequential(layer(36, 36, 3), nn.ReLU(), layer(36, 36, 3)))
    net = nn.Sequential(
        layer(3, 20, 5), nn.ReLU(), layer(20, 36, 3, 2), nn.ReLU(), block,
        nn.Upsample(scale_factor=2.0, mode="nearest"), layer(36, 18, 3), nn.ReLU(),
        nn.ReflectionPad2d(2), nn.Conv2d(18, 3, 5), nn.Tanh(),
    )  # fmt: skip
    return image_model(net, 16, 24)

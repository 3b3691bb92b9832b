"""Generative image models: diffusion networks, decoders, fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.registry import Input, Model, entry


def _time_features(step: Tensor, width: int) -> Tensor:
    """Sines and cosines of the step at geometric frequencies: (batch, width)."""
    rates = torch.exp(torch.arange(width // 2, dtype=torch.float32) * (-math.log(1000.0) / (width // 2)))
    angles = step[:, None].float() * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], -1)


class _TimeResidual(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the time embedding is added between."""

    def __init__(self, into: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(time, out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = (
            self.conv1(functional.silu(self.norm1(x))) + self.time(functional.silu(time))[:, :, None, None]
        )
        out: Tensor = self.conv2(functional.silu(self.norm2(hidden))) + self.skip(x)
        return out


class _ImageAttention(nn.Module):
    """Pixels attend to a context, or to each other without one."""

    def __init__(self, width: int, context: int | None, heads: int = 4, size: int = 10) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.norm = nn.GroupNorm(4, width)
        self.query = nn.Linear(width, heads * size, bias=False)
        self.key = nn.Linear(context or width, heads * size, bias=False)
        self.value = nn.Linear(context or width, heads * size, bias=False)
        self.out = nn.Linear(heads * size, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        batch, width, height, breadth = x.shape
        pixels = self.norm(x).reshape(batch, width, height * breadth).transpose(1, 2)
        seen = pixels if context is None else context
        parts = self._split(self.query(pixels)), self._split(self.key(seen)), self._split(self.value(seen))
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2)
        flat = self.out(mixed.reshape(batch, height * breadth, self.heads * self.size))
        out: Tensor = x + flat.transpose(1, 2).reshape(batch, width, height, breadth)
        return out


class _DiffusionUNet(nn.Module):
    """Two resolutions, a time embedding, self- and cross-attention at the lower one."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(20, 56), nn.SiLU(), nn.Linear(56, 48))
        self.enter = nn.Conv2d(4, 16, 3, padding=1)
        self.down1, self.shrink = _TimeResidual(16, 24, 48), nn.Conv2d(24, 24, 3, 2, 1)
        self.down2 = _TimeResidual(24, 36, 48)
        self.own, self.cross = _ImageAttention(36, None), _ImageAttention(36, 26)
        self.mid = _TimeResidual(36, 36, 48)
        self.up = _TimeResidual(60, 28, 48)
        self.leave = nn.Sequential(nn.GroupNorm(4, 28), nn.SiLU(), nn.Conv2d(28, 4, 3, padding=1))

    def forward(self, image: Tensor, step: Tensor, context: Tensor) -> Tensor:
        time = self.time(_time_features(step, 20))
        first = self.down1(self.enter(image), time)
        deep = self.down2(self.shrink(first), time)
        deep = self.mid(self.cross(self.own(deep), context), time)
        raised = functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        out: Tensor = self.leave(self.up(torch.cat([raised, first], 1), time))
        return out


@entry("generative", "norm", "cross-attention")
def diffusion_unet() -> Model:
    inputs = (
        Input("image", ("batch", 4, "height", "width")),
        Input("step", ("batch",), "ids", 1000),
        Input("context", ("batch", "words", 26)),
    )
    return Model(
        _DiffusionUNet(),
        inputs,
        {"height": 8, "width": 8, "words": 7},
        {"height": 12, "width": 8, "words": 9},
    )


class _ModulatedBlock(nn.Module):
    """DiT: six vectors per block from the condition shift, scale and gate attention and MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(6, dim=-1)
        normed = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(normed, normed, normed, need_weights=False)[0]
        out: Tensor = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return out


class _DiT(nn.Module):
    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, width, 2, 2)
        self.place = nn.Parameter(torch.randn(1, 16, width))
        self.time = nn.Sequential(nn.Linear(28, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(_ModulatedBlock(width, 96) for _ in range(2))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, 2 * 2 * 8)

    def forward(self, image: Tensor, step: Tensor, label: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.place
        condition = self.time(_time_features(step, 28)) + self.label(label)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulate(condition)[:, None].chunk(2, dim=-1)
        patches = self.out(self.norm(x) * (1 + scale) + shift).reshape(-1, 4, 4, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(-1, 8, 8, 8)


@entry("generative", "transformer", "gate")
def dit() -> Model:
    inputs = (
        Input("image", ("batch", 4, 8, 8)),
        Input("step", ("batch",), "ids", 1000),
        Input("label", ("batch",), "ids", 11),
    )
    return Model(_DiT(), inputs)


class _NormResidual(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.GroupNorm(4, into), nn.SiLU(), nn.Conv2d(into, out, 3, padding=1),
            nn.GroupNorm(4, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.skip(x)
        return out


@entry("generative", "norm")
def vae_decoder() -> Model:
    net = nn.Sequential(
        nn.Conv2d(4, 40, 3, padding=1), _NormResidual(40, 40), _ImageAttention(40, None),
        nn.Upsample(scale_factor=2.0), _NormResidual(40, 28), nn.Upsample(scale_factor=2.0),
        nn.Conv2d(28, 20, 3, padding=1), nn.GroupNorm(4, 20), nn.SiLU(), nn.Conv2d(20, 3, 3, padding=1),
    )  # fmt: skip
    latent = Input("latent", ("batch", 4, "height", "width"))
    return Model(net, (latent,), {"height": 6, "width": 6}, {"height": 8, "width": 6})


@entry("generative")
def gan_generator() -> Model:
    """A vector through transposed convolutions, the first from a single pixel."""
    net = nn.Sequential(
        nn.Unflatten(1, (22, 1, 1)), nn.ConvTranspose2d(22, 44, 4, bias=False), nn.BatchNorm2d(44), nn.ReLU(),
        nn.ConvTranspose2d(44, 26, 4, 2, 1, bias=False), nn.BatchNorm2d(26), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(26, 26, 4, 2, 1, groups=2), nn.PReLU(26),
        nn.ConvTranspose2d(26, 3, 3, 1, 1), nn.Tanh(),
    )  # fmt: skip
    return Model(net, (Input("noise", ("batch", 22)),))


@entry("generative", "mlp", "concat")
def nerf() -> Model:
    class Net(nn.Module):
        """Encoded points through linears, the points concatenated again half-way; density and colour."""

        def __init__(self, width: int = 72) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(27, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            self.second = nn.Sequential(nn.Linear(width + 27, 76), nn.ReLU(), nn.Linear(76, 60), nn.ReLU())
            self.density, self.feature = nn.Linear(60, 1), nn.Linear(60, 44)
            self.colour = nn.Sequential(nn.Linear(47, 36), nn.ReLU(), nn.Linear(36, 3), nn.Sigmoid())

        def forward(self, point: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
            waves = [f(point * 2.0**k) for k in range(4) for f in (torch.sin, torch.cos)]
            encoded = torch.cat([point, *waves], -1)
            hidden = self.second(torch.cat([self.first(encoded), encoded], -1))
            colour = self.colour(torch.cat([self.feature(hidden), view], -1))
            return functional.softplus(self.density(hidden)), colour

    inputs = (Input("point", ("batch", "samples", 3)), Input("view", ("batch", "samples", 3)))
    return Model(Net(), inputs, {"samples": 11}, {"samples": 17})

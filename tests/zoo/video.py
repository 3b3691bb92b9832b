"""Moving pictures, and images made from noise by two streams: pathways, shifts, factored attention, diffusion."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import RmsNorm
from tests.zoo.registry import Input, Model, entry


def _conv3(into: int, out: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(
            into,
            out,
            kernel,
            (1, stride, stride),
            (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
            bias=False,
        ),
        nn.BatchNorm3d(out),
        nn.ReLU(),
    )


class _SlowFast(nn.Module):
    """A slow pathway of many channels, a fast one of few; what the fast one sees joins the slow one."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.slow = nn.ModuleList([_conv3(3, 34, (1, 3, 3), 2), _conv3(50, 46, (1, 3, 3), 2)])
        self.fast = nn.ModuleList([_conv3(3, 14, (3, 3, 3), 2), _conv3(14, 18, (3, 3, 3), 2)])
        self.lateral = nn.Conv3d(14, 16, (5, 1, 1), (4, 1, 1), (2, 0, 0), bias=False)
        self.head = nn.Linear(64, classes)

    def forward(self, clip: Tensor) -> Tensor:
        slow, fast = self.slow[0](clip[:, :, ::4]), self.fast[0](clip)
        slow = self.slow[1](torch.cat([slow, self.lateral(fast)], 1))
        both = torch.cat([slow.mean((2, 3, 4)), self.fast[1](fast).mean((2, 3, 4))], 1)
        out: Tensor = self.head(both)
        return out


@entry("video", "conv3d", "concat")
def slow_fast() -> Model:
    """In the form of SlowFast."""
    return Model(_SlowFast(), (Input("clip", ("batch", 3, 8, 16, 16)),))


class _ShiftBlock(nn.Module):
    """A part of the channels comes from the frame before, a part from the next one."""

    def __init__(self, width: int, hidden: int, part: int) -> None:
        super().__init__()
        self.part = part
        self.branch = nn.Sequential(
            nn.Conv2d(width, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, frames, width, h, w)."""
        part = self.part
        before = functional.pad(x[:, :-1, :part], (0, 0, 0, 0, 0, 0, 1, 0))
        behind = functional.pad(x[:, 1:, part : 2 * part], (0, 0, 0, 0, 0, 0, 0, 1))
        shifted = torch.cat([before, behind, x[:, :, 2 * part :]], 2)
        made = self.branch(shifted.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
        return torch.relu(x + made)


@entry("video", "shift", "residual")
def temporal_shift() -> Model:
    """In the form of TSM."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
            self.blocks = nn.ModuleList(_ShiftBlock(32, hidden, 4) for hidden in (26, 38))
            self.head = nn.Linear(32, 6)

        def forward(self, clip: Tensor) -> Tensor:
            x = self.stem(clip.flatten(0, 1)).unflatten(0, (-1, 4))
            for block in self.blocks:
                x = block(x)
            out: Tensor = self.head(x.mean((1, 3, 4)))
            return out

    return Model(Net(), (Input("clip", ("batch", 4, 3, 16, 16)),))


class _Attention(nn.Module):
    """Heads from one matrix of three; keys and queries of unit scale where asked."""

    def __init__(self, width: int, heads: int, *, norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.three, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList(RmsNorm(width // heads) for _ in range(2)) if norm else None

    def parts(self, x: Tensor) -> list[Tensor]:
        """Queries, keys, values: (n, heads, places, size)."""
        parts = [one.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for one in self.three(x).chunk(3, -1)]
        return parts if self.norms is None else [self.norms[0](parts[0]), self.norms[1](parts[1]), parts[2]]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        made = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        out: Tensor = self.out(made.transpose(-2, -3).flatten(-2))
        return out


class _DividedBlock(nn.Module):
    """Attention over time at each place, then over places in each frame."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.time, self.space = _Attention(width, 4), _Attention(width, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, frames, places, width)."""
        x = x + self.mix(self.time(self.norms[0](x).transpose(1, 2)).transpose(1, 2))
        x = x + self.space(self.norms[1](x))
        out: Tensor = x + self.feed(self.norms[2](x))
        return out


@entry("video", "transformer")
def divided_attention() -> Model:
    """In the form of TimeSformer."""

    class Net(nn.Module):
        def __init__(self, width: int = 40) -> None:
            super().__init__()
            self.embed = nn.Conv3d(3, width, (1, 4, 4), (1, 4, 4))
            self.place, self.time = (
                nn.Parameter(torch.randn(16, width)),
                nn.Parameter(torch.randn(4, 1, width)),
            )
            self.blocks = nn.ModuleList(_DividedBlock(width, hidden) for hidden in (84, 92))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 6)

        def forward(self, clip: Tensor) -> Tensor:
            x = self.embed(clip).flatten(3).permute(0, 2, 3, 1) + self.place + self.time
            for block in self.blocks:
                x = block(x)
            out: Tensor = self.head(self.norm(x).mean((1, 2)))
            return out

    return Model(Net(), (Input("clip", ("batch", 3, 4, 16, 16)),))


class _VideoResidual(nn.Module):
    """A residual block of images, then a convolution over time, mixed with what it was given by a learned weight."""

    def __init__(self, into: int, out: int, time: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(2, into), nn.GroupNorm(2, out), nn.GroupNorm(2, out)])
        self.first, self.second = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(time, out)
        self.along = nn.Conv3d(out, out, (3, 1, 1), padding=(1, 0, 0))
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()
        self.mix = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, step: Tensor, frames: int) -> Tensor:
        y = self.first(functional.silu(self.norms[0](x))) + self.time(step)[:, :, None, None]
        y = self.skip(x) + self.second(functional.silu(self.norms[1](y)))
        clip = y.unflatten(0, (-1, frames)).transpose(1, 2)
        moved = self.along(functional.silu(self.norms[2](clip))).transpose(1, 2).flatten(0, 1)
        share = self.mix.sigmoid()
        out: Tensor = share * y + (1 - share) * (y + moved)
        return out


class _VideoUNet(nn.Module):
    """Down and up over frames, attention over time in the middle, gated feed-forward, skips by concatenation."""

    def __init__(self, frames: int = 3, time: int = 36) -> None:
        super().__init__()
        self.frames = frames
        self.step = nn.Sequential(nn.Linear(16, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(4, 24, 3, padding=1)
        self.down, self.middle = _VideoResidual(24, 24, time), _VideoResidual(24, 40, time)
        self.shrink = nn.Conv2d(24, 24, 3, 2, 1)
        self.norm, self.attend = nn.LayerNorm(40), _Attention(40, 4)
        self.wide, self.narrow = nn.Linear(40, 2 * 52), nn.Linear(52, 40)
        self.up = _VideoResidual(64, 28, time)
        self.last = nn.Sequential(nn.GroupNorm(2, 28), nn.SiLU(), nn.Conv2d(28, 4, 3, padding=1))

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """(n, frames, 4, h, w), (n,)."""
        rate = torch.exp(torch.arange(8) * (-math.log(100.0) / 8))
        angle = step[:, None] * rate
        time = self.step(torch.cat([angle.sin(), angle.cos()], 1)).repeat_interleave(self.frames, 0)
        x = self.enter(noisy.flatten(0, 1))
        kept = self.down(x, time, self.frames)
        x = self.middle(self.shrink(kept), time, self.frames)
        tokens = x.flatten(2).unflatten(0, (-1, self.frames)).permute(0, 3, 1, 2).flatten(0, 1)
        tokens = tokens + self.attend(self.norm(tokens))
        value, gate = self.wide(tokens).chunk(2, -1)
        tokens = tokens + self.narrow(value * functional.gelu(gate))
        side = x.shape[2] * x.shape[3]
        x = (
            tokens.unflatten(0, (-1, side))
            .permute(0, 2, 3, 1)
            .flatten(0, 1)
            .unflatten(2, (x.shape[2], x.shape[3]))
        )
        x = self.up(torch.cat([functional.interpolate(x, scale_factor=2.0), kept], 1), time, self.frames)
        out: Tensor = self.last(x).unflatten(0, (-1, self.frames))
        return out


@entry("video", "generative", "groupnorm")
def video_diffusion() -> Model:
    """In the form of Stable Video Diffusion's UNet."""
    return Model(_VideoUNet(), (Input("noisy", ("batch", 3, 4, 8, 8)), Input("step", ("batch",), "unit")))


class _JointBlock(nn.Module):
    """Text and image keep weights of their own and meet in one attention; both modulated by the condition."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.image, self.text = _Attention(width, heads, norm=True), _Attention(width, heads, norm=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(4))
        self.modulate = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(2))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
            for _ in range(2)
        )

    def forward(self, image: Tensor, text: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        of_image, of_text = (one(functional.silu(given))[:, None].chunk(6, -1) for one in self.modulate)
        a = self.image.parts(self.norms[0](image) * (1 + of_image[1]) + of_image[0])
        b = self.text.parts(self.norms[1](text) * (1 + of_text[1]) + of_text[0])
        q, k, v = (torch.cat(pair, 2) for pair in zip(a, b, strict=True))
        made = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        seen, read = made[:, : image.shape[1]], made[:, image.shape[1] :]
        image, text = image + of_image[2] * self.image.out(seen), text + of_text[2] * self.text.out(read)
        image = image + of_image[5] * self.feeds[0](self.norms[2](image) * (1 + of_image[4]) + of_image[3])
        text = text + of_text[5] * self.feeds[1](self.norms[3](text) * (1 + of_text[4]) + of_text[3])
        return image, text


@entry("generative", "transformer", "norm")
def joint_diffusion() -> Model:
    """In the form of Stable Diffusion 3's transformer (MMDiT)."""

    class Net(nn.Module):
        def __init__(self, width: int = 40) -> None:
            super().__init__()
            self.enter, self.read = nn.Conv2d(4, width, 2, 2), nn.Linear(26, width)
            self.place = nn.Parameter(torch.randn(16, width))
            self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
            self.pooled = nn.Linear(18, width)
            self.blocks = nn.ModuleList(_JointBlock(width, 4, hidden) for hidden in (84, 92))
            self.norm, self.modulate = (
                nn.LayerNorm(width, elementwise_affine=False),
                nn.Linear(width, 2 * width),
            )
            self.leave = nn.Linear(width, 16)

        def forward(self, noisy: Tensor, step: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
            angle = step[:, None] * torch.exp(torch.arange(8) * (-math.log(100.0) / 8))
            given = self.time(torch.cat([angle.cos(), angle.sin()], 1)) + self.pooled(pooled)
            x, read = self.enter(noisy).flatten(2).transpose(1, 2) + self.place, self.read(text)
            for block in self.blocks:
                x, read = block(x, read, given)
            shift, scale = self.modulate(functional.silu(given))[:, None].chunk(2, -1)
            x = self.leave(self.norm(x) * (1 + scale) + shift).unflatten(1, (4, 4)).unflatten(3, (2, 2, 4))
            out: Tensor = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
            return out

    inputs = (
        Input("noisy", ("batch", 4, 8, 8)),
        Input("step", ("batch",), "unit"),
        Input("text", ("batch", "words", 26)),
        Input("pooled", ("batch", 18)),
    )
    return Model(Net(), inputs, {"words": 5}, {"words": 7})

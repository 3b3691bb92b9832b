"""Speech made and coded: text to spectra, spectra to sound, normalising flows, codecs, separation."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.registry import Input, Model, entry, token_model


class _FftBlock(nn.Module):
    """Self-attention, then two convolutions along time."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.wide, self.narrow = nn.Conv1d(width, hidden, 9, padding=4), nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](x + self.attend(x, x, x, need_weights=False)[0])
        feed = self.narrow(torch.relu(self.wide(x.transpose(1, 2)))).transpose(1, 2)
        out: Tensor = self.norms[1](x + feed)
        return out


class _Variance(nn.Module):
    """One number a phoneme, from two convolutions with norms."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv1d(width, hidden, 3, padding=1),
            nn.Conv1d(hidden, hidden, 3, padding=1),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](torch.relu(self.first(x.transpose(1, 2))).transpose(1, 2))
        x = self.norms[1](torch.relu(self.second(x.transpose(1, 2))).transpose(1, 2))
        out: Tensor = self.out(x).squeeze(-1)
        return out


class _FastSpeech(nn.Module):
    """Phonemes, pitch as an embedding of its bin, frames by soft lengths, decoder, post net on top of its input."""

    edges: Tensor
    frames: Tensor

    def __init__(self, width: int = 40, bands: int = 20, bins: int = 16, frames: int = 18) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.encoder, self.decoder = _FftBlock(width, 76), _FftBlock(width, 68)
        self.duration, self.pitch = _Variance(width, 34), _Variance(width, 30)
        self.bins = nn.Embedding(bins, width)
        self.register_buffer("edges", torch.linspace(-1, 1, bins - 1))
        self.register_buffer("frames", torch.arange(frames, dtype=torch.float32))
        self.spectrum = nn.Linear(width, bands)
        self.post = nn.Sequential(
            nn.Conv1d(bands, 44, 5, padding=2),
            nn.BatchNorm1d(44),
            nn.Tanh(),
            nn.Conv1d(44, bands, 5, padding=2),
        )

    def forward(self, phonemes: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(self.embed(phonemes))
        length, pitch = functional.softplus(self.duration(x)), self.pitch(x)
        bin_ = (pitch[..., None] > self.edges).sum(-1)
        x = x + self.bins(bin_)
        centre = length.cumsum(1) - length / 2
        align = (-((self.frames[None, :, None] - centre[:, None]) ** 2) / 4).softmax(-1)
        mel = self.spectrum(self.decoder(align @ x))
        return mel + self.post(mel.transpose(1, 2)).transpose(1, 2), length


@entry("speech", "synthesis", "transformer")
def fastspeech() -> Model:
    """In the form of FastSpeech 2, with soft lengths."""
    return token_model(_FastSpeech(), 30, 9, 6)


class _Hifi(nn.Module):
    """Transposed convolutions, each followed by the mean of residual stacks of different kernels and dilations."""

    def __init__(self, bands: int, widths: tuple[int, ...] = (48, 28, 18)) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(bands, widths[0], 7, padding=3))
        self.ups = nn.ModuleList(weight_norm(nn.ConvTranspose1d(a, b, 8, 4, 2)) for a, b in pairwise(widths))
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(
                    weight_norm(
                        nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2 * gap, dilation=gap)
                    )
                    for gap in (1, 3)
                )
                for kernel in (3, 5)
            )
            for width in widths[1:]
        )
        self.last = weight_norm(nn.Conv1d(widths[-1], 1, 7, padding=3))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first(mel)
        for up, stacks in zip(self.ups, self.stacks, strict=True):
            x = up(functional.leaky_relu(x, 0.1))
            total = torch.zeros_like(x)
            for stack in stacks.children():
                y = x
                for layer in stack.children():
                    y = y + layer(functional.leaky_relu(y, 0.1))
                total = total + y
            x = total / 2
        return torch.tanh(self.last(functional.leaky_relu(x)))


@entry("speech", "synthesis", "vocoder")
def hifigan() -> Model:
    """In the form of HiFi-GAN, weight norms kept."""
    return Model(_Hifi(20), (Input("mel", ("batch", 20, "frames")),), {"frames": 9}, {"frames": 6})


class _FourierVocoder(nn.Module):
    """ConvNeXt blocks along time; magnitude and phase, turned into sound by a fixed transposed convolution."""

    basis: Tensor

    def __init__(self, bands: int = 20, width: int = 44, size: int = 32) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(bands, width, 7, padding=3), nn.LayerNorm(width)
        self.around = nn.ModuleList(nn.Conv1d(width, width, 7, padding=3, groups=width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
            for _ in range(2)
        )
        self.scale = nn.ParameterList(torch.rand(width) for _ in range(2))
        self.head = nn.Linear(width, size + 2)
        frequency, time = torch.arange(size // 2 + 1.0), torch.arange(float(size))
        angle = 2 * math.pi * frequency[:, None] * time / size
        basis = torch.cat([angle.cos(), -angle.sin()])[:, None] * torch.hann_window(size)
        self.register_buffer("basis", basis / size)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.norm(self.first(mel).transpose(1, 2))
        for around, norm, feed, scale in zip(self.around, self.norms, self.feeds, self.scale, strict=True):
            x = x + scale * feed(norm(around(x.transpose(1, 2)).transpose(1, 2)))
        magnitude, phase = self.head(x).transpose(1, 2).chunk(2, 1)
        magnitude = magnitude.clamp(max=3).exp()
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], 1)
        return functional.conv_transpose1d(spectrum, self.basis, stride=8)


@entry("speech", "synthesis", "vocoder")
def fourier_vocoder() -> Model:
    """In the form of Vocos."""
    return Model(_FourierVocoder(), (Input("mel", ("batch", 20, "frames")),), {"frames": 9}, {"frames": 6})


class _Coupling(nn.Module):
    """Half of the channels shifts the other half, by gated convolutions that a speaker conditions."""

    def __init__(self, channels: int, hidden: int, speaker: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.pre, self.post = nn.Conv1d(channels // 2, hidden, 1), nn.Conv1d(hidden, channels // 2, 1)
        self.inside = nn.ModuleList(
            weight_norm(nn.Conv1d(hidden, 2 * hidden, 5, padding=2)) for _ in range(2)
        )
        self.condition = nn.Conv1d(speaker, 4 * hidden, 1)
        self.skips = nn.ModuleList(nn.Conv1d(hidden, 2 * hidden if i == 0 else hidden, 1) for i in range(2))

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        h, condition = self.pre(first), self.condition(speaker)
        total = torch.zeros_like(h)
        for i, (inside, skip) in enumerate(zip(self.inside, self.skips, strict=True)):
            given = condition[:, i * 2 * self.hidden : (i + 1) * 2 * self.hidden]
            a, b = (inside(h) + given).chunk(2, 1)
            done = skip(torch.tanh(a) * torch.sigmoid(b))
            if i == 0:
                h = h + done[:, : self.hidden]
                total = total + done[:, self.hidden :]
            else:
                total = total + done
        return torch.cat([first, second - self.post(total)], 1).flip(1)


class _FlowSpeech(nn.Module):
    """Text to means, an inverse flow of couplings and flips, then a vocoder on what comes out."""

    def __init__(self, width: int = 36) -> None:
        super().__init__()
        self.embed, self.speakers = nn.Embedding(30, width), nn.Embedding(4, 14)
        self.encoder = _FftBlock(width, 60)
        self.mean = nn.Conv1d(width, width, 1)
        self.flow = nn.ModuleList(_Coupling(width, 26, 14) for _ in range(2))
        self.sound = _Hifi(width, (40, 22))

    def forward(self, phonemes: Tensor, speaker: Tensor) -> Tensor:
        x = self.mean(self.encoder(self.embed(phonemes)).transpose(1, 2))
        who = self.speakers(speaker)[..., None]
        for layer in self.flow:
            x = layer(x, who)
        out: Tensor = self.sound(x)
        return out


@entry("speech", "synthesis", "flow")
def flow_speech() -> Model:
    """In the form of VITS: couplings, flips, conditioned gates."""
    inputs = (Input("phonemes", ("batch", "sequence"), "ids", 30), Input("speaker", ("batch",), "ids", 4))
    return Model(_FlowSpeech(), inputs, {"sequence": 9}, {"sequence": 6})


class _Codec(nn.Module):
    """Strided convolutions, an LSTM, residual vector quantisation by nearest codes, and the way back."""

    def __init__(self, width: int = 36, codes: int = 24, levels: int = 3) -> None:
        super().__init__()
        act = nn.ELU()
        self.down = nn.Sequential(
            nn.Conv1d(1, 18, 7, padding=3),
            act,
            nn.Conv1d(18, 26, 4, 2, 1),
            act,
            nn.Conv1d(26, width, 8, 4, 2),
            act,
        )
        self.memory = nn.LSTM(width, width, batch_first=True)
        self.squeeze, self.widen = nn.Conv1d(width, 20, 1), nn.Conv1d(20, width, 1)
        self.books = nn.ParameterList(torch.randn(codes, 20) for _ in range(levels))
        self.up = nn.Sequential(
            nn.ConvTranspose1d(width, 26, 8, 4, 2),
            act,
            nn.ConvTranspose1d(26, 18, 4, 2, 1),
            act,
            nn.Conv1d(18, 1, 7, padding=3),
        )

    def forward(self, sound: Tensor) -> Tensor:
        x = self.down(sound).transpose(1, 2)
        x = (x + self.memory(x)[0]).transpose(1, 2)
        left = self.squeeze(x).transpose(1, 2)
        total = torch.zeros_like(left)
        for book in self.books:
            distance = left.pow(2).sum(-1, keepdim=True) - 2 * left @ book.T + book.pow(2).sum(1)
            taken = functional.embedding(distance.argmin(-1), book)
            left, total = left - taken, total + taken
        out: Tensor = self.up(self.widen(total.transpose(1, 2)))
        return out


@entry("speech", "codec", "recurrent")
def neural_codec() -> Model:
    """In the form of EnCodec."""
    return Model(_Codec(), (Input("sound", ("batch", 1, "samples")),), {"samples": 64}, {"samples": 96})


class _Separator(nn.Module):
    """A learned filter bank, dilated depthwise blocks with norms over everything, a mask for each source."""

    def __init__(self, filters: int = 40, width: int = 26, hidden: int = 52, sources: int = 2) -> None:
        super().__init__()
        self.sources = sources
        self.bank = nn.Conv1d(1, filters, 8, 4, bias=False)
        self.norm, self.squeeze = nn.GroupNorm(1, filters), nn.Conv1d(filters, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, hidden, 1),
                nn.PReLU(),
                nn.GroupNorm(1, hidden),
                nn.Conv1d(hidden, hidden, 3, padding=gap, dilation=gap, groups=hidden),
                nn.PReLU(),
                nn.GroupNorm(1, hidden),
            )
            for gap in (1, 2)
        )
        self.stays = nn.ModuleList(nn.Conv1d(hidden, width, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(hidden, width, 1) for _ in range(2))
        self.masks = nn.Conv1d(width, sources * filters, 1)
        self.back = nn.ConvTranspose1d(filters, 1, 8, 4, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        bank = torch.relu(self.bank(mixture))
        x = self.squeeze(self.norm(bank))
        total = torch.zeros_like(x)
        for block, stay, skip in zip(self.blocks, self.stays, self.skips, strict=True):
            y = block(x)
            x, total = x + stay(y), total + skip(y)
        masks = torch.sigmoid(self.masks(total)).unflatten(1, (self.sources, -1))
        sources = masks * bank[:, None]
        out: Tensor = self.back(sources.flatten(0, 1)).unflatten(0, (-1, self.sources)).squeeze(2)
        return out


@entry("speech", "separation")
def source_separation() -> Model:
    """In the form of Conv-TasNet."""
    return Model(_Separator(), (Input("mixture", ("batch", 1, "samples")),), {"samples": 64}, {"samples": 96})

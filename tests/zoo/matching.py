"""Pairs of images: keypoints and what matches them, flow, stereo."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import conv_norm
from tests.zoo.registry import Input, Model, entry


class _KeyPoints(nn.Module):
    """Scores of the 64 places of each cell, and descriptors of unit length, taken where the caller's points lie."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.body = nn.Sequential(
            conv_norm(1, 18, 3, 2, act=act),
            conv_norm(18, 26, 3, 2, act=act),
            conv_norm(26, 38, 3, 2, act=act),
        )
        self.scores = nn.Sequential(conv_norm(38, 44, 3, act=act), nn.Conv2d(44, 65, 1))
        self.described = nn.Sequential(conv_norm(38, 46, 3, act=act), nn.Conv2d(46, 32, 1))

    def forward(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(image)
        heat = functional.pixel_shuffle(self.scores(x).softmax(1)[:, :-1], 8)
        peaks = heat * (functional.max_pool2d(heat, 5, 1, 2) == heat)
        described = functional.normalize(self.described(x), dim=1)
        taken = functional.grid_sample(described, points[:, :, None] * 2 - 1, align_corners=False)
        return peaks, functional.normalize(taken.squeeze(-1), dim=1).transpose(1, 2)


@entry("matching", "sample")
def keypoints() -> Model:
    """In the form of SuperPoint."""
    inputs = (Input("image", ("batch", 1, 48, 48)), Input("points", ("batch", "points", 2), "unit"))
    return Model(_KeyPoints(), inputs, {"points": 7}, {"points": 5})


def _rotated(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Neighbouring pairs of the last axis, turned."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class _MatcherLayer(nn.Module):
    """Attention within each image, turned by where points lie; then across both, with one matrix for both ways."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.three, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.shared, self.value, self.back = (nn.Linear(width, width) for _ in range(3))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, 76), nn.LayerNorm(76), nn.GELU(), nn.Linear(76, width))
            for _ in range(2)
        )

    def _split(self, x: Tensor) -> Tensor:
        out: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return out

    def own(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        q, k, v = (self._split(one) for one in self.three(x).chunk(3, -1))
        q, k = _rotated(q, sin, cos), _rotated(k, sin, cos)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        message = self.out((weights @ v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.feed[0](torch.cat([x, message], -1))
        return out

    def cross(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        qa, qb, va, vb = (
            self._split(one) for one in (self.shared(a), self.shared(b), self.value(a), self.value(b))
        )
        similar = qa @ qb.transpose(-1, -2) * qa.shape[-1] ** -0.5
        to_a = self.back((similar.softmax(-1) @ vb).transpose(1, 2).flatten(2))
        to_b = self.back((similar.softmax(-2).transpose(-1, -2) @ va).transpose(1, 2).flatten(2))
        return a + self.feed[1](torch.cat([a, to_a], -1)), b + self.feed[1](torch.cat([b, to_b], -1))


class _Matcher(nn.Module):
    """Descriptors of two images with their points; scores of every pair, and of having one at all."""

    def __init__(self, into: int = 32, width: int = 40, heads: int = 4) -> None:
        super().__init__()
        self.project = nn.Linear(into, width)
        self.waves = nn.Linear(2, width // heads // 2, bias=False)
        self.layers = nn.ModuleList(_MatcherLayer(width, heads) for _ in range(2))
        self.final, self.certain = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, da: Tensor, pa: Tensor, db: Tensor, pb: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.project(da), self.project(db)
        wa, wb = self.waves(pa)[:, None], self.waves(pb)[:, None]
        for layer in self.layers:
            assert isinstance(layer, _MatcherLayer)
            a, b = layer.own(a, wa.sin(), wa.cos()), layer.own(b, wb.sin(), wb.cos())
            a, b = layer.cross(a, b)
        similar = self.final(a) @ self.final(b).transpose(1, 2) * a.shape[-1] ** -0.25
        ca, cb = self.certain(a), self.certain(b).transpose(1, 2)
        scores = similar.log_softmax(2) + similar.log_softmax(1)
        return scores + functional.logsigmoid(ca) + functional.logsigmoid(cb), ca.sigmoid()


@entry("matching", "transformer", "rotary")
def feature_matcher() -> Model:
    """In the form of LightGlue."""
    inputs = (
        Input("first", ("batch", "points", 32)),
        Input("at_first", ("batch", "points", 2), "unit"),
        Input("second", ("batch", "others", 32)),
        Input("at_second", ("batch", "others", 2), "unit"),
    )
    return Model(_Matcher(), inputs, {"points": 7, "others": 6}, {"points": 5, "others": 9})


class _LinearAttention(nn.Module):
    """Attention by kernels: keys and values are summed over places first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.merge = nn.Linear(width, width, bias=False)
        self.feed = nn.Sequential(
            nn.Linear(2 * width, 74, bias=False), nn.ReLU(), nn.Linear(74, width, bias=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        q, k, v = (
            made(given).unflatten(-1, (self.heads, -1))
            for made, given in ((self.query, x), (self.key, other), (self.value, other))
        )
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        summed = torch.einsum("nshd,nshv->nhdv", k, v)
        scale = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(1)) + 1e-6)
        message = torch.einsum("nlhd,nhdv,nlh->nlhv", q, summed, scale)
        message = self.norms[0](self.merge(message.flatten(2)))
        out: Tensor = x + self.norms[1](self.feed(torch.cat([x, message], -1)))
        return out


@entry("matching", "transformer", "linear-attention")
def dense_matcher() -> Model:
    """In the form of LoFTR's coarse level."""

    class Net(nn.Module):
        def __init__(self, width: int = 40) -> None:
            super().__init__()
            act = nn.ReLU()
            self.body = nn.Sequential(
                conv_norm(1, 18, 3, 2, act=act), conv_norm(18, 28, 3, 2, act=act), nn.Conv2d(28, width, 1)
            )
            self.place = nn.Parameter(torch.randn(1, width, 8, 8))
            self.own, self.cross = _LinearAttention(width, 4), _LinearAttention(width, 4)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            a, b = ((self.body(x) + self.place).flatten(2).transpose(1, 2) for x in (left, right))
            a, b = self.own(a, a), self.own(b, b)
            a, b = self.cross(a, b), self.cross(b, a)
            similar = torch.einsum("nlc,nsc->nls", a, b) / a.shape[-1]
            out: Tensor = similar.softmax(1) * similar.softmax(2)
            return out

    return Model(Net(), (Input("left", ("batch", 1, 32, 32)), Input("right", ("batch", 1, 32, 32))))


class _ConvGru(nn.Module):
    def __init__(self, hidden: int, into: int) -> None:
        super().__init__()
        self.update, self.reset, self.new = (nn.Conv2d(hidden + into, hidden, 3, padding=1) for _ in range(3))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        both = torch.cat([h, x], 1)
        z, r = self.update(both).sigmoid(), self.reset(both).sigmoid()
        out: Tensor = (1 - z) * h + z * self.new(torch.cat([r * h, x], 1)).tanh()
        return out


class _OpticalFlow(nn.Module):
    """All pairs of features; a recurrent cell looks them up around where flow leads, three times over."""

    around: Tensor
    home: Tensor

    def __init__(self, width: int = 34, hidden: int = 22, reach: int = 1) -> None:
        super().__init__()
        act = nn.ReLU()
        self.features = nn.Sequential(
            conv_norm(3, 18, 3, 2, act=act), conv_norm(18, 26, 3, 2, act=act), nn.Conv2d(26, width, 1)
        )
        self.context = nn.Sequential(conv_norm(3, 16, 3, 2, act=act), nn.Conv2d(16, 2 * hidden, 3, 2, 1))
        self.hidden, self.size = hidden, 8
        places = (2 * reach + 1) ** 2
        self.seen = nn.Sequential(nn.Conv2d(places + 2, 30, 3, padding=1), nn.ReLU())
        self.cell = _ConvGru(hidden, hidden + 30)
        self.flow = nn.Sequential(
            nn.Conv2d(hidden, 28, 3, padding=1), nn.ReLU(), nn.Conv2d(28, 2, 3, padding=1)
        )
        steps = torch.arange(-float(reach), reach + 1)
        self.register_buffer(
            "around", torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).flatten(0, 1)
        )
        line = torch.arange(8.0)
        self.register_buffer("home", torch.stack(torch.meshgrid(line, line, indexing="xy")))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.features(first), self.features(second)
        pairs = (
            (a.flatten(2).transpose(1, 2) @ b.flatten(2) / a.shape[1] ** 0.5)
            .unflatten(2, (1, 8, 8))
            .flatten(0, 1)
        )
        h, x = self.context(first).chunk(2, 1)
        h, x = h.tanh(), x.relu()
        at = self.home + torch.zeros_like(a[:, :2])
        for _ in range(3):
            grid = at.flatten(2).transpose(1, 2).flatten(0, 1)[:, None, None] + self.around[None, :, None]
            taken = functional.grid_sample(pairs, grid / 3.5 - 1, align_corners=True)
            taken = taken.flatten(1).unflatten(0, (-1, 64)).transpose(1, 2).unflatten(2, (8, 8))
            seen = self.seen(torch.cat([taken, at - self.home], 1))
            h = self.cell(h, torch.cat([x, seen], 1))
            at = at + self.flow(h)
        return at - self.home


@entry("matching", "recurrent", "sample")
def optical_flow() -> Model:
    """In the form of RAFT."""
    return Model(
        _OpticalFlow(), (Input("first", ("batch", 3, 32, 32)), Input("second", ("batch", 3, 32, 32)))
    )


class _Stereo(nn.Module):
    """Features of both sides, shifted against each other, concatenated for each disparity; convolutions over that."""

    steps: Tensor

    def __init__(self, disparities: int = 4) -> None:
        super().__init__()
        act = nn.ReLU()
        self.disparities = disparities
        self.features = nn.Sequential(
            conv_norm(3, 18, 3, 2, act=act), conv_norm(18, 24, 3, act=act), nn.Conv2d(24, 14, 1)
        )
        self.cost = nn.Sequential(
            nn.Conv3d(28, 30, 3, padding=1, bias=False),
            nn.BatchNorm3d(30),
            nn.ReLU(),
            nn.Conv3d(30, 22, 3, padding=1),
            nn.ReLU(),
        )
        self.last = nn.Conv3d(22, 1, 3, padding=1)
        self.register_buffer("steps", torch.arange(float(disparities)))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.features(left), self.features(right)
        width = a.shape[3]
        pairs = [
            torch.cat([a, functional.pad(b, (shift, 0))[..., :width]], 1) for shift in range(self.disparities)
        ]
        cost = self.last(self.cost(torch.stack(pairs, 2))).squeeze(1)
        out: Tensor = ((-cost).softmax(1) * self.steps[:, None, None]).sum(1)
        return out


@entry("matching", "conv3d")
def stereo() -> Model:
    """In the form of PSMNet."""
    return Model(_Stereo(), (Input("left", ("batch", 3, 24, 24)), Input("right", ("batch", 3, 24, 24))))

"""Detectors: heads over several scales, feature pyramids, centre maps, and a set-prediction transformer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import Residual, conv_norm
from tests.zoo.registry import Model, entry, image_model


class _C2f(nn.Module):
    """One convolution, split in two; each bottleneck feeds the next, and all are concatenated."""

    def __init__(self, into: int, out: int, mid: int, count: int, *, shortcut: bool) -> None:
        super().__init__()
        self.mid = mid
        self.first = conv_norm(into, 2 * mid, 1, act=nn.SiLU())
        branches = [
            nn.Sequential(conv_norm(mid, mid, act=nn.SiLU()), conv_norm(mid, mid, act=nn.SiLU()))
            for _ in range(count)
        ]
        self.steps = nn.ModuleList([Residual(b) if shortcut else b for b in branches])
        self.last = conv_norm((2 + count) * mid, out, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).split(self.mid, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        out: Tensor = self.last(torch.cat(parts, 1))
        return out


class _PoolPyramid(nn.Module):
    """Three max pools in a row, all concatenated (SPPF)."""

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, mid, 1, act=nn.SiLU())
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.last = conv_norm(4 * mid, channels, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        out: Tensor = self.last(torch.cat(parts, 1))
        return out


class _YoloNeck(nn.Module):
    """Backbone and top-down, bottom-up neck; gives maps at strides 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.stem = nn.Sequential(conv_norm(3, 12, 3, 2, act=act), conv_norm(12, 20, 3, 2, act=act))
        self.stage1 = _C2f(20, 22, 10, 1, shortcut=True)
        self.stage2 = nn.Sequential(
            conv_norm(22, 38, 3, 2, act=act), _C2f(38, 38, 18, 2, shortcut=True), _PoolPyramid(38, 14)
        )
        self.up = _C2f(60, 26, 12, 1, shortcut=False)
        self.down = conv_norm(26, 30, 3, 2, act=act)
        self.join = _C2f(68, 42, 16, 1, shortcut=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stage1(self.stem(x))
        coarse = self.stage2(fine)
        raised = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        near = self.up(torch.cat([raised, fine], 1))
        return near, self.join(torch.cat([self.down(near), coarse], 1))


class _AnchorHead(nn.Module):
    """Per anchor: box offsets, objectness and classes, decoded against a fixed grid."""

    anchors: Tensor

    def __init__(self, widths: tuple[int, ...], anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.count, self.fields = anchors, 5 + classes
        self.convs = nn.ModuleList(nn.Conv2d(w, anchors * self.fields, 1) for w in widths)
        self.register_buffer("anchors", torch.rand(len(widths), 1, anchors, 1, 1, 2) + 0.5)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        boxes = []
        for level, (conv, values) in enumerate(zip(self.convs, maps, strict=True)):
            batch, _, height, width = values.shape
            raw = conv(values).view(batch, self.count, self.fields, height, width).permute(0, 1, 3, 4, 2)
            place, extent, rest = raw.sigmoid().split((2, 2, self.fields - 4), 4)
            decoded = torch.cat([place * 2 - 0.5, (extent * 2) ** 2 * self.anchors[level], rest], 4)
            boxes.append(decoded.reshape(batch, self.count * height * width, self.fields))
        return torch.cat(boxes, 1)


@entry("detection", "concat")
def yolo_anchors() -> Model:
    return image_model(nn.Sequential(_YoloNeck(), _AnchorHead((26, 42))), 32, 48)


class _DistributionHead(nn.Module):
    """Box sides as expectations over 8 bins (softmax and a fixed 1x1 weight), class scores beside."""

    def __init__(self, widths: tuple[int, ...], bins: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.box = nn.ModuleList(
            nn.Sequential(conv_norm(w, 24, act=nn.SiLU()), nn.Conv2d(24, 4 * bins, 1)) for w in widths
        )
        self.score = nn.ModuleList(
            nn.Sequential(conv_norm(w, 28, act=nn.SiLU()), nn.Conv2d(28, classes, 1)) for w in widths
        )
        self.register_buffer("steps", torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        both = [
            torch.cat([box(m), score(m)], 1).flatten(2)
            for box, score, m in zip(self.box, self.score, maps, strict=True)
        ]
        sides, scores = torch.cat(both, 2).split((4 * self.bins, self.classes), 1)
        batch, _, places = sides.shape
        spread = sides.view(batch, 4, self.bins, places).transpose(1, 2).softmax(1)
        distance = functional.conv2d(spread, cast(Tensor, self.steps)).view(batch, 4, places)
        return torch.cat([distance, scores.sigmoid()], 1)


@entry("detection", "concat")
def yolo_c2f() -> Model:
    return image_model(nn.Sequential(_YoloNeck(), _DistributionHead((26, 42))), 32, 48)


class _Ssd(nn.Module):
    """Boxes and scores from three scales, flattened pixel-major as SSD does."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        act = nn.ReLU()
        self.classes = classes
        self.stages = nn.ModuleList(
            [
                nn.Sequential(conv_norm(3, 16, 3, 2, act=act), conv_norm(16, 28, 3, 2, act=act)),
                conv_norm(28, 36, 3, 2, act=act),
                conv_norm(36, 44, 3, 2, act=act),
            ]
        )
        counts = ((28, 4), (36, 6), (44, 6))
        self.boxes = nn.ModuleList(nn.Conv2d(w, n * 4, 3, 1, 1) for w, n in counts)
        self.scores = nn.ModuleList(nn.Conv2d(w, n * classes, 3, 1, 1) for w, n in counts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = [], []
        for stage, box, score in zip(self.stages, self.boxes, self.scores, strict=True):
            x = stage(x)
            boxes.append(box(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
            scores.append(score(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes))
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(-1)


@entry("detection")
def ssd() -> Model:
    return image_model(_Ssd(), 32, 48)


class _Fpn(nn.Module):
    """Lateral 1x1 convolutions summed top-down; one shared head reads every level."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        widths = (16, 28, 40)
        self.stages = nn.ModuleList(
            [conv_norm(a, b, 3, 2, act=act) for a, b in zip((3, *widths), widths, strict=False)]
        )
        self.laterals = nn.ModuleList(nn.Conv2d(w, 32, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(32, 32, 3, 1, 1) for _ in widths)
        self.shared = nn.Sequential(nn.Conv2d(32, 24, 3, 1, 1), nn.GroupNorm(4, 24), nn.ReLU())
        self.head = nn.Conv2d(24, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        lateral = [conv(m) for conv, m in zip(self.laterals, maps, strict=True)]
        tops = [lateral[-1]]
        for side in reversed(lateral[:-1]):
            tops.append(side + functional.interpolate(tops[-1], scale_factor=2.0, mode="nearest"))
        return tuple(self.head(self.shared(c(t))) for c, t in zip(self.smooth, reversed(tops), strict=True))


@entry("detection", "residual")
def fpn() -> Model:
    return image_model(_Fpn(), 32, 48)


class _CenterNet(nn.Module):
    """Transposed convolutions back to stride 4, then three heads and the peaks of the centre map."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.down = nn.Sequential(
            conv_norm(3, 18, 3, 2, act=act),
            conv_norm(18, 30, 3, 2, act=act),
            conv_norm(30, 46, 3, 2, act=act),
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(46, 34, 4, 2, 1, bias=False), nn.BatchNorm2d(34), nn.ReLU()
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(34, hidden, 3, 1, 1), nn.ReLU(), nn.Conv2d(hidden, out, 1))
            for hidden, out in ((20, 3), (22, 2), (26, 2))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.up(self.down(x))
        centre, extent, offset = (head(shared) for head in self.heads)
        heat = centre.sigmoid()
        peaks = heat * (functional.max_pool2d(heat, 3, 1, 1) == heat)
        return peaks, extent, offset


@entry("detection")
def centernet() -> Model:
    return image_model(_CenterNet(), 32, 48)


class _Detr(nn.Module):
    """Convolutional features, an encoder over pixels, a decoder from learned queries to boxes and classes."""

    def __init__(self, width: int = 40, queries: int = 6) -> None:
        super().__init__()
        act = nn.ReLU()
        self.backbone = nn.Sequential(conv_norm(3, 18, 3, 2, act=act), conv_norm(18, 30, 3, 2, act=act))
        self.project = nn.Conv2d(30, width, 1)
        self.place = nn.Parameter(torch.randn(1, 64, width))
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.encoder = nn.TransformerEncoderLayer(width, 4, 72, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(width, 4, 76, batch_first=True)
        self.classes = nn.Linear(width, 5)
        self.boxes = nn.Sequential(nn.Linear(width, 36), nn.ReLU(), nn.Linear(36, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.project(self.backbone(x)).flatten(2).transpose(1, 2)
        memory = self.encoder(pixels + self.place)
        found = self.decoder(self.queries.expand(x.shape[0], -1, -1), memory)
        return self.classes(found), self.boxes(found).sigmoid()


@entry("detection", "transformer")
def detr() -> Model:
    return image_model(_Detr(), 32)

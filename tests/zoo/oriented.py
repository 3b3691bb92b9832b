"""Detectors that lay features out anew: turned boxes, features taken where boxes lie, deformable attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import conv_norm
from tests.zoo.registry import Input, Model, entry, image_model


def _grid(height: int, width: int) -> Tensor:
    """(height, width, 2): x and y of the middle of each cell."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


class _TurnedBoxes(nn.Module):
    """Sides as expectations over bins, an angle beside them, corners of the turned box, classes."""

    centres: Tensor
    steps: Tensor

    def __init__(self, bins: int = 8, classes: int = 4) -> None:
        super().__init__()
        act = nn.SiLU()
        self.bins, self.size = bins, 8
        self.stem = nn.Sequential(conv_norm(3, 18, 3, 2, act=act), conv_norm(18, 34, 3, 2, act=act))
        self.left, self.right = conv_norm(34, 20, 1, act=act), conv_norm(34, 20, 1, act=act)
        self.inside = nn.Sequential(conv_norm(20, 20, 3, act=act), conv_norm(20, 20, 3, act=act))
        self.mix = conv_norm(40, 44, 1, act=act)
        self.box = nn.Sequential(conv_norm(44, 26, 3, act=act), nn.Conv2d(26, 4 * bins, 1))
        self.angle = nn.Sequential(conv_norm(44, 14, 3, act=act), nn.Conv2d(14, 1, 1))
        self.kind = nn.Sequential(conv_norm(44, 30, 3, act=act), nn.Conv2d(30, classes, 1))
        self.register_buffer("centres", _grid(self.size, self.size).flatten(0, 1))
        self.register_buffer("steps", torch.arange(bins, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = self.mix(torch.cat([self.left(x), self.inside(self.right(x))], 1))
        sides = self.box(x).flatten(2).transpose(1, 2).unflatten(2, (4, self.bins)).softmax(-1) @ self.steps
        angle = (self.angle(x).flatten(2).transpose(1, 2).sigmoid() - 0.25) * math.pi
        shift = (sides[..., 2:] - sides[..., :2]) / 2
        extent = sides[..., 2:] + sides[..., :2]
        sin, cos = angle.sin(), angle.cos()
        middle = self.centres + torch.cat(
            [shift[..., :1] * cos - shift[..., 1:] * sin, shift[..., :1] * sin + shift[..., 1:] * cos], -1
        )
        boxes = torch.cat([middle, extent, angle], -1)
        return boxes, self.kind(x).flatten(2).transpose(1, 2).sigmoid()


@entry("detection", "oriented")
def oriented_boxes() -> Model:
    """In the form of YOLO-OBB."""
    return image_model(_TurnedBoxes(), 32)


class _AlignedHead(nn.Module):
    """Boxes are refined, features taken again where they lie, orientations pooled away for the classes."""

    centres: Tensor

    def __init__(self, turns: int = 4, classes: int = 3) -> None:
        super().__init__()
        act = nn.ReLU()
        self.turns, self.size = turns, 8
        self.body = nn.Sequential(conv_norm(3, 20, 3, 2, act=act), conv_norm(20, 36, 3, 2, act=act))
        self.first = nn.Sequential(conv_norm(36, 22, 3, act=act), nn.Conv2d(22, 5, 1))
        self.align = nn.Conv2d(36, 12 * turns, 1)
        self.box = nn.Sequential(conv_norm(12 * turns, 28, 3, act=act), nn.Conv2d(28, 5, 1))
        self.kind = nn.Sequential(conv_norm(12, 24, 3, act=act), nn.Conv2d(24, classes, 1))
        self.register_buffer("centres", _grid(self.size, self.size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(x)
        coarse = self.first(x)
        places = self.centres + coarse[:, :2].permute(0, 2, 3, 1).tanh()
        taken = functional.grid_sample(x, places * 2 / self.size - 1, align_corners=False)
        turned = torch.relu(self.align(taken))
        invariant = turned.unflatten(1, (12, self.turns)).amax(2)
        return coarse, self.box(turned), self.kind(invariant)


@entry("detection", "oriented")
def oriented_align() -> Model:
    """In the form of S2A-Net."""
    return image_model(_AlignedHead(), 32)


class _DeformableAttention(nn.Module):
    """Each query looks at a few places of each level, which it chooses; bilinear samples, weighted."""

    def __init__(self, width: int, heads: int, levels: tuple[int, ...], points: int = 3) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        count = heads * len(levels) * points
        self.offsets, self.weights = nn.Linear(width, 2 * count), nn.Linear(width, count)

    def forward(self, query: Tensor, at: Tensor, memory: Tensor) -> Tensor:
        """(n, q, width), (n, q, 2) in [0, 1], (n, places, width)."""
        heads, levels, points = self.heads, len(self.levels), self.points
        value = self.value(memory).unflatten(2, (heads, -1))
        offsets = self.offsets(query).unflatten(2, (heads, levels, points, 2))
        weights = self.weights(query).unflatten(2, (heads, levels * points)).softmax(-1)
        places = at[:, :, None, None, None] + offsets.tanh() * 0.2
        sampled = []
        for level, part in enumerate(value.split([side * side for side in self.levels], 1)):
            side = self.levels[level]
            image = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (side, side))
            grid = places[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
            sampled.append(functional.grid_sample(image, grid, align_corners=False))
        stacked = torch.cat(sampled, -1)
        mixed = (stacked * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        result: Tensor = self.out(mixed.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2))
        return result


class _DeformableDetector(nn.Module):
    """Two levels of features, the best places of the encoder become queries, decoder layers refine boxes."""

    def __init__(self, width: int = 40, heads: int = 4, queries: int = 6) -> None:
        super().__init__()
        act = nn.ReLU()
        self.queries = queries
        self.early = nn.Sequential(conv_norm(3, 18, 3, 2, act=act), conv_norm(18, 26, 3, 2, act=act))
        self.late = conv_norm(26, 42, 3, 2, act=act)
        self.lateral = nn.ModuleList(nn.Conv2d(into, width, 1) for into in (26, 42))
        self.score, self.place = nn.Linear(width, 5), nn.Linear(width, 2)
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross = _DeformableAttention(width, heads, (8, 4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(width, 72), nn.ReLU(), nn.Linear(72, width))
        self.kind, self.box = (
            nn.Linear(width, 5),
            nn.Sequential(nn.Linear(width, 34), nn.ReLU(), nn.Linear(34, 4)),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        early = self.early(image)
        maps = [lateral(x) for lateral, x in zip(self.lateral, (early, self.late(early)), strict=True)]
        memory = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], 1)
        best = self.score(memory).amax(-1).topk(self.queries, 1).indices
        query = memory.gather(1, best[..., None].expand(-1, -1, memory.shape[2]))
        at = self.place(query).sigmoid()
        query = self.norms[0](query + self.own(query, query, query, need_weights=False)[0])
        query = self.norms[1](query + self.cross(query, at, memory))
        query = self.norms[2](query + self.feed(query))
        return self.kind(query), torch.cat([at, at], -1) + self.box(query)


@entry("detection", "transformer")
def deformable_detr() -> Model:
    """In the form of Deformable DETR with two stages."""
    return image_model(_DeformableDetector(), 32)


class _ModulatedConv(nn.Module):
    """A convolution that samples at learned offsets, each sample weighted: by grid_sample, as exporters write it."""

    around: Tensor
    centres: Tensor

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.offset, self.weight = nn.Conv2d(into, 18, 3, 1, 1), nn.Conv2d(into, 9, 3, 1, 1)
        self.mix = nn.Conv2d(9 * into, out, 1)
        around = torch.stack(torch.meshgrid(*[torch.arange(-1.0, 2.0)] * 2, indexing="ij"), -1).flatten(0, 1)
        self.register_buffer("around", around.flip(-1))
        self.register_buffer("centres", _grid(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        offsets = self.offset(x).unflatten(1, (9, 2)).permute(0, 3, 4, 1, 2).tanh()
        places = (self.centres[:, :, None] + self.around + offsets) / 4 - 1
        taken = functional.grid_sample(x, places.flatten(2, 3), align_corners=False).unflatten(3, (8, 9))
        weighted = taken * self.weight(x).sigmoid().permute(0, 2, 3, 1)[:, None]
        result: Tensor = self.mix(weighted.permute(0, 1, 4, 2, 3).flatten(1, 2))
        return result


@entry("detection", "sample")
def deformable_conv() -> Model:
    """In the form of DCNv2."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            act = nn.ReLU()
            self.stem = nn.Sequential(conv_norm(3, 18, 3, 2, act=act), conv_norm(18, 22, 3, 2, act=act))
            self.deform, self.norm = _ModulatedConv(22, 38), nn.BatchNorm2d(38)
            self.head = nn.Linear(38, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.deform(self.stem(x))))
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    return image_model(Net(), 32)


class _MaskDecoder(nn.Module):
    """Tokens and image attend to each other; a token becomes the weights by which its mask is read off the image."""

    def __init__(self, width: int = 40, masks: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, masks + 1, width))
        self.first = nn.MultiheadAttention(width, 4, batch_first=True)
        self.to_image = nn.MultiheadAttention(width, 4, batch_first=True)
        self.to_tokens = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.feed = nn.Sequential(nn.Linear(width, 88), nn.ReLU(), nn.Linear(88, width))
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(width, 28, 2, 2),
            nn.GroupNorm(1, 28),
            nn.GELU(),
            nn.ConvTranspose2d(28, 12, 2, 2),
            nn.GELU(),
        )
        self.weights = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 30), nn.ReLU(), nn.Linear(30, 12)) for _ in range(masks)
        )
        self.quality = nn.Sequential(nn.Linear(width, 26), nn.ReLU(), nn.Linear(26, masks))

    def forward(self, image: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([self.tokens.expand(image.shape[0], -1, -1), prompt], 1)
        places = image.flatten(2).transpose(1, 2)
        tokens = self.norms[0](tokens + self.first(tokens, tokens, tokens, need_weights=False)[0])
        tokens = self.norms[1](tokens + self.to_image(tokens, places, places, need_weights=False)[0])
        tokens = self.norms[2](tokens + self.feed(tokens))
        places = self.norms[3](places + self.to_tokens(places, tokens, tokens, need_weights=False)[0])
        grown = self.grow(places.transpose(1, 2).unflatten(2, (6, 6)))
        readers = torch.stack([made(tokens[:, i + 1]) for i, made in enumerate(self.weights)], 1)
        return (readers @ grown.flatten(2)).unflatten(2, (24, 24)), self.quality(tokens[:, 0])


@entry("segmentation", "transformer")
def mask_decoder() -> Model:
    """In the form of the decoder of Segment Anything."""
    return Model(
        _MaskDecoder(),
        (Input("image", ("batch", 40, 6, 6)), Input("prompt", ("batch", "prompts", 40))),
        {"prompts": 2},
        {"prompts": 4},
    )

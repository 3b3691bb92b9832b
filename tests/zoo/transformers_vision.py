"""Vision transformers, written out in plain torch and from `transformers` configurations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.registry import Model, entry, image_model

Split = Literal["unbind", "chunk", "slice"]


class FusedAttention(nn.Module):
    """One linear gives queries, keys and values; `split` says how they are told apart."""

    def __init__(self, width: int, heads: int, size: int, split: Split, *, norm: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.split = heads, size, split
        self.qkv = nn.Linear(width, 3 * heads * size)
        self.proj = nn.Linear(heads * size, width)
        self.q_norm = nn.LayerNorm(size) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(size) if norm else nn.Identity()

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, _ = x.shape
        fused = self.qkv(x)
        if self.split == "unbind":
            stacked = fused.reshape(batch, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            return tuple(stacked.unbind(0))
        if self.split == "chunk":
            parts = fused.chunk(3, dim=-1)
        else:
            step = self.heads * self.size
            parts = tuple(fused[..., k * step : (k + 1) * step] for k in range(3))
        return tuple(p.view(batch, tokens, self.heads, self.size).transpose(1, 2) for p in parts)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._parts(x)
        mixed = functional.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.heads * self.size))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, width: int, mixer: nn.Module, hidden: int) -> None:
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(width), mixer
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class FusedViT(nn.Module):
    """Patches, class token, position embedding, blocks, head on the class token."""

    def __init__(self, split: Split, *, norm: bool = False, width: int = 44) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(
            *(Block(width, FusedAttention(width, 4, 12, split, norm=norm), 108) for _ in range(2))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return out


@entry("vision", "transformer")
def vit_fused_unbind() -> Model:
    return image_model(FusedViT("unbind"))


@entry("vision", "transformer")
def vit_fused_chunk() -> Model:
    return image_model(FusedViT("chunk"))


@entry("vision", "transformer")
def vit_fused_slice() -> Model:
    return image_model(FusedViT("slice", norm=True))

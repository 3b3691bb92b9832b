"""Vision transformers, written out in plain torch and from `transformers` configurations."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import LayerNorm2d, Select, conv_norm, made
from tests.zoo.registry import Input, Model, entry, image_model

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
    """Queries and keys are normalised per head."""
    return image_model(FusedViT("slice", norm=True))


_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 104,
    "num_labels": 10,
}


def _vision(kind: str, settings: dict[str, Any], attention: str | None = "eager", *, size: int = 32) -> Model:
    chosen = {} if attention is None else {"attn_implementation": attention}
    config = made(f"{kind}Config", **settings, **chosen)
    model = made(f"{kind}ForImageClassification", config)
    return image_model(Select(model, ("pixel_values",), ("logits",)), size)


@entry("vision", "transformer")
def vit() -> Model:
    return _vision("ViT", _VIT)


@entry("vision", "transformer", "sdpa")
def vit_sdpa() -> Model:
    return _vision("ViT", _VIT, "sdpa")


@entry("vision", "transformer")
def deit() -> Model:
    """Class and distillation token; the head reads the first."""
    return _vision("DeiT", _VIT)


@entry("vision", "transformer")
def beit() -> Model:
    """Relative position bias tables and a scale per channel on each residual."""
    changes = {"use_relative_position_bias": True, "layer_scale_init_value": 0.5}
    return _vision("Beit", {**_VIT, **changes})


@entry("vision", "transformer")
def swin() -> Model:
    """Windows, shifted windows, patch merging."""
    size = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
    return _vision("Swin", {**size, "window_size": 4, "num_labels": 10})


@entry("vision", "cnn")
def convnext() -> Model:
    settings = {"hidden_sizes": [20, 36, 52], "depths": [1, 2, 1], "num_stages": 3, "patch_size": 2}
    return _vision("ConvNext", {**settings, "num_labels": 10, "layer_scale_init_value": 0.5}, None)


@entry("vision", "transformer", "segmentation")
def segformer() -> Model:
    """Attention over spatially reduced keys and values, depthwise convolutions in MLPs, all-MLP decoder."""
    config = made("SegformerConfig",
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[24, 40], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2], decoder_hidden_size=44, num_labels=6,
        attn_implementation="eager",
    )  # fmt: skip
    module = Select(made("SegformerForSemanticSegmentation", config), ("pixel_values",), ("logits",))
    return image_model(module, 32)


@entry("vision", "transformer", "depthwise")
def mobilevit() -> Model:
    """Attention over pixels at the same place of each patch, between convolutions."""
    config = made("MobileViTConfig",
        image_size=64, hidden_sizes=[24, 36, 44], neck_hidden_sizes=[8, 12, 16, 20, 28, 36, 60],
        num_attention_heads=4, mlp_ratio=2.0, expand_ratio=2.0, num_labels=10, attn_implementation="eager",
    )  # fmt: skip
    return image_model(
        Select(made("MobileViTForImageClassification", config), ("pixel_values",), ("logits",)), 64
    )


@entry("vision", "transformer", "norm")
def poolformer() -> Model:
    """Average pooling as the token mixer, GroupNorm with one group."""
    config = made("PoolFormerConfig",
        hidden_sizes=[20, 36], depths=[1, 1], num_encoder_blocks=2, patch_sizes=[5, 3], strides=[4, 2],
        padding=[2, 1], mlp_ratio=3.0, num_labels=10, layer_scale_init_value=0.5,
    )  # fmt: skip
    module = Select(made("PoolFormerForImageClassification", config), ("pixel_values",), ("logits",))
    return image_model(module, 32, 48)


@entry("vision", "text", "transformer")
def clip() -> Model:
    """Both towers, their normalised embeddings and the similarity."""
    tower = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 100}
    text = {**tower, "vocab_size": 90, "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 1}
    image = {**tower, "hidden_size": 40, "image_size": 32, "patch_size": 8}
    config = made(
        "CLIPConfig", text_config=text, vision_config=image, projection_dim=28, attn_implementation="eager"
    )
    names = ("pixel_values", "input_ids", "attention_mask")
    module = Select(made("CLIPModel", config), names, ("logits_per_image", "text_embeds", "image_embeds"))
    inputs = (
        Input("pixel_values", ("batch", 3, 32, 32)),
        Input("input_ids", ("texts", "sequence"), "ids", 90),
        Input("attention_mask", ("texts", "sequence"), "ones"),
    )
    return Model(module, inputs, {"texts": 3, "sequence": 10}, {"texts": 4, "sequence": 7})


class _GlobalContext(nn.Module):
    """EfficientViT style: multi-scale queries, keys and values, ReLU kernels, key-value product first."""

    def __init__(self, width: int, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.near = nn.Conv2d(3 * width, 3 * width, 5, padding=2, groups=3 * width, bias=False)
        self.out = conv_norm(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        fused = self.qkv(x)
        both = torch.cat([fused, self.near(fused)], 1).reshape(batch, -1, 3 * self.size, height * width)
        query, key, value = both.split(self.size, 2)
        query, key = torch.relu(query), torch.relu(key)
        mixed = torch.matmul(torch.matmul(value, key.transpose(-1, -2)), query)
        total = torch.matmul(key.sum(-1, keepdim=True).transpose(-1, -2), query) + 1e-3
        out: Tensor = x + self.out((mixed / total).reshape(batch, -1, height, width))
        return out


@entry("vision", "transformer", "linear-attention")
def efficientvit() -> Model:
    body = nn.Sequential(
        conv_norm(3, 24, 3, 2, act=nn.Hardswish()),
        _GlobalContext(24),
        conv_norm(24, 40, 3, 2, act=nn.Hardswish()),
        _GlobalContext(40),
    )
    return image_model(
        nn.Sequential(body, LayerNorm2d(40), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10)), 16, 24
    )

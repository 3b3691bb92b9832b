"""Token mixers in plain torch: torch's own attention modules, linear attention, MLPs, gated units."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.registry import Input, Model, entry, image_model, token_model

VOCAB = 70


class _Patches(nn.Module):
    """An image as tokens: (batch, places, width)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, size, size)

    def forward(self, x: Tensor) -> Tensor:
        places: Tensor = self.conv(x).flatten(2).transpose(1, 2)
        return places


class _MeanHead(nn.Module):
    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


class _MixerBlock(nn.Module):
    """One MLP across places, one across channels."""

    def __init__(self, places: int, width: int, across: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(places, across), nn.GELU(), nn.Linear(across, places))
        self.channels = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channels(self.norm2(x))
        return out


@entry("vision", "mlp")
def mlp_mixer() -> Model:
    blocks = [_MixerBlock(16, 52, 28, 100) for _ in range(2)]
    return image_model(nn.Sequential(_Patches(52, 8), *blocks, _MeanHead(52)), 32)


class _SpatialGate(nn.Module):
    """gMLP: half of the hidden channels, mixed over places, gates the other half."""

    def __init__(self, places: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.into = nn.LayerNorm(width), nn.Linear(width, 2 * hidden)
        self.gate_norm, self.mix = nn.LayerNorm(hidden), nn.Conv1d(places, places, 1)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = functional.gelu(self.into(self.norm(x))).chunk(2, dim=-1)
        out: Tensor = x + self.out(value * self.mix(self.gate_norm(gate)))
        return out


@entry("vision", "mlp", "gate")
def gmlp() -> Model:
    blocks = [_SpatialGate(16, 46, 58) for _ in range(2)]
    return image_model(nn.Sequential(_Patches(46, 8), *blocks, _MeanHead(46)), 32)


@entry("transformer", "encoder")
def torch_encoder() -> Model:
    """torch.nn.TransformerEncoder, norm first."""
    layer = nn.TransformerEncoderLayer(44, 4, 96, batch_first=True, norm_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return token_model(nn.Sequential(nn.Embedding(VOCAB, 44), encoder, _MeanHead(44)), VOCAB)


class _SequenceFirst(nn.Module):
    """torch.nn.MultiheadAttention with the sequence first, and its averaged weights as an output."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.attention = nn.MultiheadAttention(width, 4)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, width))
        self.head = nn.Linear(width, 8)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens).transpose(0, 1)
        mixed, weights = self.attention(x, x, x)
        x = self.norm(x + mixed)
        return self.head(x + self.mlp(x)).transpose(0, 1), weights


@entry("transformer", "encoder")
def torch_multihead() -> Model:
    return token_model(_SequenceFirst(), VOCAB)


class _CrossAttention(nn.Module):
    """Torch attention whose keys and values come from another width."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(22, 28)
        self.attention = nn.MultiheadAttention(48, 4, kdim=28, vdim=28, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 84), nn.GELU(), nn.Linear(84, 7))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        seen = torch.tanh(self.context(context))
        out: Tensor = self.head(x + self.attention(x, seen, seen, need_weights=False)[0])
        return out


@entry("transformer", "cross-attention")
def torch_cross_attention() -> Model:
    inputs = (Input("query", ("batch", "length", 48)), Input("context", ("batch", "seen", 22)))
    return Model(_CrossAttention(), inputs, {"length": 9, "seen": 13}, {"length": 6, "seen": 10})


class _Performer(nn.Module):
    """Attention by random positive features: exp(xW - |x|^2/2), then key-value product first."""

    features: Tensor

    def __init__(self, width: int, heads: int, size: int, count: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.query, self.key, self.value = (nn.Linear(width, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, width)
        self.register_buffer("features", torch.randn(size, count))

    def _lift(self, x: Tensor) -> Tensor:
        scaled = x / self.size**0.25
        return torch.exp(scaled @ self.features - scaled.square().sum(-1, keepdim=True) / 2) + 1e-4

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self._lift(self._split(self.query(x))), self._lift(self._split(self.key(x)))
        context = torch.einsum("bhnf,bhnd->bhfd", key, self._split(self.value(x)))
        total = torch.einsum("bhnf,bhf->bhn", query, key.sum(2))
        mixed = torch.einsum("bhnf,bhfd->bhnd", query, context) / total.unsqueeze(-1)
        out: Tensor = x + self.out(mixed.transpose(1, 2).flatten(2))
        return out


@entry("transformer", "linear-attention")
def performer() -> Model:
    blocks = [_Performer(44, 4, 12, 20) for _ in range(2)]
    return token_model(nn.Sequential(nn.Embedding(VOCAB, 44), *blocks, _MeanHead(44)), VOCAB)


class _Gated(nn.Module):
    """A gated MLP; `fused` keeps both halves in one linear."""

    def __init__(self, width: int, hidden: int, act: nn.Module, *, fused: bool) -> None:
        super().__init__()
        self.norm, self.act, self.fused = nn.LayerNorm(width), act, fused
        self.into = nn.Linear(width, 2 * hidden if fused else hidden)
        self.gate = nn.Identity() if fused else nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        if self.fused:
            value, gate = self.into(normed).chunk(2, dim=-1)
        else:
            value, gate = self.into(normed), self.gate(normed)
        out: Tensor = x + self.out(value * self.act(gate))
        return out


@entry("mlp", "gate")
def glu_variants() -> Model:
    """GLU, bilinear, ReGLU, GEGLU and SwiGLU, fused and apart."""
    acts: tuple[nn.Module, ...] = (nn.Sigmoid(), nn.Identity(), nn.ReLU(), nn.GELU(), nn.SiLU())
    blocks = [_Gated(34, 50 + 2 * k, act, fused=k % 2 == 0) for k, act in enumerate(acts)]
    net = nn.Sequential(nn.Linear(16, 34), *blocks, nn.Linear(34, 8))
    return Model(net, (Input("features", ("batch", "places", 16)),), {"places": 6}, {"places": 9})


class _PlainNorm(nn.Module):
    """LayerNorm written out: mean, variance, square root."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
        return centred / deviation * self.weight + self.bias


class _PlainAttention(nn.Module):
    """Attention written out, with the scale taken from the shape at run time."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.query, self.key, self.value = (nn.Linear(width, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shape = (batch, length, self.heads, self.size)
        query = self.query(x).reshape(shape).permute(0, 2, 1, 3)
        key = self.key(x).reshape(shape).permute(0, 2, 3, 1)
        value = self.value(x).reshape(shape).permute(0, 2, 1, 3)
        scores = torch.matmul(query, key) / math.sqrt(query.shape[-1])
        mixed = torch.matmul(scores.softmax(-1), value).permute(0, 2, 1, 3)
        out: Tensor = self.out(mixed.reshape(batch, length, self.heads * self.size))
        return out


class _PlainBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _PlainNorm(width), _PlainNorm(width)
        self.attention = _PlainAttention(width, 4, 10)
        self.mlp = nn.Sequential(nn.Linear(width, 90), nn.Tanh(), nn.Linear(90, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


@entry("transformer", "encoder", "norm")
def decomposed_layernorm() -> Model:
    return token_model(
        nn.Sequential(nn.Embedding(VOCAB, 38), _PlainBlock(38), _PlainBlock(38), _MeanHead(38)), VOCAB
    )

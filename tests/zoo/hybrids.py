"""Decoders that mix kinds of layers: state spaces beside attention, gated recurrences, experts of several sorts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import RmsNorm
from tests.zoo.registry import Model, entry, token_model


class _SelectiveState(nn.Module):
    """A diagonal state space whose steps and matrices depend on the input; its sum over time as a masked product."""

    def __init__(self, width: int, inner: int, state: int = 6, rank: int = 4) -> None:
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.enter, self.leave = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.around = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.given = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.decay, self.skip = nn.Parameter(torch.rand(inner, state)), nn.Parameter(torch.randn(inner))

    def forward(self, x: Tensor) -> Tensor:
        inside, gate = self.enter(x).chunk(2, -1)
        inside = functional.silu(self.around(inside.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, write, read = self.given(inside).split([self.rank, self.state, self.state], -1)
        step = functional.softplus(self.step(step))
        rate = (-self.decay.exp() * step[..., None]).cumsum(1)
        span = rate[:, :, None] - rate[:, None]
        early = torch.ones(x.shape[1], x.shape[1]).tril()[None, :, :, None, None]
        kept = (span * early).exp() * early
        added = (step * inside)[..., None] * write[:, :, None]
        states = (kept * added[:, None]).sum(2)
        made = (states * read[:, :, None]).sum(-1) + self.skip * inside
        out: Tensor = self.leave(made * functional.silu(gate))
        return out


class _GroupedAttention(nn.Module):
    """Few key heads for many query heads, causal, within a window where one is given."""

    def __init__(self, width: int, heads: int, shared: int, size: int, window: int = 0) -> None:
        super().__init__()
        self.heads, self.shared, self.window = heads, shared, window
        self.query, self.out = (
            nn.Linear(width, heads * size, bias=False),
            nn.Linear(heads * size, width, bias=False),
        )
        self.key, self.value = (nn.Linear(width, shared * size, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (one(x).unflatten(-1, (self.shared, -1)).transpose(1, 2) for one in (self.key, self.value))
        k, v = (one.repeat_interleave(self.heads // self.shared, 1) for one in (k, v))
        ones = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        seen = ones.tril() & ones.triu(1 - self.window) if self.window else ones.tril()
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen, -1e4).softmax(-1)
        out: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return out


class _Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class _Experts(nn.Module):
    """The best of several gated layers for each token, stacked in one tensor each, and one that all tokens take."""

    def __init__(self, width: int, hidden: int, count: int, taken: int, *, shared: int = 0) -> None:
        super().__init__()
        self.count, self.taken = count, taken
        self.router = nn.Linear(width, count, bias=False)
        self.up, self.gate = (nn.Parameter(torch.randn(count, width, hidden)) for _ in range(2))
        self.down = nn.Parameter(torch.randn(count, hidden, width))
        self.shared = _Gated(width, shared) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        score = self.router(x).sigmoid()
        best, index = score.topk(self.taken, -1)
        best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(score).scatter(-1, index, best)
        h = functional.silu(torch.einsum("nld,edh->nleh", x, self.gate)) * torch.einsum(
            "nld,edh->nleh", x, self.up
        )
        made = torch.einsum("nleh,ehd->nled", h, self.down)
        out = (made * weights[..., None]).sum(2)
        return out if self.shared is None else out + self.shared(x)


class _Decoder(nn.Module):
    """Layers of a mixer and a feed-forward, each behind a norm, around a residual stream."""

    def __init__(self, width: int, vocab: int, layers: list[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.mixers = nn.ModuleList(mixer for mixer, _ in layers)
        self.feeds = nn.ModuleList(feed for _, feed in layers)
        self.norms = nn.ModuleList(RmsNorm(width) for _ in range(2 * len(layers) + 1))
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for i, (mixer, feed) in enumerate(zip(self.mixers, self.feeds, strict=True)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        out: Tensor = self.head(self.norms[-1](x))
        return out


@entry("decoder", "state-space", "experts", "hybrid")
def state_attention_experts() -> Model:
    """In the form of Jamba: state spaces, one attention, experts in every other layer."""
    layers: list[tuple[nn.Module, nn.Module]] = [
        (_SelectiveState(40, 56), _Gated(40, 76)),
        (_GroupedAttention(40, 4, 2, 12), _Experts(40, 44, 4, 2)),
        (_SelectiveState(40, 60), _Gated(40, 84)),
    ]
    return token_model(_Decoder(40, 90, layers), 90, 8, 6)


class _ParallelHeads(nn.Module):
    """Attention and a state space read the same input; the mean of both, each normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend, self.state = _GroupedAttention(width, 4, 2, 10, window=4), _SelectiveState(width, 48)
        self.norms = nn.ModuleList(RmsNorm(width) for _ in range(2))
        self.scale = nn.ParameterList(torch.rand(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norms[0](self.attend(x)), self.norms[1](self.state(x))
        out: Tensor = (a * self.scale[0] + b * self.scale[1]) / 2
        return out


@entry("decoder", "state-space", "hybrid")
def parallel_hybrid() -> Model:
    """In the form of Hymba, without its meta tokens."""
    return token_model(_Decoder(40, 90, [(_ParallelHeads(40), _Gated(40, h)) for h in (76, 84)]), 90, 8, 6)


class _GatedRecurrence(nn.Module):
    """A diagonal linear recurrence whose decay is gated, behind a short convolution, beside a gelu branch."""

    def __init__(self, width: int, inner: int, blocks: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, inner), nn.Linear(width, inner)
        self.around = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.blocks = blocks
        self.reset, self.write = (
            nn.Parameter(torch.randn(blocks, inner // blocks, inner // blocks)) for _ in range(2)
        )
        self.decay = nn.Parameter(torch.rand(inner))
        self.out = nn.Linear(inner, width)

    def _blockwise(self, x: Tensor, weight: Tensor) -> Tensor:
        return (
            torch.einsum("nlbi,bij->nlbj", x.unflatten(-1, (self.blocks, -1)), weight).flatten(-2).sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.around(self.left(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        reset, write = self._blockwise(y, self.reset), self._blockwise(y, self.write)
        rate = -functional.softplus(self.decay) * reset
        total = rate.cumsum(1)
        kept = (total[:, :, None] - total[:, None]).clamp(max=0).exp()
        early = torch.ones(x.shape[1], x.shape[1]).tril()[None, :, :, None]
        driven = (1 - (2 * rate).exp() + 1e-6).sqrt() * write * y
        states = (kept * early * driven[:, None]).sum(2)
        out: Tensor = self.out(states * functional.gelu(self.right(x)))
        return out


@entry("decoder", "recurrent", "hybrid")
def gated_recurrence() -> Model:
    """In the form of Griffin: recurrences, and attention within a window."""
    layers: list[tuple[nn.Module, nn.Module]] = [
        (_GatedRecurrence(40, 48), _Gated(40, 76)),
        (_GatedRecurrence(40, 56), _Gated(40, 80)),
        (_GroupedAttention(40, 4, 1, 12, window=4), _Gated(40, 84)),
    ]
    return token_model(_Decoder(40, 90, layers), 90, 8, 6)


class _Retention(nn.Module):
    """Attention without a softmax, decayed by distance, each head at its own rate; a norm of each head, a gate."""

    rate: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.value, self.gate = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.out, self.norm = nn.Linear(2 * width, width, bias=False), nn.GroupNorm(heads, 2 * width)
        self.register_buffer("rate", torch.log(1 - 2.0 ** (-2 - torch.arange(float(heads)))))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        place = torch.arange(x.shape[1], dtype=torch.float32)
        apart = place[:, None] - place
        decay = (apart.clamp(min=0) * self.rate[:, None, None]).exp() * (apart >= 0)
        made = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 * decay) @ v
        flat = self.norm(made.transpose(1, 2).flatten(0, 1).flatten(1)).unflatten(0, (-1, x.shape[1]))
        out: Tensor = self.out(flat * functional.silu(self.gate(x)))
        return out


@entry("decoder", "recurrent")
def retention() -> Model:
    """In the form of RetNet, without its rotation."""
    return token_model(_Decoder(40, 90, [(_Retention(40, 4), _Gated(40, h)) for h in (76, 84)]), 90, 8, 6)


@entry("decoder", "experts")
def shared_experts() -> Model:
    """In the form of DeepSeekMoE: experts scored by sigmoids, and one that every token takes."""
    layers: list[tuple[nn.Module, nn.Module]] = [
        (_GroupedAttention(40, 4, 4, 10), _Gated(40, 76)),
        (_GroupedAttention(40, 4, 4, 10), _Experts(40, 36, 6, 2, shared=44)),
    ]
    return token_model(_Decoder(40, 90, layers), 90, 8, 6)


class _SoftExperts(nn.Module):
    """Experts with slots: each slot is a mixture of all tokens, each token a mixture of all slots."""

    def __init__(self, width: int, hidden: int, count: int, slots: int) -> None:
        super().__init__()
        self.count = count
        self.route = nn.Parameter(torch.randn(width, count * slots))
        self.up, self.down = (
            nn.Parameter(torch.randn(count, width, hidden)),
            nn.Parameter(torch.randn(count, hidden, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = functional.normalize(x, dim=-1) @ self.route
        slots = scores.softmax(1).transpose(1, 2) @ x
        apart = slots.unflatten(1, (self.count, -1))
        made = functional.gelu(torch.einsum("nesd,edh->nesh", apart, self.up))
        out: Tensor = scores.softmax(2) @ torch.einsum("nesh,ehd->nesd", made, self.down).flatten(1, 2)
        return out


@entry("encoder", "experts")
def soft_experts() -> Model:
    """In the form of Soft MoE."""
    layers: list[tuple[nn.Module, nn.Module]] = [
        (_GroupedAttention(40, 4, 4, 10), _SoftExperts(40, 52, 4, 3)),
        (_GroupedAttention(40, 4, 4, 10), _Gated(40, 84)),
    ]
    return token_model(_Decoder(40, 90, layers), 90, 8, 6)

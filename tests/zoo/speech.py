"""Speech and other one-dimensional signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.blocks import Select, made
from tests.zoo.registry import Input, Model, entry


def _signal_model(module: nn.Module, channels: int, length: int = 40, other: int = 56) -> Model:
    signal = Input("signal", ("batch", channels, "time"))
    return Model(module, (signal,), {"time": length}, {"time": other})


@entry("speech", "transformer", "encoder-decoder", "tied")
def whisper() -> Model:
    config = made("WhisperConfig",
        vocab_size=90, num_mel_bins=14, d_model=48, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=100, decoder_ffn_dim=108,
        max_source_positions=20, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    module = Select(
        made("WhisperForConditionalGeneration", config),
        ("input_features", "decoder_input_ids", "decoder_attention_mask"),
        ("logits",),
        use_cache=False,
    )
    inputs = (
        Input("input_features", ("batch", 14, 40)),
        Input("decoder_input_ids", ("batch", "target"), "ids", 90),
        Input("decoder_attention_mask", ("batch", "target"), "ones"),
    )
    return Model(module, inputs, {"target": 7}, {"target": 10})


@entry("speech", "transformer", "norm")
def wav2vec2() -> Model:
    config = made("Wav2Vec2Config",
        vocab_size=30, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=100,
        conv_dim=(20, 28, 36), conv_stride=(4, 2, 2), conv_kernel=(8, 3, 3), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, apply_spec_augment=False, attn_implementation="eager",
    )  # fmt: skip
    module = Select(made("Wav2Vec2ForCTC", config), ("input_values",), ("logits",))
    return Model(module, (Input("input_values", ("batch", "time")),), {"time": 320}, {"time": 480})


class _Causal(nn.Module):
    """Convolution that sees only the past: padded left, or padded on both sides and cut."""

    def __init__(self, into: int, out: int, dilation: int, *, cut: bool) -> None:
        super().__init__()
        self.past, self.cut = 2 * dilation, cut
        self.conv = nn.Conv1d(into, out, 3, dilation=dilation, padding=self.past if cut else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.cut:
            kept: Tensor = self.conv(x)[:, :, : -self.past]
            return kept
        out: Tensor = self.conv(functional.pad(x, (self.past, 0)))
        return out


class _TcnBlock(nn.Module):
    def __init__(self, into: int, out: int, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _Causal(into, out, dilation, cut=True),
            nn.ReLU(),
            _Causal(out, out, dilation, cut=True),
            nn.ReLU(),
        )
        self.match = nn.Conv1d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.net(x) + self.match(x))


@entry("speech", "residual")
def tcn() -> Model:
    body = nn.Sequential(_TcnBlock(6, 28, 1), _TcnBlock(28, 28, 2), _TcnBlock(28, 40, 4))
    return _signal_model(nn.Sequential(body, nn.Conv1d(40, 8, 1)), 6)


class _Gated(nn.Module):
    """WaveNet block: tanh times sigmoid of two halves of one convolution; residual and skip outputs."""

    def __init__(self, width: int, hidden: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.conv = _Causal(width, 2 * hidden, dilation, cut=False)
        self.residual, self.skip = nn.Conv1d(hidden, width, 1), nn.Conv1d(hidden, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.conv(x).chunk(2, dim=1)
        mixed = torch.tanh(value) * torch.sigmoid(gate)
        return x + self.residual(mixed), self.skip(mixed)


@entry("speech", "gate", "residual")
def wavenet() -> Model:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv1d(4, 30, 1)
            self.blocks = nn.ModuleList(_Gated(30, 26, 34, 2**k) for k in range(4))
            self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(34, 38, 1), nn.ReLU(), nn.Conv1d(38, 12, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            skips = []
            for block in self.blocks:
                x, skip = block(x)
                skips.append(skip)
            out: Tensor = self.head(torch.stack(skips).sum(0))
            return out

    return _signal_model(Net(), 4)


@entry("speech", "depthwise")
def keyword_spotter() -> Model:
    """Separable 1-D convolutions over filter banks, mean over time, classifier."""

    def layer(into: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv1d(into, into, 9, padding=4, groups=into, bias=False),
            nn.Conv1d(into, out, 1, bias=False),
            nn.BatchNorm1d(out),
            nn.ReLU(),
        )

    body = [
        nn.Conv1d(20, 56, 5, 2, 2),
        nn.BatchNorm1d(56),
        nn.ReLU(),
        layer(56, 72),
        layer(72, 84),
        layer(84, 84),
    ]
    return _signal_model(nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(84, 11)), 20)


@entry("speech", "norm")
def weight_norm_conv() -> Model:
    """A vocoder-like stack whose convolution weights are a direction and a length per channel."""
    net = nn.Sequential(
        weight_norm(nn.Conv1d(10, 44, 7, padding=3)), nn.LeakyReLU(0.1),
        weight_norm(nn.ConvTranspose1d(44, 28, 8, 4, 2)), nn.LeakyReLU(0.1),
        weight_norm(nn.Conv1d(28, 28, 3, padding=3, dilation=3)), nn.LeakyReLU(0.1),
        weight_norm(nn.Conv1d(28, 2, 7, padding=3)), nn.Tanh(),
    )  # fmt: skip
    return _signal_model(net, 10, 20, 28)


class _ConformerBlock(nn.Module):
    """Half-step MLPs around attention and a gated depthwise convolution."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.before, self.after = self._mlp(width, hidden), self._mlp(width, hidden)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.conv = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, 7, padding=3, groups=width),
            nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1),
        )  # fmt: skip

    @staticmethod
    def _mlp(width: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.conv(self.norm2(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.norm3(x + 0.5 * self.after(x))
        return out


@entry("speech", "transformer", "gate")
def conformer() -> Model:
    net = nn.Sequential(nn.Linear(18, 48), _ConformerBlock(48, 100), nn.Linear(48, 22))
    return Model(net, (Input("features", ("batch", "time", 18)),), {"time": 15}, {"time": 20})

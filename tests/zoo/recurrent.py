"""Recurrent networks."""

from __future__ import annotations

from torch import Tensor, nn

from tests.zoo.registry import Model, entry, token_model


class _TextClassifier(nn.Module):
    """Embedding, recurrent layers, head on the last step (or the mean over steps)."""

    def __init__(self, vocab: int, width: int, layers: nn.RNNBase, *, mean: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.layers = layers
        out = layers.hidden_size * (2 if layers.bidirectional else 1)
        self.head = nn.Linear(out, 6)
        self.mean = mean

    def forward(self, tokens: Tensor) -> Tensor:
        steps = self.layers(self.embedding(tokens))[0]
        out: Tensor = self.head(steps.mean(1) if self.mean else steps[:, -1])
        return out


@entry("recurrent")
def lstm_classifier() -> Model:
    return token_model(_TextClassifier(60, 28, nn.LSTM(28, 36, 2, batch_first=True)), 60)

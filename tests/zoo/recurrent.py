"""Recurrent networks: classifiers, a tagger, a language model and a translator with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.registry import Input, Model, entry, token_model

VOCAB = 60


class _TextClassifier(nn.Module):
    """Embedding, recurrent layers, head on the last step (or the mean over steps)."""

    def __init__(self, width: int, layers: nn.RNNBase, *, mean: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
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
    return token_model(_TextClassifier(28, nn.LSTM(28, 36, 2, batch_first=True)), VOCAB)


@entry("recurrent")
def lstm_bidirectional() -> Model:
    layers = nn.LSTM(28, 22, 2, batch_first=True, bidirectional=True)
    return token_model(_TextClassifier(28, layers, mean=True), VOCAB)


@entry("recurrent")
def gru_classifier() -> Model:
    return token_model(_TextClassifier(32, nn.GRU(32, 40, 2, batch_first=True)), VOCAB)


@entry("recurrent")
def gru_bidirectional() -> Model:
    layers = nn.GRU(32, 26, 2, batch_first=True, bidirectional=True)
    return token_model(_TextClassifier(32, layers, mean=True), VOCAB)


@entry("recurrent")
def rnn_classifier() -> Model:
    return token_model(_TextClassifier(44, nn.RNN(44, 60, 2, batch_first=True)), VOCAB)


@entry("recurrent", "cnn")
def crnn() -> Model:
    class Net(nn.Module):
        """Convolutions over an image, its columns read as a sequence by a bidirectional LSTM."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(
                nn.Conv2d(1, 18, 3, 2, 1),
                nn.ReLU(),
                nn.Conv2d(18, 30, 3, 2, 1),
                nn.BatchNorm2d(30),
                nn.ReLU(),
            )
            self.layers = nn.LSTM(120, 24, batch_first=True, bidirectional=True)
            self.head = nn.Linear(48, 14)

        def forward(self, image: Tensor) -> Tensor:
            columns = self.conv(image).permute(0, 3, 1, 2).flatten(2)
            out: Tensor = self.head(self.layers(columns)[0])
            return out

    inputs = (Input("image", ("batch", 1, 16, "width")),)
    return Model(Net(), inputs, {"width": 32}, {"width": 48})


@entry("recurrent", "streaming")
def lstm_streaming() -> Model:
    class Net(nn.Module):
        """The states come in and go out, as a streaming model has them."""

        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(14, 34)
            self.layers = nn.LSTM(34, 38, batch_first=True)
            self.head = nn.Sequential(nn.Linear(38, 46), nn.ReLU(), nn.Linear(46, 6))

        def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            steps, (hidden, cell) = self.layers(torch.relu(self.enter(x)), (hidden, cell))
            return self.head(steps), hidden, cell

    inputs = (
        Input("frames", ("batch", "time", 14)),
        Input("hidden", (1, "batch", 38)),
        Input("cell", (1, "batch", 38)),
    )
    return Model(Net(), inputs, {"time": 9}, {"time": 12})


class _Translator(nn.Module):
    """GRU encoder, GRU decoder started from its last state, dot attention over the encoder's steps."""

    def __init__(self, hidden: int = 36) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCAB, 24), nn.Embedding(VOCAB, 28)
        self.encoder = nn.GRU(24, hidden, batch_first=True)
        self.decoder = nn.GRU(28, hidden, batch_first=True)
        self.combine = nn.Linear(2 * hidden, 44)
        self.head = nn.Linear(44, VOCAB)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        steps, _ = self.decoder(self.target(target), state)
        weights = torch.bmm(steps, memory.transpose(1, 2)).softmax(-1)
        context = torch.bmm(weights, memory)
        out: Tensor = self.head(torch.tanh(self.combine(torch.cat([steps, context], -1))))
        return out


@entry("recurrent", "encoder-decoder")
def seq2seq_gru_attention() -> Model:
    inputs = (
        Input("source", ("batch", "source_length"), "ids", VOCAB),
        Input("target", ("batch", "target_length"), "ids", VOCAB),
    )
    return Model(
        _Translator(),
        inputs,
        {"source_length": 10, "target_length": 7},
        {"source_length": 12, "target_length": 6},
    )


@entry("recurrent", "tied")
def lstm_tied_lm() -> Model:
    class Net(nn.Module):
        """A language model whose output weights are its embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, 40)
            self.layers = nn.LSTM(40, 52, batch_first=True)
            self.project = nn.Linear(52, 40)
            self.head = nn.Linear(40, VOCAB)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.head(self.project(self.layers(self.embedding(tokens))[0]))
            return out

    return token_model(Net(), VOCAB)

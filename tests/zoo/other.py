"""What fits no family: graphs, tables, volumes, pairs, capsules, odd activations, shared weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.blocks import Classify, conv_norm
from tests.zoo.registry import Input, Model, entry, image_model


@entry("cnn", "3d")
def conv3d() -> Model:
    def layer(into: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv3d(into, out, 3, stride, 1, bias=False), nn.BatchNorm3d(out), nn.ReLU())

    body = [layer(1, 14, 1), nn.MaxPool3d(2), layer(14, 26, 1), layer(26, 34, 2)]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(34, 8))
    volume = Input("volume", ("batch", 1, "depth", 12, 12))
    return Model(net, (volume,), {"depth": 8}, {"depth": 16})


@entry("cnn", "norm")
def groupnorm_net() -> Model:
    def layer(into: int, out: int, stride: int, groups: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.GroupNorm(groups, out), nn.ReLU()
        )

    body = nn.Sequential(layer(3, 24, 2, 4), layer(24, 36, 1, 6), layer(36, 48, 2, 8), layer(48, 40, 1, 1))
    return image_model(Classify(body, 40), 20, 28)


class _GraphLayer(nn.Module):
    """Messages along edges: gather sources, transform, scatter-add on targets, update."""

    def __init__(self, into: int, message: int, out: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * into, message), nn.ReLU())
        self.update = nn.Linear(into + message, out)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = nodes[edges[0]], nodes[edges[1]]
        sent = self.message(torch.cat([source, target], -1))
        empty = torch.zeros(nodes.shape[0], sent.shape[1])
        total = empty.scatter_add(0, edges[1][:, None].expand(-1, sent.shape[1]), sent)
        return torch.relu(self.update(torch.cat([nodes, total], -1)))


@entry("graph", "gather")
def gnn_scatter() -> Model:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = _GraphLayer(14, 52, 60), _GraphLayer(60, 68, 44)
            self.head = nn.Linear(44, 6)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            out: Tensor = self.head(self.second(self.first(nodes, edges), edges))
            return out

    inputs = (Input("nodes", ("batch", 14)), Input("edges", (2, "edge"), "ids", 2))
    return Model(Net(), inputs, {"edge": 9}, {"edge": 13})


@entry("graph", "gather")
def gnn_dense() -> Model:
    class Net(nn.Module):
        """Graph convolution by an adjacency matrix, attention over neighbours, pooling of nodes."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 76), nn.Linear(76, 58)
            self.left, self.right = nn.Linear(58, 1), nn.Linear(58, 1)
            self.head = nn.Sequential(nn.Linear(116, 92), nn.ELU(), nn.Linear(92, 5))

        def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
            weights = adjacency / adjacency.sum(-1, keepdim=True)
            hidden = self.second(torch.relu(torch.bmm(weights, self.first(nodes))))
            scores = functional.leaky_relu(self.left(hidden) + self.right(hidden).transpose(1, 2), 0.2)
            mixed = torch.bmm(scores.masked_fill(adjacency < 0.3, -1e4).softmax(-1), hidden)
            out: Tensor = self.head(torch.cat([mixed.mean(1), mixed.amax(1)], -1))
            return out

    inputs = (Input("nodes", ("batch", "node", 12)), Input("adjacency", ("batch", "node", "node"), "unit"))
    return Model(Net(), inputs, {"node": 9}, {"node": 13})


class _PointNet(nn.Module):
    """Shared per-point layers, max over points, the global vector given back to every point."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(3, 36, 1), nn.BatchNorm1d(36), nn.ReLU(), nn.Conv1d(36, 56, 1))
        self.head = nn.Sequential(nn.Conv1d(112, 78, 1), nn.BatchNorm1d(78), nn.ReLU(), nn.Conv1d(78, 6, 1))

    def forward(self, points: Tensor) -> Tensor:
        local = self.local(points)
        whole = local.amax(2, keepdim=True).expand(-1, -1, points.shape[2])
        out: Tensor = self.head(torch.cat([local, whole], 1))
        return out


@entry("graph", "concat")
def pointnet() -> Model:
    return Model(_PointNet(), (Input("points", ("batch", 3, "point")),), {"point": 20}, {"point": 26})


@entry("cnn", "shared")
def siamese() -> Model:
    class Net(nn.Module):
        """One tower applied to two images; the head reads difference and product of their embeddings."""

        def __init__(self) -> None:
            super().__init__()
            act = nn.ReLU()
            body = nn.Sequential(conv_norm(3, 22, 3, 2, act=act), conv_norm(22, 38, 3, 2, act=act))
            self.tower = Classify(body, 38, 46)
            self.head = nn.Sequential(nn.Linear(92, 54), nn.ReLU(), nn.Linear(54, 1))

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            a, b = self.tower(left), self.tower(right)
            out: Tensor = torch.sigmoid(self.head(torch.cat([(a - b).abs(), a * b], -1)))
            return out

    inputs = (Input("left", ("batch", 3, "size", "size")), Input("right", ("batch", 3, "size", "size")))
    return Model(Net(), inputs, {"size": 16}, {"size": 24})


@entry("table", "gather")
def dlrm() -> Model:
    class Net(nn.Module):
        """Dense features and embeddings meet in all their pairwise dot products."""

        pairs: Tensor

        def __init__(self, width: int = 20) -> None:
            super().__init__()
            self.bottom = nn.Sequential(nn.Linear(13, 44), nn.ReLU(), nn.Linear(44, width), nn.ReLU())
            self.tables = nn.ModuleList(nn.Embedding(n, width) for n in (50, 70, 90, 110))
            self.register_buffer("pairs", torch.tril_indices(5, 5, -1))
            self.top = nn.Sequential(nn.Linear(width + 10, 64), nn.ReLU(), nn.Linear(64, 1))

        def forward(self, dense: Tensor, choice: Tensor) -> Tensor:
            low = self.bottom(dense)
            rows = torch.stack([low, *(table(choice[:, k]) for k, table in enumerate(self.tables))], 1)
            dots = torch.bmm(rows, rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
            out: Tensor = torch.sigmoid(self.top(torch.cat([low, dots], 1)))
            return out

    return Model(Net(), (Input("dense", ("batch", 13)), Input("choice", ("batch", 4), "ids", 50)))


@entry("table", "mlp")
def maxout() -> Model:
    class Layer(nn.Module):
        """Each output is the largest of three."""

        def __init__(self, into: int, out: int) -> None:
            super().__init__()
            self.linear, self.out = nn.Linear(into, 3 * out), out

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x).view(-1, self.out, 3).amax(2)
            return out

    return Model(nn.Sequential(Layer(18, 56), Layer(56, 48), nn.Linear(48, 7)), (Input("x", ("batch", 18)),))


@entry("table", "mlp")
def kolmogorov() -> Model:
    class Layer(nn.Module):
        """Every edge has its own function: a sum of Gaussian bumps, plus a SiLU path."""

        centres: Tensor

        def __init__(self, into: int, out: int, bumps: int = 6) -> None:
            super().__init__()
            self.register_buffer("centres", torch.linspace(-2, 2, bumps))
            self.spline, self.base = nn.Linear(into * bumps, out), nn.Linear(into, out, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            bumps = torch.exp(-((x.unsqueeze(-1) - self.centres) ** 2))
            out: Tensor = self.spline(bumps.flatten(1)) + self.base(functional.silu(x))
            return out

    return Model(nn.Sequential(Layer(16, 42), Layer(42, 34), Layer(34, 7)), (Input("x", ("batch", 16)),))


class _Capsules(nn.Module):
    """Convolution channels regrouped as vectors, squashed, and routed by one fixed transform each."""

    def __init__(self, classes: int = 5, size: int = 8, out: int = 10) -> None:
        super().__init__()
        self.size = size
        self.features = nn.Sequential(nn.Conv2d(1, 30, 5, 2), nn.ReLU(), nn.Conv2d(30, 4 * size, 3, 2))
        self.transform = nn.Parameter(torch.randn(36, classes, size, out) * 0.3)

    @staticmethod
    def _squash(x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return x * square / (1 + square) / torch.sqrt(square + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        capsules = maps.reshape(x.shape[0], 4, self.size, -1).permute(0, 1, 3, 2)
        parts = self._squash(capsules.reshape(x.shape[0], -1, self.size))
        votes = torch.einsum("bis,icso->bico", parts, self.transform)
        routing = (votes * votes.mean(1, keepdim=True)).sum(-1, keepdim=True).softmax(2)
        return self._squash((routing * votes).sum(1)).square().sum(-1).sqrt()


@entry("cnn", "capsule")
def capsules() -> Model:
    return image_model(_Capsules(), 17, channels=1)


@entry("table", "mlp")
def activations() -> Model:
    """A chain of the elementwise activations that torch has modules for."""
    acts: list[nn.Module] = [
        nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.Softsign(), nn.Mish(), nn.Hardtanh(),
        nn.Hardshrink(0.1),
        nn.Softshrink(0.1), nn.Tanhshrink(), nn.LogSigmoid(), nn.GELU("tanh"), nn.PReLU(46),
    ]  # fmt: skip
    layers = [layer for act in acts for layer in (act, nn.Linear(46, 46))]
    return Model(nn.Sequential(nn.Linear(14, 46), *layers, nn.Linear(46, 6)), (Input("x", ("batch", 14)),))

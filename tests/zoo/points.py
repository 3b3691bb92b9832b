"""Sets in space: clouds of points, pillars, molecules, graphs with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.blocks import conv_norm
from tests.zoo.registry import Input, Model, entry


def _neighbours(at: Tensor, centres: Tensor, count: int) -> Tensor:
    """(n, centres, count): the numbers of the nearest points."""
    apart = (centres[:, :, None] - at[:, None]).pow(2).sum(-1)
    return (-apart).topk(count, -1).indices


def _taken(x: Tensor, indices: Tensor) -> Tensor:
    """(n, points, c) at (n, m, k) -> (n, m, k, c)."""
    flat = indices.flatten(1)[..., None].expand(-1, -1, x.shape[2])
    out: Tensor = x.gather(1, flat).unflatten(1, (indices.shape[1], indices.shape[2]))
    return out


class _SetAbstraction(nn.Module):
    """Neighbourhoods of every other point, with relative places; the largest of what each gives."""

    def __init__(self, into: int, hidden: int, out: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.shared = nn.Sequential(
            nn.Conv2d(into + 3, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, out, 1),
            nn.ReLU(),
        )

    def forward(self, at: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = at[:, ::2]
        near = _neighbours(at, centres, self.count)
        around = torch.cat([_taken(at, near) - centres[:, :, None], _taken(x, near)], -1)
        return centres, self.shared(around.permute(0, 3, 1, 2)).amax(3).transpose(1, 2)


class _PointSets(nn.Module):
    """Two levels down, then back up: features of the coarse points, weighted by distance, beside the fine ones."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first, self.second = _SetAbstraction(4, 22, 34, 4), _SetAbstraction(34, 38, 50, 3)
        self.up = nn.Sequential(nn.Linear(84, 46), nn.ReLU(), nn.Linear(46, 30), nn.ReLU())
        self.head = nn.Linear(30, classes)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        middle, x = self.first(points, features)
        last, y = self.second(middle, x)
        near = _neighbours(last, middle, 3)
        apart = (_taken(last, near) - middle[:, :, None]).pow(2).sum(-1)
        weights = 1 / (apart + 1e-4)
        weights = weights / weights.sum(-1, keepdim=True)
        spread = (_taken(y, near) * weights[..., None]).sum(2)
        out: Tensor = self.head(self.up(torch.cat([x, spread], -1)))
        return out


@entry("points", "gather")
def point_sets() -> Model:
    """In the form of PointNet++ for segmentation."""
    return Model(_PointSets(), (Input("points", ("batch", 16, 3)), Input("features", ("batch", 16, 4))))


class _EdgeConv(nn.Module):
    """What each point and its nearest in the space of features give, the largest over the neighbours."""

    def __init__(self, into: int, out: int, count: int = 4) -> None:
        super().__init__()
        self.count = count
        self.mix = nn.Sequential(
            nn.Conv2d(2 * into, out, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)
        )

    def forward(self, x: Tensor) -> Tensor:
        places = x.transpose(1, 2)
        near = _taken(places, _neighbours(places, places, self.count))
        own = places[:, :, None].expand_as(near)
        both = torch.cat([near - own, own], -1).permute(0, 3, 1, 2)
        out: Tensor = self.mix(both).amax(3)
        return out


@entry("points", "gather", "concat")
def dynamic_graph_cnn() -> Model:
    """In the form of DGCNN."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([_EdgeConv(3, 22), _EdgeConv(22, 30), _EdgeConv(30, 42)])
            self.mix = nn.Sequential(nn.Conv1d(94, 58, 1, bias=False), nn.BatchNorm1d(58), nn.LeakyReLU(0.2))
            self.head = nn.Sequential(nn.Linear(116, 36), nn.ReLU(), nn.Linear(36, 7))

        def forward(self, points: Tensor) -> Tensor:
            found = []
            for layer in self.layers:
                points = layer(points)
                found.append(points)
            x = self.mix(torch.cat(found, 1))
            out: Tensor = self.head(torch.cat([x.amax(2), x.mean(2)], 1))
            return out

    return Model(Net(), (Input("points", ("batch", 3, 14)),))


class _VectorAttention(nn.Module):
    """Weights of each channel of each neighbour, from differences of queries, keys and places."""

    def __init__(self, width: int, count: int = 4) -> None:
        super().__init__()
        self.count = count
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.place = nn.Sequential(nn.Linear(3, 18), nn.ReLU(), nn.Linear(18, width))
        self.weigh = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, at: Tensor, x: Tensor) -> Tensor:
        near = _neighbours(at, at, self.count)
        key, value = _taken(self.key(x), near), _taken(self.value(x), near)
        place = self.place(at[:, :, None] - _taken(at, near))
        weights = self.weigh(self.query(x)[:, :, None] - key + place).softmax(2)
        out: Tensor = self.norm(x + self.out((weights * (value + place)).sum(2)))
        return out


@entry("points", "gather", "transformer")
def point_transformer() -> Model:
    """In the form of Point Transformer."""

    class Net(nn.Module):
        def __init__(self, width: int = 40) -> None:
            super().__init__()
            self.embed = nn.Sequential(nn.Linear(3, 26), nn.ReLU(), nn.Linear(26, width))
            self.layers = nn.ModuleList(_VectorAttention(width) for _ in range(2))
            self.head = nn.Linear(width, 6)

        def forward(self, points: Tensor) -> Tensor:
            x = self.embed(points)
            for layer in self.layers:
                x = layer(points, x)
            out: Tensor = self.head(x.mean(1))
            return out

    return Model(Net(), (Input("points", ("batch", 12, 3)),))


class _Pillars(nn.Module):
    """Points of each pillar to one vector, written onto a canvas at its place; convolutions and two scales there."""

    def __init__(self, width: int = 30, side: int = 8) -> None:
        super().__init__()
        act = nn.ReLU()
        self.side = side
        self.points = nn.Sequential(nn.Linear(7, width), nn.ReLU())
        self.norm = nn.BatchNorm1d(width)
        self.first, self.second = conv_norm(width, 34, 3, act=act), conv_norm(34, 42, 3, 2, act=act)
        self.up = nn.ConvTranspose2d(42, 26, 2, 2)
        self.head = nn.Conv2d(60, 9, 1)

    def forward(self, pillars: Tensor, cells: Tensor) -> Tensor:
        """(pillars, points, 7) and the cell of each: numbers below side * side."""
        x = self.norm(self.points(pillars).amax(1))
        canvas = torch.zeros(self.side * self.side, x.shape[1])
        canvas = canvas.index_put((cells,), x)
        image = canvas.T.unflatten(1, (self.side, self.side))[None]
        fine = self.first(image)
        out: Tensor = self.head(torch.cat([fine, self.up(self.second(fine))], 1))
        return out


@entry("points", "scatter")
def point_pillars() -> Model:
    """In the form of PointPillars."""
    return Model(_Pillars(), (Input("pillars", ("batch", 5, 7)), Input("cells", ("batch",), "ids", 64)))


class _AttendedGraph(nn.Module):
    """Weights of edges by a softmax over those that meet in a node; heads side by side."""

    def __init__(self, into: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(into, heads * size, bias=False)
        self.source, self.target = (
            nn.Parameter(torch.randn(heads, size)),
            nn.Parameter(torch.randn(heads, size)),
        )
        self.bias = nn.Parameter(torch.randn(heads * size))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.project(nodes).unflatten(1, (self.heads, -1))
        start, end = edges[0], edges[1]
        raw = nn.functional.leaky_relu((x * self.source).sum(-1)[start] + (x * self.target).sum(-1)[end], 0.2)
        weight = raw.clamp(max=8).exp()
        total = torch.zeros(nodes.shape[0], self.heads).index_add(0, end, weight)
        share = weight / (total[end] + 1e-6)
        sent = x[start] * share[..., None]
        gathered = torch.zeros_like(x).index_add(0, end, sent)
        return gathered.flatten(1) + self.bias


@entry("graph", "scatter", "heads")
def graph_attention() -> Model:
    """In the form of GAT."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = _AttendedGraph(14, 3, 12), _AttendedGraph(36, 2, 10)
            self.head = nn.Linear(20, 6)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            x = nn.functional.elu(self.first(nodes, edges))
            out: Tensor = self.head(nn.functional.elu(self.second(x, edges)))
            return out

    inputs = (Input("nodes", ("batch", 14)), Input("edges", (2, "edges"), "ids", 2))
    return Model(Net(), inputs, {"edges": 7}, {"edges": 11})


class _MovingGraph(nn.Module):
    """Messages from distances move features and places alike."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.edge = nn.Sequential(
            nn.Linear(2 * width + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.gate = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid())
        self.move = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1, bias=False))
        self.node = nn.Sequential(nn.Linear(width + hidden, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, at: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        start, end = edges[0], edges[1]
        apart = at[end] - at[start]
        sent = self.edge(torch.cat([x[end], x[start], apart.pow(2).sum(-1, keepdim=True)], -1))
        sent = sent * self.gate(sent)
        at = at + torch.zeros_like(at).index_add(0, end, apart * self.move(sent).tanh())
        total = torch.zeros(x.shape[0], sent.shape[1]).index_add(0, end, sent)
        return x + self.node(torch.cat([x, total], -1)), at


@entry("graph", "scatter", "equivariant")
def equivariant_graph() -> Model:
    """In the form of EGNN, with a sum over each molecule."""

    class Net(nn.Module):
        def __init__(self, width: int = 34) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, width)
            self.layers = nn.ModuleList(_MovingGraph(width, 44) for _ in range(2))
            self.head = nn.Sequential(nn.Linear(width, 28), nn.SiLU(), nn.Linear(28, 1))

        def forward(self, atoms: Tensor, at: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embed(atoms)
            for layer in self.layers:
                x, at = layer(x, at, edges)
            return self.head(x), at

    inputs = (
        Input("atoms", ("batch",), "ids", 9),
        Input("at", ("batch", 3)),
        Input("edges", (2, "edges"), "ids", 2),
    )
    return Model(Net(), inputs, {"edges": 7}, {"edges": 11})

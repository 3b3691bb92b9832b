"""Where an operator of torch means what one of ONNX means, both free the same slots and compute the same without them.

The ONNX side of a case is a text in the form of `tests.rule_checks`, the torch side a module of the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sparsecc.axes.algebra import Atom  # noqa: E402
from sparsecc.graph.analysis import analyse, prunable_atoms  # noqa: E402
from sparsecc.graph.kinds import KINDS  # noqa: E402
from sparsecc.torch.pruning import planned, realise, study  # noqa: E402
from tests.rule_checks import check, loaded, model_of  # noqa: E402

Slots = dict[str, list[int]]
"""`weight:axis` -> the sizes of the free groups in it."""
Forward = Callable[..., Tensor]


class Case(nn.Module):
    """A function of x and of weights w1, w2, … of these shapes."""

    def __init__(self, function: Forward, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        for number, shape in enumerate(shapes, 1):
            setattr(self, f"w{number}", nn.Parameter(torch.rand(shape) - 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters())


def sizes(owners: dict[Atom, list[tuple[str, int]]]) -> Slots:
    found: Slots = {}
    for atom, members in owners.items():
        for name, axis in members:
            assert isinstance(atom.size, int)
            found.setdefault(f"{name}:{axis}", []).append(atom.size)
    return {name: sorted(of) for name, of in sorted(found.items())}


def on_torch(module: Case, x: Tensor) -> Slots:
    """The free slots; `realise` raises where the module without half of every group is not the masked one."""
    found = study(module.eval(), (x,), align=1, kinds=tuple(KINDS))
    generator, masks = np.random.default_rng(1), {}
    for group in found.free:
        masks[group.atom] = np.zeros(group.size, dtype=bool)
        masks[group.atom][generator.permutation(group.size)[: (group.size + 1) // 2]] = True
    free = sizes({group.atom: list(group.members) for group in found.free})
    small = realise(found, masks, planned(found, masks), form="graph")
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
    return free


def on_onnx(text: str, *, runs: bool = True) -> Slots:
    analysis = analyse(loaded(model_of(text)))
    free = sizes({atom: list(m) for atom, m in prunable_atoms(analysis).items() if atom.pin is None})
    if runs:
        check(text, " ".join(free))
    return free


def text_of(body: str, *shapes: tuple[int, ...], x: str = "N, 6") -> str:
    weights = "".join(f", float{list(shape)} w{number}" for number, shape in enumerate(shapes, 1))
    return f"(float[{x}] x{weights}) => (float y) {body}"


@pytest.mark.parametrize("repeated", [lambda h: h.repeat(1, 3), lambda h: h.tile((3,))])
def test_copies_of_slots_may_go_as_slots_may(repeated: Forward) -> None:
    shapes = (6, 8), (24, 4)
    body = "<int64[2] n = {1, 3}> { h = MatMul(x, w1) t = Tile(h, n) y = MatMul(t, w2) }"
    free = on_torch(Case(lambda x, a, b: repeated(x @ a) @ b, *shapes), torch.randn(5, 6))
    assert free == on_onnx(text_of(body, *shapes)) == {"w1:1": [8], "w2:0": [3, 8]}


def test_copies_in_a_row_may_go_as_slots_may() -> None:
    shapes = (6, 8), (24, 4)
    picks = ", ".join(str(i // 3) for i in range(24))
    body = f"<int64[24] i = {{{picks}}}> {{ h = MatMul(x, w1) t = Gather<axis = 1>(h, i) y = MatMul(t, w2) }}"
    case = Case(lambda x, a, b: (x @ a).repeat_interleave(3, dim=1) @ b, *shapes)
    assert (
        on_torch(case, torch.randn(5, 6)) == on_onnx(text_of(body, *shapes)) == {"w1:1": [8], "w2:0": [3, 8]}
    )


def test_an_instance_norm_is_over_the_slots_that_are_left() -> None:
    shapes = (6, 12), (12, 4), (5,), (5,)
    body = "{ h = MatMul(x, w1) n = InstanceNormalization(h, w3, w4) r = Relu(n) y = MatMul(r, w2) }"
    case = Case(lambda x, a, b, s, o: F.instance_norm(x @ a, weight=s, bias=o).relu() @ b, *shapes)
    free = on_torch(case, torch.randn(3, 5, 6))
    assert free == on_onnx(text_of(body, *shapes, x="N, 5, 6")) == {"w1:1": [12], "w2:0": [12]}


def test_a_batch_norm_in_training_is_over_the_slots_that_are_left() -> None:
    shapes = (6, 12), (12, 4), (5,), (5,), (5,), (5,)
    body = "{ h = MatMul(x, w1) n, m, v = BatchNormalization<training_mode = 1>(h, w3, w4, w5, w6) y = MatMul(n, w2) }"

    def forward(x: Tensor, a: Tensor, b: Tensor, s: Tensor, o: Tensor, *_: Tensor) -> Tensor:
        return F.batch_norm(x @ a, None, None, s, o, training=True).relu() @ b

    free = on_torch(Case(forward, *shapes), torch.randn(3, 5, 6))
    assert free == on_onnx(text_of(body, *shapes, x="N, 5, 6"), runs=False) == {"w1:1": [12], "w2:0": [12]}


def test_queries_of_one_key_may_go() -> None:
    shapes = (6, 32), (6, 8), (6, 12), (48, 4)

    def forward(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        query, key, value = (
            (x @ w).unflatten(-1, (heads, -1)).transpose(1, 2) for w, heads in ((a, 8), (b, 2), (c, 2))
        )
        return (
            F.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2).flatten(2) @ d
        )

    body = "{ q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3) "
    body += "a = Attention<q_num_heads = 8, kv_num_heads = 2>(q, k, v) y = MatMul(a, w4) }"
    free = on_torch(Case(forward, *shapes), torch.randn(3, 5, 6))
    expected = {"w1:1": [2, 4, 4], "w2:1": [2, 4], "w3:1": [2, 6], "w4:0": [2, 4, 6]}
    assert free == on_onnx(text_of(body, *shapes, x="N, 5, 6")) == expected


def test_slots_backwards_may_go() -> None:
    shapes = (6, 8), (8, 4)
    ends = "<int64[1] s = {-1}, int64[1] e = {-9}, int64[1] one = {1}, int64[1] back = {-1}> "
    body = ends + "{ h = MatMul(x, w1) t = Slice(h, s, e, one, back) y = MatMul(t, w2) }"
    free = on_torch(Case(lambda x, a, b: (x @ a).flip(1) @ b, *shapes), torch.randn(5, 6))
    assert free == on_onnx(text_of(body, *shapes)) == {"w1:1": [8], "w2:0": [8]}


def test_experts_whose_gates_are_written_among_zeros_may_go() -> None:
    shapes = (6, 5), (5, 6, 10), (5, 10, 4)
    body = (
        "<int64[1] two = {2}, int64[1] zero = {0}, int64[1] last = {-1}> { r = MatMul(x, w1) s = Sigmoid(r) "
        "p, i = TopK(s, two) k = Shape(s) e = ConstantOfShape(k) g = ScatterElements<axis = 1>(e, i, p) "
        "u = Unsqueeze(x, zero) a = MatMul(u, w2) z = Relu(a) d = MatMul(z, w3) t = Transpose<perm = [1, 0]>(g) "
        "q = Unsqueeze(t, last) m = Mul(d, q) y = ReduceSum<keepdims = 0>(m, zero) }"
    )

    def forward(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        score = (x @ a).sigmoid()
        best, index = score.topk(2)
        gates = torch.zeros_like(score).scatter(1, index, best)
        out: Tensor = ((x[None] @ b).relu() @ c * gates.T[..., None]).sum(0)
        return out

    free = on_torch(Case(forward, *shapes), torch.randn(7, 6))
    expected = {"w1:1": [5], "w2:0": [5], "w2:2": [10], "w3:0": [5], "w3:1": [10]}
    assert free == on_onnx(text_of(body, *shapes)) == expected

"""Random valid networks: a recipe of blocks, drawn by hypothesis, becomes an ONNX model.

A recipe is plain data: a domain, an opset and a list of (block, seed). Every block takes a value and its
width and gives a value and its width, so any list is a valid network, and hypothesis shrinks by leaving
blocks out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Step = tuple[str, int]
SIDE = 6
TOKENS = 5
WIDTHS = (4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Recipe:
    """What to build: `image` or `sequence`, the opset, the blocks, and whether the batch is dynamic."""

    domain: str
    opset: int
    steps: tuple[Step, ...]
    dynamic: bool


@dataclass
class Net:
    """A graph under construction: `x` is the current value, `width` its channels (axis 1, or the last)."""

    opset: int
    rng: random.Random
    x: str = "x"
    width: int = 8
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its first output (the others end in _1, _2, ...)."""
        self.count += 1
        name = f"v{self.count}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return name

    def weight(self, *shape: int, scale: float | None = None, shift: float = 0.0) -> str:
        """A random float constant, scaled so that values keep their size through the network."""
        fan = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        drawn = np.random.default_rng(self.rng.randrange(1 << 30)).standard_normal(shape)
        return self.constant((drawn * (scale or fan**-0.5) + shift).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def constant(self, array: np.ndarray) -> str:
        self.count += 1
        self.tensors.append(numpy_helper.from_array(array, f"w{self.count}"))
        return f"w{self.count}"

    def act(self, x: str) -> str:
        kind = self.rng.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Softplus", "HardSwish"])
        return self.op(kind, x)

    def conv(self, x: str, width: int, out: int, kernel: int = 1, group: int = 1) -> str:
        inputs = [x, self.weight(out, width // group, kernel, kernel)]
        if self.rng.random() < 0.7:
            inputs.append(self.weight(out, scale=0.3))
        return self.op("Conv", *inputs, group=group, pads=[kernel // 2] * 4)

    def linear(self, x: str, width: int, out: int) -> str:
        product = self.op("MatMul", x, self.weight(width, out))
        return self.op("Add", product, self.weight(out, scale=0.3)) if self.rng.random() < 0.7 else product

    def mean(self, x: str, axis: int) -> str:
        if self.opset >= 18:
            return self.op("ReduceMean", x, self.ints(axis), keepdims=1)
        return self.op("ReduceMean", x, axes=[axis], keepdims=1)

    def pick(self) -> int:
        return self.rng.choice(WIDTHS)


Block = Callable[[Net], None]
IMAGE: dict[str, Block] = {}
SEQUENCE: dict[str, Block] = {}


def image(block: Block) -> Block:
    IMAGE[block.__name__] = block
    return block


def sequence(block: Block) -> Block:
    SEQUENCE[block.__name__] = block
    return block


@image
def conv(net: Net) -> None:
    out = net.pick()
    net.x = net.act(net.conv(net.x, net.width, out, net.rng.choice((1, 3))))
    net.width = out


@image
def depthwise(net: Net) -> None:
    net.x = net.conv(net.x, net.width, net.width, 3, group=net.width)


@image
def grouped(net: Net) -> None:
    out = 2 * net.pick()
    net.x = net.conv(net.x, net.width, out, 1, group=2)
    net.width = out


@image
def residual(net: Net) -> None:
    inner, out = net.pick(), net.rng.choice((net.width, net.pick()))
    branch = net.conv(net.act(net.conv(net.x, net.width, inner, 3)), inner, out)
    skip = net.x if out == net.width else net.conv(net.x, net.width, out)
    net.x, net.width = net.act(net.op("Add", branch, skip)), out


@image
def concat(net: Net) -> None:
    parts = [net.x]
    width = net.width
    for _ in range(net.rng.choice((1, 2))):
        out = net.pick()
        parts.append(net.conv(net.x, net.width, out))
        width += out
    net.rng.shuffle(parts)
    net.x, net.width = net.op("Concat", *parts, axis=1), width


@image
def split(net: Net) -> None:
    half = net.width // 2
    first = net.op("Split", net.x, net.ints(half, net.width - half), outputs=2, axis=1)
    changed = net.conv(first, half, half)
    net.x = net.op("Concat", changed, f"{first}_1", axis=1)


@image
def fold_halves(net: Net) -> None:
    half = net.width // 2
    first = net.op("Slice", net.x, net.ints(0), net.ints(half), net.ints(1))
    second = net.op("Slice", net.x, net.ints(half), net.ints(2 * half), net.ints(1))
    net.x, net.width = net.op("Mul", first, net.op("Sigmoid", second)), half


@image
def squeeze_excite(net: Net) -> None:
    inner = net.rng.choice((2, 4))
    pooled = net.op("GlobalAveragePool", net.x)
    gate = net.conv(net.op("Relu", net.conv(pooled, net.width, inner)), inner, net.width)
    net.x = net.op("Mul", net.x, net.op("Sigmoid", gate))


@image
def batch_norm(net: Net) -> None:
    scale, bias, mean = (net.weight(net.width, scale=0.3, shift=s) for s in (1.0, 0.0, 0.0))
    variance = net.constant(np.linspace(0.5, 1.5, net.width, dtype=np.float32))
    net.x = net.op("BatchNormalization", net.x, scale, bias, mean, variance)


@image
def instance_norm(net: Net) -> None:
    affine = net.weight(net.width, scale=0.3, shift=1.0), net.weight(net.width, scale=0.3)
    net.x = net.op("InstanceNormalization", net.x, *affine, epsilon=0.1)


@image
def group_norm(net: Net) -> None:
    shape = net.op("Shape", net.x)
    flat = net.op("Reshape", net.x, net.ints(0, 2, -1))
    one, zero = net.constant(np.ones(2, np.float32)), net.constant(np.zeros(2, np.float32))
    normal = net.op("InstanceNormalization", flat, one, zero, epsilon=0.1)
    scaled = net.op(
        "Mul", net.op("Reshape", normal, shape), net.weight(net.width, 1, 1, scale=0.5, shift=1.0)
    )
    net.x = net.op("Add", scaled, net.weight(net.width, 1, 1, scale=0.3))


@image
def pool(net: Net) -> None:
    kind = net.rng.choice(("MaxPool", "AveragePool"))
    net.x = net.op(kind, net.x, kernel_shape=[3, 3], pads=[1] * 4)


@image
def pad_channels(net: Net) -> None:
    before, after = net.rng.choice(((0, 4), (2, 2), (1, 0)))
    net.x = net.op("Pad", net.x, net.ints(0, before, 0, 0, 0, after, 0, 0))
    net.width += before + after


@image
def shared(net: Net) -> None:
    weight = net.weight(net.width, net.width, 1, 1)
    for _ in range(2):
        net.x = net.act(net.op("Conv", net.x, weight))


@image
def shuffle(net: Net) -> None:
    split_up = net.op("Reshape", net.x, net.ints(-1, 2, net.width // 2, SIDE, SIDE))
    turned = net.op("Transpose", split_up, perm=[0, 2, 1, 3, 4])
    net.x = net.op("Reshape", turned, net.ints(-1, net.width, SIDE, SIDE))


@image
def scale(net: Net) -> None:
    net.x = net.op("Mul", net.x, net.weight(1, net.width, 1, 1, scale=0.5, shift=1.0))


@image
def channels_last(net: Net) -> None:
    out = net.pick()
    turned = net.op("Transpose", net.x, perm=[0, 2, 3, 1])
    net.x = net.op("Transpose", net.linear(turned, net.width, out), perm=[0, 3, 1, 2])
    net.width = out


@sequence
def linear(net: Net) -> None:
    out = net.pick()
    net.x, net.width = net.act(net.linear(net.x, net.width, out)), out


@sequence
def mlp(net: Net) -> None:
    inner = net.pick()
    branch = net.linear(net.act(net.linear(net.x, net.width, inner)), inner, net.width)
    net.x = net.op("Add", net.x, branch)


@sequence
def gated(net: Net) -> None:
    inner = net.pick()
    both = net.linear(net.x, net.width, 2 * inner)
    first = net.op("Split", both, net.ints(inner, inner), outputs=2, axis=-1)
    net.x = net.linear(net.op("Mul", first, net.op("Sigmoid", f"{first}_1")), inner, net.width)


@sequence
def layer_norm(net: Net) -> None:
    affine = net.weight(net.width, scale=0.3, shift=1.0), net.weight(net.width, scale=0.3)
    if net.opset >= 17:
        net.x = net.op("LayerNormalization", net.x, *affine, axis=-1, epsilon=0.1)
        return
    centred = net.op("Sub", net.x, net.mean(net.x, -1))
    variance = net.mean(net.op("Mul", centred, centred), -1)
    deviation = net.op("Sqrt", net.op("Add", variance, net.constant(np.float32(0.1))))
    net.x = net.op("Add", net.op("Mul", net.op("Div", centred, deviation), affine[0]), affine[1])


@sequence
def rms_norm(net: Net) -> None:
    square = net.mean(net.op("Pow", net.x, net.constant(np.float32(2))), -1)
    deviation = net.op("Sqrt", net.op("Add", square, net.constant(np.float32(0.1))))
    net.x = net.op("Mul", net.op("Div", net.x, deviation), net.weight(net.width, scale=0.3, shift=1.0))


def _heads(net: Net, x: str, heads: int, size: int) -> str:
    return net.op("Transpose", net.op("Reshape", x, net.ints(0, 0, heads, size)), perm=[0, 2, 1, 3])


def _attend(net: Net, query: str, key: str, value: str, heads: int, size: int) -> str:
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = net.op("Div", scores, net.constant(np.float32(size**0.5)))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
    return net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, heads * size))


@sequence
def attention(net: Net) -> None:
    heads, size = net.rng.choice((2, 3)), net.rng.choice((2, 4))
    q, k, v = (_heads(net, net.linear(net.x, net.width, heads * size), heads, size) for _ in range(3))
    mixed = _attend(net, q, k, v, heads, size)
    net.x = net.op("Add", net.x, net.linear(mixed, heads * size, net.width))


@sequence
def fused_attention(net: Net) -> None:
    heads, size = 2, net.rng.choice((2, 4))
    packed = net.linear(net.x, net.width, 3 * heads * size)
    parts = net.op("Split", packed, net.ints(*[heads * size] * 3), outputs=3, axis=-1)
    q, k, v = (_heads(net, p, heads, size) for p in (parts, f"{parts}_1", f"{parts}_2"))
    net.x = net.op("Add", net.x, net.linear(_attend(net, q, k, v, heads, size), heads * size, net.width))


@sequence
def grouped_query(net: Net) -> None:
    groups, repeat, size = 2, 2, net.rng.choice((2, 4))
    heads = groups * repeat
    query = _heads(net, net.linear(net.x, net.width, heads * size), heads, size)
    repeated: list[str] = []
    for _ in range(2):
        one = _heads(net, net.linear(net.x, net.width, groups * size), groups, size)
        wide = net.op("Expand", net.op("Unsqueeze", one, net.ints(2)), net.ints(1, 1, repeat, 1, 1))
        repeated.append(net.op("Reshape", wide, net.ints(0, heads, TOKENS, size)))
    mixed = _attend(net, query, repeated[0], repeated[1], heads, size)
    net.x = net.op("Add", net.x, net.linear(mixed, heads * size, net.width))


@sequence
def across_tokens(net: Net) -> None:
    turned = net.op("Transpose", net.x, perm=[0, 2, 1])
    inner = net.pick()
    mixed = net.linear(net.act(net.linear(turned, TOKENS, inner)), inner, TOKENS)
    net.x = net.op("Add", net.x, net.op("Transpose", mixed, perm=[0, 2, 1]))


@sequence
def shared_linear(net: Net) -> None:
    weight = net.weight(net.width, net.width)
    for _ in range(2):
        net.x = net.act(net.op("MatMul", net.x, weight))


@sequence
def flat_gemm(net: Net) -> None:
    out = net.pick()
    flat = net.op("Reshape", net.x, net.ints(-1, net.width))
    made = net.op("Gemm", flat, net.weight(out, net.width), net.weight(out, scale=0.3), transB=1)
    net.x, net.width = net.op("Reshape", made, net.ints(-1, TOKENS, out)), out


def build(recipe: Recipe) -> onnx.ModelProto:
    """The model of a recipe. Its input `x` is (n, 3, 6, 6) or (n, 5, 8); its output `y` has 7 features."""
    blocks, width = (IMAGE, 3) if recipe.domain == "image" else (SEQUENCE, 8)
    net = Net(recipe.opset, random.Random(0), width=width)
    if recipe.domain == "image":
        net.x, net.width = net.conv(net.x, net.width, 8, 3), 8
    for name, seed in recipe.steps:
        net.rng = random.Random(seed)
        if net.width % 2 and name in ("grouped", "group_norm", "shuffle"):
            continue
        blocks[name](net)
    _head(net, recipe.domain)
    batch = "n" if recipe.dynamic else 2
    shape = [batch, 3, SIDE, SIDE] if recipe.domain == "image" else [batch, TOKENS, 8]
    graph = helper.make_graph(
        net.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        net.tensors,
    )
    opsets = [helper.make_opsetid("", recipe.opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
    return model


def _head(net: Net, domain: str) -> None:
    width = net.width
    if domain == "image":
        pooled = net.op("GlobalAveragePool", net.x) if net.rng.random() < 0.5 else net.x
        width *= 1 if pooled != net.x else SIDE * SIDE
        net.x = net.op("Flatten", pooled)
    product = net.op("MatMul", net.x, net.weight(width, 7))
    net.nodes.append(helper.make_node("Add", [product, net.weight(7, scale=0.3)], ["y"]))


def recipes(longest: int = 5) -> st.SearchStrategy[Recipe]:
    """Recipes of up to `longest` blocks."""

    def of(domain: str, blocks: dict[str, Block]) -> st.SearchStrategy[Recipe]:
        step = st.tuples(st.sampled_from(sorted(blocks)), st.integers(0, 999))
        steps = st.lists(step, min_size=1, max_size=longest).map(tuple)
        opset = st.sampled_from((14, 17, 21))
        return st.builds(Recipe, st.just(domain), opset, steps, st.booleans())

    return st.one_of(of("image", IMAGE), of("sequence", SEQUENCE))

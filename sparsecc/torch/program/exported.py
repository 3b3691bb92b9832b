"""A torch module as ATen operators, seen as an onnx_ir model so that the axis analysis can walk it.

`torch.export` gives the operators and the sizes (fake tensors); every ATen call becomes a node of the domain
`aten` whose operands are its tensor arguments. The fx node behind it keeps everything else. Parameters keep
their names, and a tensor that is read under two names is one initializer.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import fx, nn

from sparsecc.axes.sizes import Size, joined
from sparsecc.errors import InputError
from sparsecc.shapes.infer import Shapes
from sparsecc.torch.program.failures import (
    TORCH_FAILURES,
    does_not_run,
    made_by_us,
    reason_of,
    why_it_does_not_run,
)
from sparsecc.torch.program.inline import inline_regions
from sparsecc.torch.program.reparametrized import normed_weights, spectral_norm_of, spectral_norms_held

DOMAIN = "aten"
_OPERATORS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), "Conv"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "ConvTranspose"),
}
"""ATen names shown as the kind of layer that the core knows them by."""
IMAGE_RANK = 4
_SCALES = (1, 3, 7)
"""Each probe multiplies the dynamic sizes of the examples by powers of these."""


@dataclass
class Program:
    """An exported module: the runnable graph, and the same as an onnx_ir model.

    `call` finds the fx node of an ir node, `of` the ir value of an fx node (a tuple's parts in order), and
    `tensors` the torch tensor of an initializer.
    """

    graph_module: fx.GraphModule
    model: ir.Model
    call: dict[ir.Node, fx.Node]
    of: dict[fx.Node, list[ir.Value]]
    tensors: dict[str, torch.Tensor]
    names: dict[str, list[str]]
    shapes: Shapes


class AtenShapes(Shapes):
    """Sizes read off fake tensors; dynamic ones have one value per probe."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.found: dict[ir.Value, tuple[Size, ...]] = {}
        self.constants: dict[ir.Value, np.ndarray] = {}

    def of(self, value: ir.Value) -> tuple[Size, ...] | None:
        return self.found.get(value)

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        return self.constants.get(value) if value is not None else None

    def elements(self, value: ir.Value | None) -> list[Size] | None:
        array = self.array(value)
        return None if array is None else [int(e) for e in array.ravel()]

    def reason(self, value: ir.Value) -> str:
        return "it gives no tensor of a known shape"


def size_of(value: Any) -> Size:
    """The size that an int, a symbolic int or the fx node of one stands for."""
    if isinstance(value, fx.Node):
        value = value.meta["val"]
    if not isinstance(value, torch.SymInt):
        return int(value)
    expression = value.node.expr
    environment = value.node.shape_env
    growth = _GROWTH.setdefault(environment, {})
    if not growth:
        growth.update(_growths(environment))
    return joined(tuple(int(expression.subs(_probe(expression, environment, growth, s))) for s in _SCALES))


_GROWTH: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()
"""Of every export: symbol -> the power of the scale by which a probe multiplies its size."""


def _growths(environment: Any) -> dict[Any, int]:
    """Different symbols grow differently, so that no two look alike, but for those that export found equal.

    Two batches of one size are two symbols; that they must be equal is only a guard on products of them.
    """
    hints = environment.backed_var_to_val
    growth = {symbol: 1 + number % 5 for number, symbol in enumerate(hints)}
    for guard in [g.expr for g in environment.guards]:
        symbols = [s for s in sorted(guard.free_symbols, key=str) if s in growth]
        if getattr(guard, "rel_op", "") != "==" or len(symbols) < 2:
            continue
        values = _probe(guard, environment, growth, _SCALES[1])
        if guard.lhs.subs(values) != guard.rhs.subs(values):
            alike = {hints[s]: growth[s] for s in reversed(symbols)}
            growth.update((s, alike[hints[s]]) for s in symbols)
    return growth


def _probe(expression: Any, environment: Any, growth: Mapping[Any, int], scale: int) -> dict[Any, int]:
    """The size of every symbol in an expression at one probe."""
    hints = environment.backed_var_to_val
    order = sorted(expression.free_symbols, key=str)
    return {s: int(hints.get(s, 1_000_003)) * scale ** growth.get(s, 6) for s in order}


def trace(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Program:
    """Export a module in its eval mode. InputError names what torch.export could not follow.

    Without `dynamic_shapes` the dimensions of every tensor input are free where the module allows it; of images
    (rank 4 and more) only the batch, for a flatten before a linear layer ties their size to the weights.

    What the forward writes into plain attributes (anchors that a detector keeps from call to call) is taken back:
    those are fake tensors, which nobody can copy or compute with.
    """
    attributes = {part: dict(part.__dict__) for part in module.modules()}
    module.eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with spectral_norms_held(module):
            graph_module = _exported(module, tuple(args), dict(kwargs or {}), dynamic_shapes)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for part, before in attributes.items():
            part.__dict__.clear()
            part.__dict__.update(before)
    with made_by_us(module, args, kwargs or {}):
        return _program(module, graph_module)


def renew_spectral_norms(program: Program, module: nn.Module) -> None:
    """Let the graph divide by the spectral norms that the module's weights have by now."""
    norms = {
        one.source: norm
        for one in normed_weights(module)
        if one.left
        for norm in [spectral_norm_of(module, one)]
    }
    for node in program.graph_module.graph.nodes if norms else ():
        if node.op == "call_function" and operator_name(node) == "div" and isinstance(node.args[1], float):
            values = program.of.get(node.args[0], []) if isinstance(node.args[0], fx.Node) else []
            names = program.names.get(values[0].name or "", []) if len(values) == 1 else []
            found = next((norms[name] for name in names if name in norms), None)
            if found is not None:
                node.args = (node.args[0], found)
    program.graph_module.recompile()


def _exported(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any
) -> fx.GraphModule:
    attempts = [dynamic] if dynamic is not None else [_all_free(args, kwargs), None]
    failure: Exception | None = None
    for shapes in attempts:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # of export about its own treatment of RNN weights
                program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
                exported = program.module(check_guards=False)
        except TORCH_FAILURES as e:
            failure = e
            continue
        assert isinstance(exported, fx.GraphModule)
        inline_regions(exported)
        return exported
    assert failure is not None
    if reason := why_it_does_not_run(module, args, kwargs):
        raise does_not_run(module, reason) from failure
    raise InputError(
        f"{type(module).__name__}: torch.export cannot follow it: {reason_of(failure)}"
    ) from failure


def _all_free(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | tuple[Any, ...]:
    free = torch.export.Dim.AUTO

    def spec(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return dict.fromkeys(range(value.dim() if value.dim() < IMAGE_RANK else 1), free)
        if isinstance(value, list | tuple):
            return type(value)(spec(v) for v in value)
        if isinstance(value, dict):
            return {k: spec(v) for k, v in value.items()}
        return None

    positional = tuple(spec(a) for a in args)
    return positional if not kwargs else (*positional, *(spec(v) for v in kwargs.values()))


def _program(module: nn.Module, exported: fx.GraphModule) -> Program:
    builder = _Builder(module, exported)
    for node in exported.graph.nodes:
        builder.add(node)
    return builder.finish()


class _Builder:
    """Walks the fx graph once and writes down ir values and nodes."""

    def __init__(self, module: nn.Module, exported: fx.GraphModule) -> None:
        self.exported = exported
        self.shapes = AtenShapes()
        self.call: dict[ir.Node, fx.Node] = {}
        self.of: dict[fx.Node, list[ir.Value]] = {}
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: dict[Identity, ir.Value] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: dict[Identity, list[str]] = {}
        own: dict[str, torch.Tensor] = {}
        own.update(module.named_parameters(remove_duplicate=False))
        own.update(module.named_buffers(remove_duplicate=False))
        for name, tensor in own.items():
            self.names.setdefault(_identity(tensor), []).append(name)

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.inputs += self._values(node, node.name)
        elif node.op == "get_attr":
            self._constant(node)
        elif node.op == "output":
            for part in _flat(node.args):
                if isinstance(part, fx.Node):
                    self.outputs += self.of.get(part, [])
        elif node.target is operator.getitem:
            parent, index = node.args
            parts = self.of.get(parent, []) if isinstance(parent, fx.Node) else []
            self.of[node] = parts[index : index + 1] if isinstance(index, int) else []
        elif node.op == "call_function":
            self._call(node)

    def _call(self, node: fx.Node) -> None:
        operands = [a for a in _flat((node.args, node.kwargs)) if isinstance(a, fx.Node) and self.of.get(a)]
        outputs = self._values(node, node.name)
        if not outputs:
            return
        values = [v for a in operands for v in self.of[a]]
        made = ir.Node(DOMAIN, _operator(node), values, outputs=outputs, name=node.name)
        self.nodes.append(made)
        self.call[made] = node

    def _values(self, node: fx.Node, name: str) -> list[ir.Value]:
        found = node.meta.get("val")
        parts = found if isinstance(found, list | tuple) else [found]
        values = []
        for i, part in enumerate(parts):
            if not isinstance(part, torch.Tensor):
                if isinstance(found, list | tuple):
                    values.append(ir.Value(name=f"{name}.{i}"))
                continue
            value = ir.Value(name=name if part is found else f"{name}.{i}")
            self.shapes.found[value] = tuple(size_of(s) for s in part.shape)
            values.append(value)
        self.of[node] = values
        return values

    def _constant(self, node: fx.Node) -> None:
        tensor = _attribute(self.exported, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            return
        key = _identity(tensor)
        if key not in self.initializers:
            name = str(node.target)
            aliases = self.names.get(key, [])
            if name not in aliases and aliases:
                name = aliases[0]
            value = ir.Value(name=name, const_value=TorchTensor(tensor.detach(), name=name))
            self.initializers[key] = value
            self.tensors[name] = tensor
            self.shapes.found[value] = tuple(int(s) for s in tensor.shape)
            if not tensor.is_floating_point() and tensor.numel() <= 1 << 16:
                self.shapes.constants[value] = tensor.detach().cpu().numpy()
        self.of[node] = [self.initializers[key]]

    def finish(self) -> Program:
        graph = ir.Graph(
            self.inputs,
            list(dict.fromkeys(self.outputs)),
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": 18, DOMAIN: 1},
            name="module",
        )
        names = {v.name or "": self.names.get(key, [v.name or ""]) for key, v in self.initializers.items()}
        model = ir.Model(graph, ir_version=10)
        return Program(self.exported, model, self.call, self.of, self.tensors, names, self.shapes)


Identity = tuple[Any, ...]


def _identity(tensor: torch.Tensor) -> Identity:
    """Equal for tensors that share their memory; empty ones are all different."""
    place = tensor.data_ptr() if tensor.numel() else id(tensor)
    return (place, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _operator(node: fx.Node) -> str:
    name = operator_name(node)
    return _OPERATORS.get(name, name)


def operator_name(node: fx.Node) -> str:
    """The name of an ATen operator without its overload; in-place variants have the name of the others."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
        return name.rstrip("_") if not name.startswith("_") and not name.startswith("__") else name
    return getattr(target, "__name__", str(target))


def _flat(value: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dicts."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)
    else:
        yield value

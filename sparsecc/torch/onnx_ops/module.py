"""An ONNX file as a torch module: it runs, it has gradients, and what it learns goes back into the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from sparsecc.errors import InputError, InternalError, SparseccError
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.runtime.dense import does_run
from sparsecc.torch.onnx_ops import elementwise, layers, recurrent, shape  # noqa: F401
from sparsecc.torch.onnx_ops.call import OPS, Call
from sparsecc.torch.program.failures import TORCH_FAILURES, reason_of

LARGEST = 1e4
"""Constants with larger values are masks, not weights."""
_FIXED: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4), "Resize": (1, 2, 3), "Upsample": (1,), "Clip": (1, 2), "Pad": (1, 2),
    "Pow": (1,), "Range": (0, 1, 2), "OneHot": (1, 2),
}  # fmt: skip
"""Operands that are never trained."""
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class OnnxModule(nn.Module):
    """Runs the nodes of an ONNX graph with torch functions.

    Called with the inputs by position or as a mapping of names; gives the outputs as a dict. Initializers
    that look like weights (floating, more than one element, no mask, no running statistic) are parameters;
    `named` maps their ONNX names to them. `features` names values to be given as well, under their names.
    """

    def __init__(self, model: ir.Model, source: Path | None = None) -> None:
        super().__init__()
        self.source = source
        self.model = model
        self.input_names = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
        self.output_names = [v.name or "" for v in model.graph.outputs]
        self.features: tuple[str, ...] = ()
        self.nodes = list(model.graph)
        self.calls = [_call(node, model) for node in self.nodes]
        self.norms = nn.ModuleDict()
        self._holders: dict[ir.Value, str] = {}
        self.named: dict[str, nn.Parameter] = {}
        fixed = _fixed_operands(self.nodes)
        for number, value in enumerate(model.graph.initializers.values()):
            self._hold(value, f"w{number}", value not in fixed)

    def _hold(self, value: ir.Value, name: str, trainable: bool) -> None:
        assert value.const_value is not None
        array = value.const_value.numpy()
        tensor = (
            torch.from_numpy(array.copy()) if array.dtype.name != "bfloat16" else torch.tensor(array.tolist())
        )
        self._holders[value] = name
        is_weight = trainable and tensor.is_floating_point() and tensor.numel() > 1 and tensor.dim() > 0
        if is_weight and bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) <= LARGEST:
            parameter = nn.Parameter(tensor)
            self.register_parameter(name, parameter)
            self.named[value.name or ""] = parameter
        else:
            self.register_buffer(name, tensor)

    def put_behind(self, node: ir.Node, norm: BatchNorm) -> None:
        """Let the norm work on the first output of a node."""
        self.norms[str(self.nodes.index(node))] = norm

    def taken_away(self) -> list[tuple[ir.Node, BatchNorm]]:
        """The norms with their nodes; the module has none any more."""
        found = [(self.nodes[int(key)], cast(BatchNorm, norm)) for key, norm in self.norms.items()]
        self.norms = nn.ModuleDict()
        return found

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Outputs (and asked-for features) by name.

        What fails names the node: InternalError where ONNX Runtime takes the inputs, InputError where it does not.
        """
        given: Mapping[str, Any] = (
            args[0]
            if args and isinstance(args[0], Mapping)
            else dict(zip(self.input_names, args, strict=False))
        )
        given = {**given, **kwargs}
        values: dict[ir.Value, Tensor | None] = {v: getattr(self, n) for v, n in self._holders.items()}
        for value in self.model.graph.inputs:
            if value.name in given:
                values[value] = torch.as_tensor(given[value.name])
            elif not value.is_initializer():
                raise InputError(f"input '{value.name}' is missing: inputs are {', '.join(self.input_names)}")
        wanted = set(self.output_names) | set(self.features)
        found = {v.name: t for v, t in values.items() if v.name in wanted and t is not None}
        for place, (node, call) in enumerate(zip(self.nodes, self.calls, strict=True)):
            operands = [None if v is None else values[v] for v in node.inputs]
            results = self._run(node, call, operands, given)
            if str(place) in self.norms:
                results = (self.norms[str(place)](results[0]), *results[1:])
            for value, result in zip(node.outputs, results, strict=False):
                values[value] = result
                if value.name in wanted and result is not None:
                    found[value.name] = result
        return {name: found[name] for name in (*self.output_names, *self.features)}

    def _run(
        self, node: ir.Node, call: Call, operands: Sequence[Tensor | None], given: Mapping[str, Any]
    ) -> Sequence[Tensor | None]:
        function = OPS[call.op]
        try:
            results = function(call, *operands)
        except TORCH_FAILURES as e:
            raise self._refusal(
                f"{call.op} '{node.name}' does not run in torch ({reason_of(e)})", given
            ) from e
        return results if isinstance(results, tuple) else (results,)

    def _refusal(self, told: str, given: Mapping[str, Any]) -> SparseccError:
        """Whose fault it is that a node does not run: ours where the file runs on the same inputs."""
        feeds = {
            name: TorchTensor(torch.as_tensor(given[name]).detach()).numpy() for name in self.input_names
        }
        if does_run(self.source or self.model, feeds):
            return InternalError(f"{told}, the file does in ONNX Runtime: please report it with the file")
        return InputError(f"{told}, nor does the file in ONNX Runtime: give inputs that it takes")


def from_onnx(path: str | os.PathLike[str]) -> OnnxModule:
    """The ONNX file as a module that can be trained. InputError names operators that do not run here."""
    source = Path(path)
    model = normalise(load_ir(source))
    require_operators(model, str(source))
    return OnnxModule(model, source)


def require_operators(model: ir.Model, what: str) -> None:
    """InputError that begins with `what` where operators of the model do not run here."""
    missing = sorted(
        {n.op_type for n in model.graph if n.domain not in ("", "ai.onnx") or n.op_type not in OPS}
    )
    if missing:
        raise InputError(f"{what}: operators without a torch function: {', '.join(missing)}")


def write_back(module: OnnxModule, output: str | os.PathLike[str]) -> Path:
    """Write the file that the module came from with the parameters it has now; nothing else changes."""
    if module.source is None:
        raise InputError("this module was not made by from_onnx: there is no file to write back to")
    model = normalise(load_ir(module.source))
    for name, parameter in module.named.items():
        value = model.graph.initializers[name]
        old = value.const_value
        assert old is not None
        array = parameter.detach().cpu().numpy().astype(old.dtype.numpy(), copy=False)
        value.const_value = ir.Tensor(array, dtype=old.dtype, name=name)
    path = Path(output)
    large = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value) > 1 << 30
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    return path


def _call(node: ir.Node, model: ir.Model) -> Call:
    attributes = {name: _plain(a) for name, a in node.attributes.items()}
    return Call(node.op_type, node.name or "", attributes, len(node.outputs), model.opset_imports.get("", 1))


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return torch.from_numpy(attribute.as_tensor().numpy().copy())
    return list(value) if isinstance(value, tuple | list) else value


def _fixed_operands(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    found = set()
    for node in nodes:
        for operand in _FIXED.get(node.op_type, ()):
            value = node.inputs[operand] if operand < len(node.inputs) else None
            if value is not None:
                found.add(value)
    return found

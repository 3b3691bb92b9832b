"""ONNX operators that work slot by slot, in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecc.torch.onnx_ops.call import DTYPES, OPS, Call, onnx_op

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil,
    "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "HardSwish": F.hardswish, "Identity": lambda x: x, "IsInf": torch.isinf, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul, "Or": torch.logical_or, "Sub": torch.sub,
    "Xor": torch.logical_xor,
}  # fmt: skip


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, a, b: function(a, b)


OPS.update({name: _unary(function) for name, function in UNARY.items()})
OPS.update({name: _binary(function) for name, function in BINARY.items()})


@onnx_op("Div")
def divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@onnx_op("Mod")
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The sign of the divisor, or with `fmod` that of the dividend."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@onnx_op("Pow")
def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(a, b).to(a.dtype)


@onnx_op("Max Min Sum Mean")
def variadic(call: Call, *operands: Tensor) -> Tensor:
    """Over any number of operands."""
    functions: dict[str, Any] = {"Max": torch.maximum, "Min": torch.minimum}
    total: Tensor = reduce(functions.get(call.op, torch.add), operands)
    return total / len(operands) if call.op == "Mean" else total


@onnx_op("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    return torch.where(condition, a, b)


@onnx_op("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Another element type."""
    return x.to(DTYPES[call.get("to")])


@onnx_op("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """The element type of another tensor."""
    return x.to(like.dtype)


@onnx_op("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before opset 11, operands since."""
    lowest: Any = call.get("min") if low is None else low
    highest: Any = call.get("max") if high is None else high
    return x if lowest is None and highest is None else torch.clamp(x, lowest, highest)


@onnx_op("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """x, or alpha*x below zero."""
    return F.leaky_relu(x, call.get("alpha", 0.01))


@onnx_op("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """x, or alpha*(exp(x)-1) below zero."""
    return F.elu(x, call.get("alpha", 1.0))


@onnx_op("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Elu, continuously differentiable for every alpha."""
    return F.celu(x, call.get("alpha", 1.0))


@onnx_op("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """gamma times Elu."""
    return F.elu(x, call.get("alpha", 1.6732632423543772)) * float(call.get("gamma", 1.0507009873554805))


@onnx_op("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """alpha*x+beta, cut to [0, 1]."""
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@onnx_op("ThresholdedRelu")
def thresholded(call: Call, x: Tensor) -> Tensor:
    """x above alpha, else zero."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@onnx_op("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Exact, or by tanh."""
    return F.gelu(x, approximate=call.get("approximate", "none"))


@onnx_op("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope*x below zero; the slope is broadcast."""
    return torch.where(x < 0, x * slope, x)


@onnx_op("Dropout")
def dropout(call: Call, x: Tensor, *rest: Tensor) -> Any:
    """At inference: the data as it is."""
    return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@onnx_op("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """x*sigmoid(alpha*x)."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)

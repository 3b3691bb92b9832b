"""Operators that work slot by slot, with numpy-style broadcasting."""

from __future__ import annotations

from sparsecc.rules.site import Site, broadcast
from sparsecc.rules.table import rule

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor
Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""

BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum SwiGLU Where Xor"""


@rule(UNARY)
def unary(site: Site) -> None:
    """Every slot by itself."""
    site.set(site.axes(0))


@rule(BROADCAST)
def broadcasting(site: Site) -> None:
    """Slot by slot over all operands; equal axes are the same axis."""
    operands = [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)]
    site.set(broadcast(site, operands))


@rule("Clip")
def clip(site: Site) -> None:
    """Slot by slot; the bounds are scalars."""
    site.set(site.axes(0))


@rule("CastLike")
def cast_like(site: Site) -> None:
    """Slot by slot; the second operand gives only its type."""
    site.ignore(1)
    site.set(site.axes(0))


@rule("Dropout")
def dropout(site: Site) -> None:
    """Slot by slot; the mask has the axes of the data."""
    for output in range(site.outputs()):
        site.set(site.axes(0), output)


@rule("RandomNormalLike RandomUniformLike Bernoulli")
def random_like(site: Site) -> None:
    """Random values of the data's shape; all axes are pinned, so that a seed gives the same values."""
    site.pin(site.axes(0), "random values are drawn slot after slot")
    site.set(site.axes(0))


@rule("FastGelu BiasGelu QuickGelu Gelu BiasAdd", domain="com.microsoft")
def fused_activation(site: Site) -> None:
    """Slot by slot over the data and an optional bias."""
    operands = [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)]
    site.set(broadcast(site, operands))

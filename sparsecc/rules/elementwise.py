"""Operators that work slot by slot, with numpy-style broadcasting."""

from __future__ import annotations

from sparsecc.rules.output_shapes import SAME
from sparsecc.rules.site import Site, broadcast
from sparsecc.rules.table import rule
from sparsecc.rules.traits import MOVED_WHOLE, Trait

ACTIVATES = Trait.SLOTWISE | Trait.ADDS

ZERO_AT_ZERO = """Abs Asin Asinh Atan Atanh Ceil Celu Elu Erf Floor Gelu HardSwish LeakyRelu Mish Neg Relu Round Selu
Sign Sin Sinh Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""

OTHER_UNARY = """Acos Acosh BitCast BitwiseNot Cos Cosh Exp HardSigmoid IsInf IsNaN Log Not Reciprocal Shrink Sigmoid
Softplus"""

ZERO_OF_ZEROS = "Add BitShift BitwiseOr BitwiseXor Max Mean Min Or Sub Sum Xor"

ZERO_OF_ONE_ZERO = "And BitwiseAnd Div Mul"

OTHER_BROADCAST = "Equal Greater GreaterOrEqual Less LessOrEqual Mod PRelu Pow SwiGLU Where"


@rule("Cast Identity", traits=Trait.SLOTWISE | MOVED_WHOLE)
@rule(ZERO_AT_ZERO, traits=Trait.SLOTWISE | Trait.KEEPS_ZEROS)
@rule(OTHER_UNARY, traits=Trait.SLOTWISE)
def unary(site: Site) -> None:
    """Every slot by itself."""
    site.set(site.axes(0))


@rule(ZERO_OF_ZEROS, traits=Trait.SLOTWISE | Trait.ADDS)
@rule(ZERO_OF_ONE_ZERO, traits=Trait.SLOTWISE | Trait.MULTIPLIES)
@rule(OTHER_BROADCAST, traits=Trait.SLOTWISE)
def broadcasting(site: Site) -> None:
    """Slot by slot over all operands; equal axes are the same axis."""
    operands = [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)]
    site.set(broadcast(site, operands))


@rule("Clip", traits=Trait.SLOTWISE)
def clip(site: Site) -> None:
    """Slot by slot; the bounds are scalars."""
    site.set(site.axes(0))


@rule("CastLike", traits=Trait.SLOTWISE | MOVED_WHOLE)
def cast_like(site: Site) -> None:
    """Slot by slot; the second operand gives only its type."""
    site.ignore(1)
    site.set(site.axes(0))


@rule("Dropout", traits=Trait.SLOTWISE | MOVED_WHOLE)
def dropout(site: Site) -> None:
    """Slot by slot; the mask has the axes of the data."""
    for output in range(site.outputs()):
        site.set(site.axes(0), output)


@rule("RandomNormalLike RandomUniformLike Bernoulli")
def random_like(site: Site) -> None:
    """Random values of the data's shape; all axes are pinned, so that a seed gives the same values."""
    site.pin(site.axes(0), "random values are drawn slot after slot")
    site.set(site.axes(0))


@rule("FastGelu BiasGelu QuickGelu Gelu BiasAdd", domain="com.microsoft", traits=ACTIVATES, shapes=SAME)
def fused_activation(site: Site) -> None:
    """Slot by slot over the data and an optional bias."""
    operands = [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)]
    site.set(broadcast(site, operands))

"""ATen operators that work slot by slot, and those that make values from sizes alone."""

from __future__ import annotations

from sparsecc.axes.algebra import Atom
from sparsecc.rules import Trait
from sparsecc.rules.site import broadcast
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten

COPIES = """_to_copy alias bfloat16 clone contiguous data detach double float half int lift_fresh
lift_fresh_copy long positive requires_grad to type_as"""

UNARY = """abs acos acosh alpha_dropout asin asinh atan atanh bernoulli bitwise_not ceil celu clamp_max
clamp_min clip cos cosh digamma dropout elu erf erfc erfinv exp exp2 expm1 feature_dropout floor frac gelu
hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lgamma log log10 log1p log2 log_sigmoid
logical_not logit mish native_dropout neg reciprocal relu relu6 round rrelu rsqrt selu sgn sigmoid sign
silu sin sinc sinh softplus softshrink softsign sqrt square tan tanh tanhshrink threshold trunc hardshrink
nan_to_num bool view_dtype feature_alpha_dropout dropout1d dropout2d dropout3d signbit"""

BROADCAST = """__and__ __or__ __xor__ add atan2 bitwise_and bitwise_or bitwise_xor clamp copy div eq fmod
floor_divide ge gt le lerp logaddexp logical_and logical_or logical_xor lt masked_fill maximum minimum mul
multiply ne pow prelu_kernel remainder rsub sub subtract true_divide where xlogy max_other min_other addcmul
addcdiv divide greater less bitwise_left_shift bitwise_right_shift greater_equal less_equal not_equal
heaviside hypot fmin fmax copysign special_xlogy"""


@aten(COPIES, traits=Trait.MOVES)
@aten(UNARY)
def unary(site: AtenSite) -> None:
    """Every slot by itself."""
    site.ignore(*range(1, len(site.node.inputs)))
    site.set_all(site.axes(0))


@aten(BROADCAST)
def broadcasting(site: AtenSite) -> None:
    """Slot by slot over all operands; equal axes are the same axis."""
    site.set(broadcast(site, site.everything()))


@aten("prelu")
def prelu(site: AtenSite) -> None:
    """Slot by slot; the slopes follow axis 1."""
    data, slopes = site.of("self"), site.of("weight")
    if len(data) > 1:
        site.same(data[1], slopes[0])
    site.set(data)


def mend_size(edit: AtenEdit) -> None:
    """The sizes follow the axes of the output."""
    edit.set_sizes("size", edit.out_axes())


@aten("zeros ones full empty rand randn new_zeros new_ones new_full new_empty", fix=mend_size)
def filled(site: AtenSite) -> None:
    """Equal (or random) values everywhere: fresh slots, free until something else says more."""
    site.ignore(*range(len(site.node.inputs)))
    site.set([Atom(size) for size in site.out_shape()])


@aten("zeros_like ones_like full_like empty_like rand_like randn_like")
def like(site: AtenSite) -> None:
    """Values in the shape of the first operand."""
    site.set(site.axes(0))


@aten("arange linspace scalar_tensor eye")
def numbered(site: AtenSite) -> None:
    """Consecutive numbers: every slot stays."""
    site.set([site.fixed(s, "consecutive numbers") for s in site.out_shape()])


@aten("tril triu")
def triangle(site: AtenSite) -> None:
    """Rows and columns are numbered; the axes before pass."""
    data = site.axes(0)
    site.pin(data[-2:], "the triangle")
    site.set(data)


@aten("_assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range_for_size")
def nothing(site: AtenSite) -> None:
    """A check that reads no slot."""
    site.ignore(*range(len(site.node.inputs)))

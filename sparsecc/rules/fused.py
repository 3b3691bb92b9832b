"""What ONNX Runtime's optimizer fuses: layers with their activation, NHWC convolutions, gated activations."""

from __future__ import annotations

from sparsecc.axes.algebra import Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.linear import fused_matmul, gemm, mend_group
from sparsecc.rules.normalize import softmax
from sparsecc.rules.output_shapes import (
    BOOL,
    FUSED_MATMUL,
    PACKED,
    SAME,
    causal_conv_state,
    halved,
    nhwc_conv,
    twice,
)
from sparsecc.rules.quantized import channels_back, channels_first, convolve
from sparsecc.rules.site import CannotFollowError, Site, broadcast, in_groups
from sparsecc.rules.table import pinned, rule
from sparsecc.rules.traits import Trait
from sparsecc.shapes.contrib_ops import OutputShapes

MS = "com.microsoft"

rule("FusedGemm", domain=MS, traits=Trait.PRODUCT, shapes=OutputShapes(standard="Gemm"))(gemm)


@rule("FusedMatMulActivation", domain=MS, traits=Trait.PRODUCT, shapes=FUSED_MATMUL)
def matmul_activation(site: Site) -> None:
    """A matrix product with optional transposes, then an activation slot by slot."""
    if site.string("activation").endswith("oftmax"):
        raise CannotFollowError("it ends in a softmax")
    fused_matmul(site)


@rule(
    "NhwcConv NhwcFusedConv",
    fix=mend_group,
    domain=MS,
    traits=Trait.CONVOLUTION,
    shapes=OutputShapes(nhwc_conv),
)
def channels_last_conv(site: Site) -> None:
    """A convolution over (batch, *space, channels), with weights (out, in/group, *kernel)."""
    data = channels_first(site.axes(0), True)
    result = channels_back(convolve(site, data, site.axes(1), 2, operand=0, zero=None, last=True), True)
    if site.has(3):
        result = broadcast(site, [result, site.axes(3)])
    site.set(result)


@rule("BiasSoftmax", domain=MS, shapes=SAME)
def bias_softmax(site: Site) -> None:
    """A bias, then a softmax: the normalised axis is pinned."""
    broadcast(site, [site.axes(0), site.axes(1)])
    softmax(site)


@rule("BiasDropout", domain=MS, traits=Trait.ADDS, shapes=OutputShapes(twice, own={1: BOOL}))
def bias_dropout(site: Site) -> None:
    """Slot by slot over data, bias and an optional residual."""
    found = broadcast(site, [site.axes(i) for i in range(3) if site.has(i)])
    for output in range(site.outputs()):
        site.set(found, output)


@rule("BiasSplitGelu", domain=MS, shapes=OutputShapes(halved))
def bias_split_gelu(site: Site) -> None:
    """The first half of the last axis times the GELU of the second."""
    data = broadcast(site, [site.axes(0), site.axes(1)])
    halves, width = in_groups(site, data[-1], 2, "its last axis")
    site.pin(halves, "the two halves")
    site.set([*data[:-1], width])


def mend_norm_groups(edit: Edit) -> None:
    """`groups` becomes the number of groups left."""
    if edit.changed(edit.memo):
        edit.set_attribute("groups", edit.left(edit.memo))


@rule("GroupNorm", fix=mend_norm_groups, domain=MS, shapes=SAME)
@rule("SkipGroupNorm", fix=mend_norm_groups, domain=MS, shapes=OutputShapes(twice))
def group_norm(site: Site) -> None:
    """Groups of channels are normalised over: whole groups are free, the inside of a group stays."""
    data = list(site.axes(0))
    last, groups = bool(site.int_("channels_last", 1)), site.int_("groups", 1)
    channel = data[-1] if last else data[1]
    outer, inner = in_groups(site, channel, groups)
    site.pin(inner, "the inside of a group that is normalised over")
    for operand in (1, 2, 4):
        if site.has(operand):
            site.same(channel, site.axes(operand)[-1])
    if site.has(3):
        _skip(site, data, site.axes(3))
    site.remember(outer)
    for output in range(site.outputs()):
        site.set(data, output)


def _skip(site: Site, data: list[Axis], skip: list[Axis]) -> None:
    """The skipped tensor may be (batch, channels) or (batch, 1, 1, channels)."""
    if len(skip) == len(data):
        broadcast(site, [data, skip])
        return
    site.same(data[0], skip[0])
    site.same(data[-1], skip[-1])


@rule("CausalConvWithState", traits=Trait.CONVOLUTION)
@rule("CausalConvWithState", domain=MS, traits=Trait.CONVOLUTION, shapes=OutputShapes(causal_conv_state))
def causal_conv(site: Site) -> None:
    """A depthwise convolution over time with its last inputs as state: channel by channel."""
    if site.int_("channels_last") or site.int_("ndim", 1) != 1:
        raise CannotFollowError("this layout is not followed")
    data, weight = site.axes(0), site.axes(1)
    site.same(data[1], weight[0])
    site.pin_kernel(weight[1:])
    site.pin(data[2], "the time axis")
    if site.has(2):
        site.same(data[1], site.axes(2)[0])
    if site.has(3):
        past = site.axes(3)
        site.same(data[0], past[0])
        site.same(data[1], past[1])
        site.pin(past[2], "the time axis")
    site.set(data)
    if site.outputs() > 1 and site.node.outputs[1].name:
        site.set([*data[:2], site.fixed(site.out_shape(1)[2], "the time axis")], 1)
    site.multiplies(*data, weight[2])


@rule("ScaledSiLU", domain=MS, traits=Trait.SLOTWISE | Trait.KEEPS_ZEROS, shapes=SAME)
def scaled_silu(site: Site) -> None:
    """Every slot by itself."""
    site.set(site.axes(0))


pinned("Inverse", "an inverse mixes rows and columns", domain=MS, shapes=SAME)
pinned(
    "MatMulBnb4 MatMulFpQ4",
    "its weights are packed in blocks",
    domain=MS,
    traits=Trait.INTEGER | Trait.PRODUCT,
    shapes=PACKED,
)
for _name in ("Pad", "Unique", "Range"):
    pinned(_name, "older than the standard's own", domain=MS, shapes=OutputShapes(standard=_name))
pinned("BeamSearch GreedySearch Sampling WhisperBeamSearch", "its decoder is not followed", domain=MS)

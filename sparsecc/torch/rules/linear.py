"""ATen convolutions and matrix products: axes that are summed over."""

from __future__ import annotations

from sparsecc.axes.algebra import Axis
from sparsecc.rules.linear import convolved, deconvolved, follow_equation, matrix_product
from sparsecc.rules.site import CannotFollowError, broadcast
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten


def mend_groups(edit: AtenEdit) -> None:
    """`groups` becomes the number of groups left."""
    if edit.memo is not None and edit.changed(edit.memo):
        edit.set_size("groups", edit.memo)


@aten("conv1d conv2d conv3d", fix=mend_groups)
def conv(site: AtenSite) -> None:
    """Weights (out, in/group, *kernel): inputs are summed; whole groups or equal offsets go together."""
    data, weight, groups = site.of("input"), site.of("weight"), site.size("groups", 1)
    if len(data) != len(weight):
        raise CannotFollowError("its input has no batch axis")
    out = convolved(site, data, weight, groups)
    _finish(site, data, out, weight, 1)
    site.multiplies(data[0], out, *site.record.axes[site.node.outputs[0]][2:], *weight[1:])


@aten("conv_transpose1d conv_transpose2d conv_transpose3d", fix=mend_groups)
def conv_transpose(site: AtenSite) -> None:
    """Weights (in, out/group, *kernel): input channels are summed; groups go as in conv."""
    data, weight, groups = site.of("input"), site.of("weight"), site.size("groups", 1)
    _finish(site, data, deconvolved(site, data, weight, groups), weight, 0)
    site.multiplies(*data, *weight[1:])


def _finish(site: AtenSite, data: list[Axis], out: Axis, weight: list[Axis], summed: int) -> None:
    site.reduces(site.number("input"), 1)
    site.reduces(site.number("weight"), summed)
    if site.holds("bias"):
        site.same(out, site.of("bias")[0])
    site.set([data[0], out, *(site.fixed(s, "a spatial axis") for s in site.out_shape()[2:])])


@aten("linear")
def linear(site: AtenSite) -> None:
    """Weights (out, in): inputs are summed."""
    data, weight = site.of("input"), site.of("weight")
    site.space.unify(data[-1], weight[1])
    site.reduces(site.number("input"), -1)
    site.reduces(site.number("weight"), 1)
    if site.holds("bias"):
        site.same(weight[0], site.of("bias")[0])
    site.set([*data[:-1], weight[0]])
    site.multiplies(*data, weight[0])


@aten("matmul mm bmm dot mv")
def matmul(site: AtenSite) -> None:
    """(..., m, k) by (..., k, n): k is summed. Between two activations the batch axes are heads."""
    matrix_product(site, list(site.axes(0)), list(site.axes(1)))


@aten("addmm baddbmm addbmm")
def added_product(site: AtenSite) -> None:
    """A product of matrices plus a term that is broadcast."""
    first, second = site.number("mat1" if site.holds("mat1") else "batch1"), 0
    second = first + 1
    a, b = site.axes(first), site.axes(second)
    site.space.unify(a[-1], b[-2])
    site.reduces(first, -1)
    site.reduces(second, -2)
    batch = broadcast(site, [a[:-2], b[:-2]])
    if not (site.is_weight(first) or site.is_weight(second)):
        for axis in batch:
            site.space.mark(axis, "head")
    site.set(broadcast(site, [[*batch, a[-2], b[-1]], site.axes(0)]))
    site.multiplies(*batch, a[-2], a[-1], b[-1])


@aten("bilinear")
def bilinear(site: AtenSite) -> None:
    """x1 · W[o] · x2 + b: both inputs are summed; weights are (out, in1, in2)."""
    a, b, weight = site.of("input1"), site.of("input2"), site.of("weight")
    site.space.unify(a[-1], weight[1])
    site.space.unify(b[-1], weight[2])
    site.reduces(site.number("weight"), 1)
    site.reduces(site.number("weight"), 2)
    if site.holds("bias"):
        site.same(weight[0], site.of("bias")[0])
    site.set([*broadcast(site, [a[:-1], b[:-1]]), weight[0]])


@aten("einsum")
def einsum(site: AtenSite) -> None:
    """Letters are axes, as in ONNX."""
    follow_equation(site, str(site.arg("equation")))

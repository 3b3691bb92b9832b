"""Quantized operators: channels flow as in the float operator; scales and zero points follow their axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsecc.axes.algebra import Atom, Axis, cat, mul
from sparsecc.axes.sizes import quotient
from sparsecc.rules.edit import Edit
from sparsecc.rules.linear import mend_group
from sparsecc.rules.output_shapes import (
    PACKED,
    QUANTIZED,
    SAME,
    gathered_blocks,
    pooled,
    product,
    q_concat,
    q_conv,
    q_gemm_shape,
    q_mean,
    q_where,
    same,
)
from sparsecc.rules.site import SPATIAL, CannotFollowError, Site, broadcast, in_groups
from sparsecc.rules.table import Follow, pinned, rule
from sparsecc.rules.traits import ROUNDED, Trait
from sparsecc.shapes.contrib_ops import OutputShapes

MS = "com.microsoft"
INTEGER_PRODUCT = Trait.INTEGER | Trait.PRODUCT


def per_slot(site: Site, axis: Axis, *operands: int) -> None:
    """Scales or zero points: one number for the tensor, or one per slot of an axis."""
    for operand in operands:
        if site.has(operand):
            for own in site.axes(operand):
                if own.size != 1:
                    site.space.unify(axis, own)


@rule("QuantizeLinear", traits=ROUNDED)
@rule("DequantizeLinear", traits=Trait.INTEGER)
@rule("QuantizeLinear", domain=MS, traits=ROUNDED, shapes=QUANTIZED)
@rule("DequantizeLinear", domain=MS, traits=Trait.INTEGER, shapes=OutputShapes(same, dtype=1))
def quantize(site: Site) -> None:
    """Slot by slot; scales per tensor, per slot of one axis, or per block of it."""
    data = site.axes(0)
    for operand in (1, 2):
        if not site.has(operand):
            continue
        scale = site.axes(operand)
        if len(scale) == 1 and scale[0].size != 1:
            site.same(data[site.axis(default=1)], scale[0])
        elif len(scale) > 1:
            _blocked(site, data, scale)
    site.set(data)


def _blocked(site: Site, data: Sequence[Axis], scale: Sequence[Axis]) -> None:
    """One scale per block of consecutive slots along `axis`: whole blocks may go."""
    axis = site.axis(default=1)
    for i, (a, b) in enumerate(zip(data, scale, strict=True)):
        if i != axis:
            site.same(a, b)
            continue
        width = quotient(a.size, b.size)
        found = site.space.factored(a, (b.size, width)) if width is not None else None
        if found is None:
            site.pin([a, b], "an axis that is not a whole number of blocks")
            continue
        site.same(found[0], b)
        site.pin(found[1], "the inside of a block")


@rule("DynamicQuantizeLinear", traits=ROUNDED)
def dynamic_quantize(site: Site) -> None:
    """Slot by slot. The one scale spans all values and zero, so removed slots count as zeros."""
    data = site.axes(0)
    site.reduces(0, range(len(data)))
    site.set(data)
    for output in (1, 2):
        site.set([], output)


def convolve(
    site: Site, data: list[Axis], weight: list[Axis], bias: int, operand: int, zero: int | None, last: bool
) -> list[Axis]:
    """Relate a convolution with weights (out, in/group, *kernel); returns its output axes as NCHW."""
    groups = site.int_("group", 1)
    site.pin_kernel(weight[2:])
    site.pin(data[2:], SPATIAL)
    out, width = weight[0], data[1]
    if groups == 1:
        site.space.unify(width, weight[1])
    else:
        inner, outer = in_groups(site, width, groups), in_groups(site, out, groups)
        site.same(inner[1], weight[1])
        site.space.unify(inner[0], outer[0])
        site.remember(inner[0])
    site.reduces(operand, len(data) - 1 if last else 1, fill=zero)
    if site.has(bias):
        site.same(out, site.axes(bias)[0])
    shape = site.out_shape()
    spatial = [site.fixed(s, SPATIAL) for s in (shape[1:-1] if last else shape[2:])]
    site.multiplies(data[0], out, *spatial, *weight[1:])
    return [data[0], out, *spatial]


def channels_first(axes: Sequence[Axis], last: bool) -> list[Axis]:
    """NHWC axes as NCHW, where `last`."""
    return [axes[0], axes[-1], *axes[1:-1]] if last else list(axes)


def channels_back(axes: Sequence[Axis], last: bool) -> list[Axis]:
    """NCHW axes as NHWC, where `last`."""
    return [axes[0], *axes[2:], axes[1]] if last else list(axes)


@rule("QLinearConv", fix=mend_group, traits=ROUNDED | Trait.CONVOLUTION)
@rule(
    "QLinearConv", fix=mend_group, domain=MS, traits=ROUNDED | Trait.CONVOLUTION, shapes=OutputShapes(q_conv)
)
def qlinear_conv(site: Site) -> None:
    """A convolution; the weights' scales and zero points are per tensor or per output channel."""
    last = bool(site.int_("channels_last"))
    weight = site.axes(3)
    data = channels_first(site.axes(0), last)
    result = convolve(site, data, weight, bias=8, operand=0, zero=2, last=last)
    per_slot(site, weight[0], 4, 5)
    site.set(channels_back(result, last))


@rule("ConvInteger", fix=mend_group, traits=Trait.INTEGER | Trait.CONVOLUTION)
def conv_integer(site: Site) -> None:
    """A convolution of integers; the weights' zero points are per tensor or per output channel."""
    weight = site.axes(1)
    result = convolve(site, site.axes(0), weight, bias=4, operand=0, zero=2, last=False)
    per_slot(site, weight[0], 3)
    site.set(result)


def integer_product(site: Site, b: int, rows: Sequence[int], zero: int, columns: Sequence[int]) -> None:
    """A (…, m, k) by B (…, k, n); `rows` and `columns` are operands given per tensor, row or column."""
    left, right = site.axes(0), site.axes(b)
    if zero >= 0 and site.has(zero) and any(size != 1 for size in site.shape(zero)):
        raise CannotFollowError("a zero point per row is not followed")
    site.space.unify(left[-1], right[-2] if len(right) > 1 else right[-1])
    site.reduces(0, -1, fill=zero if zero >= 0 else None)
    m, n = left[-2:-1], right[-1:] if len(right) > 1 else []
    batch = broadcast(site, [left[:-2], right[:-2]])
    for operand in rows:
        _along(site, [*batch, *m], operand, trailing=1)
    for operand in columns:
        _along(site, [*batch, Atom(1), *n], operand, trailing=0)
    site.set([*batch, *m, *n])
    site.multiplies(*batch, *m, left[-1], *n)


def _along(site: Site, axes: Sequence[Axis], operand: int, trailing: int) -> None:
    """Unify an operand of rank 0, 1 or that of the matrix with the axes it is given along."""
    if not site.has(operand):
        return
    own = list(site.axes(operand))
    if len(own) > 1 and trailing:
        own = own[:-1]
    for a, b in zip(list(axes)[::-1], own[::-1], strict=False):
        site.same(a, b)


@rule("MatMulInteger", traits=INTEGER_PRODUCT)
def matmul_integer(site: Site) -> None:
    """(…, m, k) by (…, k, n) in integers; zero points per tensor, row or column."""
    integer_product(site, 1, rows=[2], zero=2, columns=[3])


@rule("QLinearMatMul", traits=ROUNDED | Trait.PRODUCT)
def qlinear_matmul(site: Site) -> None:
    """(…, m, k) by (…, k, n); scales and zero points per tensor, row or column."""
    integer_product(site, 3, rows=[1, 2], zero=2, columns=[4, 5])


@rule("MatMulIntegerToFloat", domain=MS, traits=INTEGER_PRODUCT, shapes=OutputShapes(product, dtype=2))
def matmul_integer_to_float(site: Site) -> None:
    """(…, m, k) by (…, k, n) in integers, scaled to float, plus a bias."""
    integer_product(site, 1, rows=[], zero=4, columns=[3, 5, 6])


@rule("DynamicQuantizeMatMul", domain=MS, traits=ROUNDED | Trait.PRODUCT, shapes=OutputShapes(product))
def dynamic_quantize_matmul(site: Site) -> None:
    """(…, m, k) by (k, n); the float operand is quantized on the way with zero in its range."""
    integer_product(site, 1, rows=[], zero=-1, columns=[2, 3, 4])


@rule("QGemm", domain=MS, traits=ROUNDED | Trait.PRODUCT, shapes=OutputShapes(q_gemm_shape, dtype=8))
def q_gemm(site: Site) -> None:
    """A (m, k) by B (k, n), either transposed, plus C."""
    a, b = site.axes(0), site.axes(3)
    swap_a, swap_b = site.int_("transA"), site.int_("transB")
    m, k = (a[1], a[0]) if swap_a else (a[0], a[1])
    k_b, n = (b[1], b[0]) if swap_b else (b[0], b[1])
    site.space.unify(k, k_b)
    site.reduces(0, 0 if swap_a else 1, fill=2)
    per_slot(site, n, 4, 5)
    if site.has(6):
        broadcast(site, [[m, n], site.axes(6)])
    site.set([m, n])
    site.multiplies(m, k, n)


@rule("QLinearAdd", domain=MS, traits=ROUNDED, shapes=OutputShapes(standard="Add", operands=(0, 3)))
@rule("QLinearMul", domain=MS, traits=ROUNDED, shapes=OutputShapes(standard="Mul", operands=(0, 3)))
def qlinear_broadcast(site: Site) -> None:
    """Slot by slot over two quantized operands."""
    site.set(broadcast(site, [site.axes(0), site.axes(3)]))


@rule("QLinearWhere", domain=MS, traits=ROUNDED, shapes=OutputShapes(q_where, dtype=1))
def qlinear_where(site: Site) -> None:
    """Slot by slot over the condition and two quantized operands."""
    site.set(broadcast(site, [site.axes(0), site.axes(1), site.axes(4)]))


@rule("QLinearLeakyRelu QLinearSigmoid", domain=MS, traits=ROUNDED, shapes=SAME)
def qlinear_unary(site: Site) -> None:
    """Every slot by itself."""
    site.set(site.axes(0))


@rule("QLinearSoftmax", domain=MS, traits=ROUNDED, shapes=SAME)
def qlinear_softmax(site: Site) -> None:
    """The normalised axes are pinned: each slot's share depends on all others."""
    data = site.axes(0)
    axis = site.axis(default=-1)
    last = axis + 1 if site.int_("opset", 13) >= 13 else len(data)
    site.pin(data[axis:last], "the normalised axis")
    site.set(data)


@rule("QLinearConcat", domain=MS, traits=ROUNDED, shapes=OutputShapes(q_concat, dtype=2))
def qlinear_concat(site: Site) -> None:
    """Side by side along one axis; operands come as (tensor, scale, zero point)."""
    operands = [site.axes(i) for i in range(2, len(site.node.inputs), 3)]
    axis = site.axis(rank=len(operands[0]))
    result = list(operands[0])
    for other in operands[1:]:
        for i, (a, b) in enumerate(zip(result, other, strict=True)):
            if i != axis:
                result[i] = site.same(a, b)
    result[axis] = cat([axes[axis] for axes in operands])
    site.set(result)


@rule("QLinearGlobalAveragePool", domain=MS, traits=ROUNDED, shapes=pooled("GlobalAveragePool"))
def qlinear_global_pool(site: Site) -> None:
    """All of space becomes one slot; batch and channels pass."""
    last = bool(site.int_("channels_last"))
    data = channels_first(site.axes(0), last)
    site.pin(data[2:], SPATIAL)
    site.set(channels_back([*data[:2], *(Atom(1) for _ in data[2:])], last))


def _pool(last: Callable[[Site], bool]) -> Follow:
    def follow(site: Site) -> None:
        """Windows over space; batch and channels pass."""
        data = channels_first(site.axes(0), last(site))
        site.pin(data[2:], SPATIAL)
        shape = site.out_shape()
        spatial = [site.fixed(s, SPATIAL) for s in (shape[1:-1] if last(site) else shape[2:])]
        site.set(channels_back([*data[:2], *spatial], last(site)))

    return follow


rule("QLinearAveragePool", domain=MS, traits=ROUNDED, shapes=pooled("AveragePool"))(
    _pool(lambda site: bool(site.int_("channels_last")))
)
rule("NhwcMaxPool", domain=MS, shapes=pooled("MaxPool", nhwc=True))(_pool(lambda site: True))


@rule("QLinearReduceMean", domain=MS, traits=ROUNDED, shapes=OutputShapes(q_mean))
def qlinear_mean(site: Site) -> None:
    """The averaged axes are pinned: the result is rounded to a scale chosen for all of them."""
    data = site.axes(0)
    gone = {a % len(data) for a in site.ints("axes") or range(len(data))}
    site.pin([data[i] for i in sorted(gone)], "the averaged axis")
    keep = site.int_("keepdims", 1)
    site.set([Atom(1) if i in gone else a for i, a in enumerate(data) if keep or i not in gone])


def mend_packed(edit: Edit) -> None:
    """`N` and `K` become the rows and columns left."""
    rows, columns = edit.memo
    for name, axis in (("N", rows), ("K", columns)):
        if edit.changed(axis):
            edit.set_attribute(name, edit.left(axis))


@rule("MatMulNBits", fix=mend_packed, domain=MS, traits=INTEGER_PRODUCT, shapes=PACKED)
def matmul_packed(site: Site) -> None:
    """Weights (N, blocks of K, bytes): rows are free, of the summed axis whole blocks may go."""
    data, weight = site.axes(0), site.axes(1)
    rows, blocks, width = weight[0], weight[1], site.int_("block_size", 32)
    site.pin(weight[2:], "the packed bytes of a block")
    if site.has(4):
        raise CannotFollowError("its columns are in an order of their own (g_idx)")
    _packed_columns(site, data[-1], blocks, width)
    for operand in (2, 3):
        if site.has(operand):
            _per_block(site, operand, rows, blocks, packed=operand == 3)
    per_slot(site, rows, 5)
    site.remember((rows, data[-1]))
    site.reduces(0, -1)
    site.set([*data[:-1], rows])
    site.multiplies(*data, rows)


@rule("GatherBlockQuantized", domain=MS, traits=Trait.INTEGER, shapes=OutputShapes(gathered_blocks, dtype=2))
def gather_packed(site: Site) -> None:
    """Rows of a packed table (rows, bytes) with scales (rows, blocks): of the columns whole blocks may go."""
    table, scale = site.axes(0), site.axes(2)
    if len(table) != 2 or site.axis("gather_axis") != 0 or site.axis("quantize_axis", 1) != 1:
        raise CannotFollowError("a table that is not packed along its rows is not followed")
    site.pin(table[0], "the axis indexed at run time")
    site.same(table[0], scale[0])
    blocks = scale[1]
    packed = quotient(table[1].size, blocks.size)
    found = site.space.factored(table[1], (blocks.size, packed)) if packed is not None else None
    if found is None:
        raise CannotFollowError("its rows are not a whole number of blocks")
    site.same(found[0], blocks)
    site.pin(found[1], "the packed bytes of a block")
    if site.has(3):
        zero = site.axes(3)
        site.same(table[0], zero[0])
        if zero[1].size == blocks.size:
            site.same(zero[1], blocks)
        else:
            site.pin([blocks, zero[1]], "blocks whose zero points share a byte")
    inside = site.fixed(site.int_("block_size", 128), "the inside of a packed block")
    if site.value(1).is_initializer():
        site.pin(site.axes(1), "the indices")
    site.set([*site.axes(1), mul((blocks, inside))])


def _packed_columns(site: Site, axis: Axis, blocks: Axis, width: int) -> None:
    inner = quotient(axis.size, blocks.size)
    if inner != width or blocks.size == 1:
        site.pin(axis, f"the packed columns (blocks of {width})")
        site.pin(blocks, "the blocks")
        return
    found = site.space.factored(axis, (blocks.size, width))
    if found is None:
        site.pin(blocks, "the blocks")
        return
    site.same(found[0], blocks)
    site.pin(found[1], f"the inside of a packed block of {width} columns")


def _per_block(site: Site, operand: int, rows: Axis, blocks: Axis, packed: bool) -> None:
    """Scales or zero points, one per row and block, flat or (N, blocks); several zero points share a byte."""
    own = site.axes(operand)
    pieces: list[Axis] | None = list(own)
    if len(own) == 1:
        inner = quotient(own[0].size, rows.size)
        pieces = site.space.factored(own[0], (rows.size, inner)) if inner is not None else None
    if pieces is None:
        raise CannotFollowError(f"operand {operand} is not one number per row and block")
    site.same(rows, pieces[0])
    if packed and pieces[1].size != blocks.size:
        site.pin(blocks, "blocks whose zero points share a byte")
        site.pin(pieces[1], "packed zero points")
    else:
        site.same(blocks, pieces[1])


pinned("QOrderedMatMul", "its numbers lie in an order of their own", domain=MS, traits=INTEGER_PRODUCT)

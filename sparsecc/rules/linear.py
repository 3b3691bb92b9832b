"""Convolutions and matrix products: axes that are summed over."""

from __future__ import annotations

from sparsecc.axes.algebra import Axis, mul
from sparsecc.axes.sizes import Size, quotient
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import FUSED_MATMUL
from sparsecc.rules.site import SPATIAL, CannotFollowError, Site, broadcast
from sparsecc.rules.table import rule
from sparsecc.rules.traits import Trait
from sparsecc.shapes.contrib_ops import OutputShapes

MS = "com.microsoft"


def mend_group(edit: Edit) -> None:
    """`group` becomes the number of groups left."""
    if edit.memo is not None and edit.changed(edit.memo):
        edit.set_attribute("group", edit.left(edit.memo))


def _grouped(site: Site, axis: Axis, groups: Size, what: str) -> list[Axis]:
    """The groups and the channels of each; both stay where another grouping of the same channels is in the way."""
    each = quotient(axis.size, groups)
    if each is None:
        raise CannotFollowError(f"{what} are not a multiple of group={groups}")
    found = site.space.factored(axis, (groups, each))
    if found is None:
        reason = f"{what} that cannot be seen as {groups} groups"
        return [site.fixed(groups, reason), site.fixed(each, reason)]
    return found


@rule("Conv", fix=mend_group, traits=Trait.CONVOLUTION | Trait.MULTIPLIES, weights=(1, 2))
@rule("FusedConv", fix=mend_group, domain=MS, traits=Trait.CONVOLUTION, shapes=OutputShapes(standard="Conv"))
def conv(site: Site) -> None:
    """Weights (out, in/group, *kernel): input channels are summed; whole groups or equal offsets go together."""
    data, weight = site.axes(0), site.axes(1)
    out = convolved(site, data, weight, site.int_("group", 1))
    site.reduces(0, 1)
    site.reduces(1, 1)
    if site.has(2):
        site.same(out, site.axes(2)[0])
    spatial = [site.fixed(s, SPATIAL) for s in site.out_shape()[2:]]
    site.set([data[0], out, *spatial])
    if site.has(3):  # FusedConv adds a residual before its activation
        for a, b in zip(site.axes(3), [data[0], out, *spatial], strict=True):
            site.same(a, b)
    site.multiplies(data[0], out, *spatial, *weight[1:])


def convolved(site: Site, data: list[Axis], weight: list[Axis], groups: Size) -> Axis:
    """The output channels of a convolution, whose input and weights (out, in/group, *kernel) are related.

    As many groups as samples are a convolution with weights of its own for each sample.
    """
    site.pin_kernel(weight[2:])
    site.pin(data[2:], SPATIAL)
    if groups == 1:
        site.same(data[1], weight[1])
        return weight[0]
    group, inner = _grouped(site, data[1], groups, "input channels")
    site.same(inner, weight[1])
    site.space.unify(_grouped(site, weight[0], groups, "output channels")[0], group)
    site.remember(group)
    return weight[0]


@rule("ConvTranspose", fix=mend_group, traits=Trait.CONVOLUTION | Trait.MULTIPLIES, weights=(1, 2))
def conv_transpose(site: Site) -> None:
    """Weights (in, out/group, *kernel): input channels are summed; groups go as in Conv."""
    data, weight = site.axes(0), site.axes(1)
    out = deconvolved(site, data, weight, site.int_("group", 1))
    site.reduces(0, 1)
    site.reduces(1, 0)
    if site.has(2):
        site.same(out, site.axes(2)[0])
    site.set([data[0], out, *(site.fixed(s, SPATIAL) for s in site.out_shape()[2:])])
    site.multiplies(*data, *weight[1:])


def deconvolved(site: Site, data: list[Axis], weight: list[Axis], groups: Size) -> Axis:
    """The output channels of a transposed convolution with weights (in, out/group, *kernel)."""
    site.pin_kernel(weight[2:])
    site.pin(data[2:], SPATIAL)
    site.same(data[1], weight[0])
    if groups == 1:
        return weight[1]
    group, _ = _grouped(site, weight[0], groups, "input channels")
    site.remember(group)
    return mul((group, weight[1]))


@rule("MatMul", traits=Trait.PRODUCT | Trait.MULTIPLIES, weights=(0, 1))
def matmul(site: Site) -> None:
    """(..., m, k) by (..., k, n): k is summed. Between two activations the batch axes are heads."""
    a, b = list(site.axes(0)), list(site.axes(1))
    matrix_product(site, a, b)


@rule("FusedMatMul TransposeMatMul", domain=MS, traits=Trait.PRODUCT | Trait.MULTIPLIES, shapes=FUSED_MATMUL)
def fused_matmul(site: Site) -> None:
    """A matrix product after optional transposes of its last two axes, or of the first behind the batch."""
    orders = [_order(site, operand, side) for operand, side in enumerate("AB")]
    a, b = ([site.axes(i)[p] for p in order] for i, order in enumerate(orders))
    matrix_product(site, a, b, (orders[0][-1], orders[1][-2] if len(b) > 1 else 0))


def _order(site: Site, operand: int, side: str) -> list[int]:
    """The positions of an operand's axes as (…, m, k) or (…, k, n)."""
    order = list(range(site.rank(operand)))
    if site.int_(f"transBatch{side}"):
        order = [*order[1:-1], 0, order[-1]]
    if site.int_(f"trans{side}") and len(order) > 1:
        order[-2:] = order[-1], order[-2]
    return order


def matrix_product(site: Site, a: list[Axis], b: list[Axis], summed: tuple[int, int] = (-1, -2)) -> None:
    """Relate the axes of a product whose operands are already (…, m, k) and (…, k, n)."""
    k_a, k_b = a[-1], b[-2] if len(b) > 1 else b[-1]
    if k_a.size != 1 or k_b.size != 1:
        site.space.unify(k_a, k_b)
    site.reduces(0, summed[0])
    site.reduces(1, summed[1] if len(b) > 1 else -1)
    m, n = a[-2:-1], b[-1:] if len(b) > 1 else []
    batch = broadcast(site, [a[:-2], b[:-2]])
    if not (site.is_weight(0) or site.is_weight(1)):
        for axis in batch:
            site.space.mark(axis, "head")
        for axis in (*m, k_a, *n):
            site.space.mark(axis, "head_dim")
    site.set([*batch, *m, *n])
    site.multiplies(*batch, *m, k_a, *n)


@rule("Gemm", traits=Trait.PRODUCT | Trait.MULTIPLIES, weights=(1, 2))
def gemm(site: Site) -> None:
    """A (m, k) by B (k, n), either transposed, plus C."""
    a, b = site.axes(0), site.axes(1)
    swap_a, swap_b = site.int_("transA"), site.int_("transB")
    m, k = (a[1], a[0]) if swap_a else (a[0], a[1])
    k_b, n = (b[1], b[0]) if swap_b else (b[0], b[1])
    site.space.unify(k, k_b)
    site.reduces(0, 0 if swap_a else 1)
    site.reduces(1, 1 if swap_b else 0)
    result = [m, n]
    if site.has(2):
        result = broadcast(site, [result, site.axes(2)])
    site.set(result)
    site.multiplies(m, k, n)


@rule("Einsum", traits=Trait.PRODUCT | Trait.MULTIPLIES)
def einsum(site: Site) -> None:
    """The equation is an attribute."""
    follow_equation(site, site.string("equation"))


def follow_equation(site: Site, equation: str) -> None:
    """Letters are axes; those missing on the right are summed, and an ellipsis stands for any batch axes."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = sorted(set(left) - {",", "."})
        right = ("..." if "." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    terms = left.split(",")
    held = [max(site.rank(i) - len(t.replace("...", "")), 0) if "." in t else 0 for i, t in enumerate(terms)]
    batch = "".join(map(chr, range(ord("0"), ord("0") + max(held))))
    spelt = [t.replace("...", batch[len(batch) - n :]) for t, n in zip(terms, held, strict=True)]
    _relate_letters(site, spelt, right.replace("...", batch))


def _relate_letters(site: Site, terms: list[str], right: str) -> None:
    """The axes of an einsum whose operands are `terms` and whose result is `right`."""
    bound: dict[str, Axis] = {}
    for operand, term in enumerate(terms):
        if len(set(term)) != len(term):
            raise CannotFollowError("a diagonal is not followed")
        for letter, axis in zip(term, site.axes(operand), strict=True):
            bound[letter] = site.same(bound[letter], axis) if letter in bound else axis
        summed = [i for i, letter in enumerate(term) if letter not in right]
        if summed:
            site.reduces(operand, summed)
    if len(terms) > 1 and not any(site.is_weight(i) for i in range(len(terms))):
        for letter, axis in bound.items():
            shared = all(letter in term for term in terms) and letter in right
            site.space.mark(axis, "head" if shared else "head_dim")
    site.set([bound[letter] for letter in right])
    site.multiplies(*bound.values())

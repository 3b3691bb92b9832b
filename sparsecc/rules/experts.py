"""Mixture of experts as one operator: stacked weights, and a router whose slots are the experts.

Experts are chosen inside the operator from the router's scores, so an expert that is gone is one whose score
is minus infinity. Where experts are chosen by nodes of their own (Softmax, TopK, Gather), those nodes' rules
relate them (`sparsecc/graph/slot_indices.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecc.axes.algebra import Axis
from sparsecc.axes.sizes import at, quotient
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import SAME
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import rule
from sparsecc.rules.traits import Trait

MS = "com.microsoft"


@dataclass(frozen=True)
class Experts:
    """The axes of one mixture: its experts and the width between their two layers."""

    experts: Axis
    inner: Axis


def mend_choice(edit: Edit) -> None:
    """No more experts are chosen than are left."""
    experts: Experts = edit.memo
    chosen = edit.node.attributes.get_int("k", 1)
    if edit.changed(experts.experts) and chosen > edit.left(experts.experts):
        edit.set_attribute("k", edit.left(experts.experts))


@rule("MoE", fix=mend_choice, domain=MS, traits=Trait.COMPOSITE, shapes=SAME)
def mixture(site: Site) -> None:
    """FC1 (experts, inner, hidden), FC2 (experts, hidden, inner): experts and inner width are two groups."""
    data, router, first, second = (site.axes(i) for i in (0, 1, 2, 4))
    hidden, experts, inner = data[-1], first[0], second[2]
    if len(first) != 3 or first[2].size != hidden.size or second[1].size != hidden.size:
        raise CannotFollowError("its weights are not (experts, inner, hidden) and (experts, hidden, inner)")
    site.space.unify(hidden, first[2])
    site.space.unify(hidden, second[1])
    for axis in (router[1], second[0]):
        site.space.unify(experts, axis)
    gated = _gate(site, first[1], inner)
    for operand, inside in ((3, first[1]), (5, hidden), (7, gated)):
        _bias(site, operand, experts, inside)
    if site.has(6):
        third = site.axes(6)
        for a, b in zip(third, (experts, gated, hidden), strict=True):
            site.space.unify(a, b)
    _choose(site, experts, inner)
    site.reduces(4, 2)
    site.set(data)
    site.multiplies(*data[:-1], *first[1:])
    site.multiplies(*data[:-1], *second[1:])


def _bias(site: Site, operand: int, experts: Axis, out: Axis) -> None:
    """That of a layer of all experts (experts, outputs), where there is one."""
    if site.has(operand):
        bias = site.axes(operand)
        site.same(experts, bias[0])
        site.same(out, bias[1])


def _choose(site: Site, experts: Axis, inner: Axis) -> None:
    """Tokens (…, hidden) take the experts whose scores (tokens, experts) are largest."""
    if site.int_("use_sparse_mixer"):
        site.pin(experts, "experts are chosen by comparing their scores: the experts")
    site.space.mark(experts, "expert")
    site.remember(Experts(experts, inner))
    site.reduces(0, -1)
    site.reduces(1, 1, "max")


def _gate(site: Site, width: Axis, inner: Axis) -> Axis:
    """FC1's outputs are the inner width, or twice it where a gate is fused into it."""
    fusion = site.int_("swiglu_fusion")
    if width.size == inner.size:
        site.space.unify(width, inner)
        return inner
    factors = (inner.size, 2) if fusion == 1 else (2, inner.size)
    found = site.space.factored(width, factors)
    if found is None:
        raise CannotFollowError("its first layer is not one or two times the inner width")
    pair, slots = (found[1], found[0]) if fusion == 1 else (found[0], found[1])
    site.pin(pair, "gate and value")
    site.same(slots, inner)
    return inner


@rule("QMoE", fix=mend_choice, domain=MS, traits=Trait.COMPOSITE | Trait.INTEGER, shapes=SAME)
def packed_mixture(site: Site) -> None:
    """As MoE, of packed weights: experts go one by one, hidden and inner slots in whole blocks that share a scale.

    FC1 (experts, inner, packed hidden), FC2 (experts, hidden, packed inner). Under one scale a row these slots stay.
    """
    if site.node.attributes.get_string("quant_type", "int") != "int":
        raise CannotFollowError("its experts are in blocks of small floats")
    widths = [site.int_(f"fc{n}_expert_weight_bits", 0) or site.int_("expert_weight_bits", 4) for n in (1, 2)]
    if site.int_("block_size") and 8 in widths:
        raise CannotFollowError("its kernel rounds what meets blocks of 8-bit numbers")
    data, first, second = (site.axes(i) for i in (0, 2, 5))
    hidden, experts, rows = data[-1], first[0], first[1]
    if len(first) != 3 or second[1].size != hidden.size:
        raise CannotFollowError("its weights are not (experts, inner, hidden) and (experts, hidden, inner)")
    site.space.unify(hidden, second[1])
    inner = _inner(site, rows, at(second[2].size, 0) * 8 // widths[1])
    layers = [(2, rows, hidden), (5, hidden, inner)] + [(8, inner, hidden)] * site.has(8)
    for number, (operand, out, packed) in enumerate(layers):
        weight = site.axes(operand)
        site.same(experts, weight[0])
        site.same(out, weight[1])
        _blocks(site, operand, 11 + number, packed)
        _bias(site, operand + 2, experts, out)
    for operand in (1, 14):
        if site.has(operand):
            site.same(experts, site.axes(operand)[1])
    _choose(site, experts, inner)
    if len(site.axes(6)) == 3:
        site.reduces(6, 2)  # a scale of zero is a block of zeros
    site.set(data)
    site.multiplies(*data[:-1], rows, hidden)
    site.multiplies(*data[:-1], hidden, inner)


def _inner(site: Site, rows: Axis, size: int) -> Axis:
    """The inner width, of so many slots: FC1's rows, or half of them."""
    if size == rows.size:
        return rows
    is_interleaved = site.int_("swiglu_fusion") == 1
    found = site.space.factored(rows, (size, 2) if is_interleaved else (2, size))
    if found is None:
        raise CannotFollowError("its first layer is not one or two times the inner width")
    slots, pair = found if is_interleaved else found[::-1]
    site.pin(pair, "gate and value")
    return slots


def _blocks(site: Site, operand: int, zeros: int, axis: Axis) -> None:
    """Relate an axis with its slots as a weight packs them, and with a scale and a zero point for each block of them;
    the operand behind a weight is its scales, `zeros` its zero points."""
    weight, scales = site.axes(operand), site.axes(operand + 1)
    for a, b in zip(scales, weight[:2], strict=False):
        site.same(a, b)
    width, number = site.int_("block_size"), scales[2].size if len(scales) == 3 else None
    parts = bytes_ = None
    if width and number is not None:
        parts = site.space.factored(axis, (number, width))
        packed = quotient(weight[2].size, number)
        bytes_ = site.space.factored(weight[2], (number, packed)) if packed is not None else None
    if parts is None or bytes_ is None:
        why = "slots packed under one scale"
        site.pin([axis, *weight[2:], *scales[2:], *(site.axes(zeros)[1:] if site.has(zeros) else ())], why)
    else:
        for blocks in (parts[0], bytes_[0]):
            site.same(scales[2], blocks)
        site.pin(parts[1], f"the inside of a packed block of {width} slots")
        site.pin(bytes_[1], "the packed bytes of a block")
    if not site.has(zeros):
        return
    zero = site.axes(zeros)
    site.same(weight[0], zero[0])
    if len(zero) == 3:
        site.same(weight[1], zero[1])
    site.pin([zero[-1], weight[1] if len(zero) == 2 else scales[-1]], "zero points that share a byte")

"""Mixture of experts as one operator: stacked weights, and a router whose slots are the experts.

Experts are chosen inside the operator from the router's scores, so an expert that is gone is one whose score
is minus infinity. Where experts are chosen by nodes of their own (Softmax, TopK, Gather), those nodes' rules
relate them (`sparsecc/graph/slot_indices.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecc.axes.algebra import Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import SAME
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import pinned, rule
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
        if site.has(operand):
            bias = site.axes(operand)
            site.same(experts, bias[0])
            site.same(inside, bias[1])
    if site.has(6):
        third = site.axes(6)
        for a, b in zip(third, (experts, gated, hidden), strict=True):
            site.space.unify(a, b)
    if site.int_("use_sparse_mixer"):
        site.pin(experts, "experts are chosen by comparing their scores: the experts")
    site.space.mark(experts, "expert")
    site.remember(Experts(experts, inner))
    site.reduces(0, -1)
    site.reduces(1, 1, "max")
    site.reduces(4, 2)
    site.set(data)
    site.multiplies(*data[:-1], *first[1:])
    site.multiplies(*data[:-1], *second[1:])


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


pinned(
    "QMoE",
    "its experts are packed in blocks of 4-bit numbers",
    domain=MS,
    traits=Trait.COMPOSITE | Trait.INTEGER,
    shapes=SAME,
)

"""Attention as one operator: heads are one group, the width of Q and K a second, that of V a third.

Where the scale of the scores follows from the head width, it is written down before the width changes: it
stays 1/sqrt of the dense width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, cat, mul
from sparsecc.axes.sizes import quotient
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import SAME, linear_attention_state, packed_attention
from sparsecc.rules.site import CannotFollowError, Site, broadcast, in_groups
from sparsecc.rules.table import pinned, rule
from sparsecc.rules.traits import Trait
from sparsecc.shapes.contrib_ops import OutputShapes

MS = "com.microsoft"
UNFOLLOWED = "a form of attention that is not followed"


@dataclass(frozen=True)
class Heads:
    """The axes of one attention: heads of the queries and of keys and values, and their widths."""

    query: Axis
    key: Axis
    width: Axis
    value: Axis


def relate_heads(site: Site, query: Axis, key: Axis) -> None:
    """Each key/value head serves a run of consecutive query heads."""
    repeat = quotient(query.size, key.size)
    if repeat is None:
        raise CannotFollowError("query heads are not a multiple of key heads")
    site.space.unify(query, mul((key, Atom(repeat))))


def attend(site: Site, heads: Heads, batch: Axis, queries: Axis, keys: Axis) -> None:
    """What every form of attention has in common: what is pinned, what the slots are, what it costs."""
    relate_heads(site, heads.query, heads.key)
    site.pin(keys, "scores are normalised by Softmax over the keys: the axis")
    for axis in (heads.query, heads.key):
        site.space.mark(axis, "head")
    for axis in (heads.width, heads.value):
        site.space.mark(axis, "head_dim")
    site.multiplies(batch, heads.query, queries, heads.width, keys)
    site.multiplies(batch, heads.query, queries, keys, heads.value)
    site.remember(heads)


def add_mask(site: Site, operand: int, scores: Sequence[Axis]) -> None:
    """A mask or bias broadcasts to (batch, heads, queries, keys)."""
    if not site.has(operand):
        return
    mask = list(site.axes(operand))
    if mask and mask[-1].size != scores[-1].size:
        site.pin(mask[-1], "a mask over the keys")
        mask[-1] = Atom(1)
    broadcast(site, [scores, mask])


def join_cache(site: Site, operand: int, cache: Sequence[Axis]) -> None:
    """A cache (batch, heads, past, width) has the heads and the width of what is put into it."""
    if not site.has(operand):
        return
    own = site.axes(operand)
    for i in (0, 1, 3):
        site.same(own[i], cache[i])
    site.pin(own[2], "the cached positions")


def give(site: Site, output: int, axes: Sequence[Axis]) -> None:
    """Set an output that may be left out."""
    if output < site.outputs() and site.node.outputs[output].name:
        pairs = zip(axes, site.out_shape(output), strict=True)
        site.set([a if a.size == size else site.fixed(size, "positions") for a, size in pairs], output)


def mend_heads(edit: Edit) -> None:
    """The numbers of heads follow, and the scale stays that of the dense width."""
    heads: Heads = edit.memo
    for name, axis in (("num_heads", heads.query), ("q_num_heads", heads.query), ("kv_num_heads", heads.key)):
        if name in edit.node.attributes and edit.changed(axis):
            edit.set_attribute(name, edit.left(axis))
    keep_scale(edit, heads.width)


def keep_scale(edit: Edit, width: Axis) -> None:
    """Write down the scale of the dense head width where the operator would derive it from the new one."""
    if edit.changed(width) and not edit.node.attributes.get_float("scale", 0.0):
        assert isinstance(width.size, int)
        edit.node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(width.size))


@rule("Attention", fix=mend_heads, traits=Trait.COMPOSITE, caches={4: 1, 5: 2})
def attention(site: Site) -> None:
    """Q, K, V of (batch, heads, length, width), or flat; a key head may serve several query heads."""
    query, key, value = (list(site.axes(i)) for i in range(3))
    packed = len(query) == 3
    if packed:
        query = unpacked(site, query, site.int_("q_num_heads"))
        key = unpacked(site, key, site.int_("kv_num_heads"))
        value = unpacked(site, value, site.int_("kv_num_heads"))
    site.space.unify(query[3], key[3])
    site.reduces(0, 2 if packed else 3)
    for axes in (key, value):
        site.same(query[0], axes[0])
    for i in (1, 2):
        site.same(key[i], value[i])
    heads = Heads(query[1], key[1], key[3], value[3])
    total = key[2]
    if site.has(4):
        total = site.fixed(_total(site, key), "the keys")
    attend(site, heads, query[0], query[2], total)
    site.pin(key[2], "the keys")
    scores = [query[0], query[1], query[2], total]
    add_mask(site, 3, scores)
    join_cache(site, 4, key)
    join_cache(site, 5, value)
    whole = [query[0], query[2], mul((query[1], value[3]))] if packed else [*query[:3], value[3]]
    for output, axes in enumerate((whole, key, value, scores)):
        give(site, output, axes)


def _total(site: Site, key: Sequence[Axis]) -> int | tuple[int, ...]:
    if site.outputs() > 1 and site.node.outputs[1].name:
        return site.out_shape(1)[2]
    past, new = site.shape(4)[2], key[2].size
    return cat([Atom(past), Atom(new)]).size


def unpacked(site: Site, axes: Sequence[Axis], heads: int) -> list[Axis]:
    """(batch, length, heads*width) as (batch, heads, length, width)."""
    if len(axes) == 4:
        return list(axes)
    if heads < 1:
        raise CannotFollowError("it does not say how many heads it has")
    head, width = in_groups(site, axes[2], heads, "an axis of heads")
    return [axes[0], head, axes[1], width]


@rule("LinearAttention", fix=mend_heads, traits=Trait.COMPOSITE)
@rule(
    "LinearAttention",
    fix=mend_heads,
    domain=MS,
    traits=Trait.COMPOSITE,
    shapes=OutputShapes(linear_attention_state),
)
def linear_attention(site: Site) -> None:
    """A recurrent state (width of K, width of V) per key head, read by a run of query heads."""
    count, groups = site.int_("q_num_heads"), site.int_("kv_num_heads")
    query, key, value = (unpacked(site, site.axes(i), n) for i, n in ((0, count), (1, groups), (2, groups)))
    site.space.unify(query[3], key[3])
    site.space.unify(key[1], value[1])
    site.reduces(0, 2)
    site.reduces(1, 2)
    heads = Heads(query[1], key[1], key[3], value[3])
    attend(site, heads, query[0], query[2], key[2])
    if site.has(3):
        for a, b in zip(site.axes(3), (query[0], key[1], key[3], value[3]), strict=True):
            site.same(a, b)
    for operand in (4, 5):
        if site.has(operand):
            own = site.axes(operand)[2]
            site.same(key[1] if own.size == key[1].size else mul((key[1], key[3])), own)
    give(site, 0, [query[0], query[2], mul((query[1], value[3]))])
    give(site, 1, [query[0], key[1], key[3], value[3]])


pinned(
    """DecoderAttention LongformerAttention PagedAttention PackedMultiHeadAttention SparseAttention
    SparsePagedAttention SparseAttentionIndexer PackedSparseAttentionIndexer DynamicSparseAttention
    MRotaryEmbedding LinearAttentionGate GatedDeltaNet""",
    UNFOLLOWED,
    domain=MS,
)
pinned("DecoderMaskedSelfAttention PackedAttention", UNFOLLOWED, domain=MS, shapes=packed_attention(past=4))
pinned(
    "QOrderedAttention QOrderedLongformerAttention",
    UNFOLLOWED,
    domain=MS,
    traits=Trait.COMPOSITE | Trait.INTEGER,
)
pinned("GemmaRotaryEmbedding", UNFOLLOWED, domain=MS, shapes=SAME)
pinned("GatedRelativePositionBias RelativePositionBias", "a position bias that is not followed", domain=MS)
pinned("FlexAttention", "its body is not followed", domain="ai.onnx.preview")

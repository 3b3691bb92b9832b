"""Attention as ONNX Runtime fuses it: with projections, biases, packings, caches and rotation inside."""

from __future__ import annotations

from collections.abc import Sequence

from sparsecc.axes.algebra import Atom, Axis, cat, mul
from sparsecc.axes.sizes import quotient
from sparsecc.rules.attention import (
    MS,
    Heads,
    add_mask,
    attend,
    give,
    join_cache,
    mend_heads,
    unpacked,
)
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import grouped_attention, packed_attention, split_attention
from sparsecc.rules.rotary import rotate
from sparsecc.rules.site import CannotFollowError, Site, in_groups
from sparsecc.rules.table import rule
from sparsecc.rules.traits import Trait
from sparsecc.shapes.contrib_ops import OutputShapes


def mend_fused(edit: Edit) -> None:
    """Heads and hidden sizes follow, and the scale stays that of the dense width."""
    mend_heads(edit)
    heads: Heads = edit.memo
    sizes = [edit.left(mul((heads.query, w))) for w in (heads.width, heads.width, heads.value)]
    if "qkv_hidden_sizes" in edit.node.attributes or len(set(sizes)) > 1:
        edit.set_attribute("qkv_hidden_sizes", sizes)


@rule(
    "Attention",
    fix=mend_fused,
    domain=MS,
    traits=Trait.COMPOSITE,
    shapes=packed_attention(past=4),
    caches={4: 1},
)
def fused_attention(site: Site) -> None:
    """Input times weights (in, q+k+v), then attention."""
    _self_attention(site, past=4, bias_operand=5)


@rule(
    "QAttention",
    fix=mend_heads,
    domain=MS,
    traits=Trait.COMPOSITE | Trait.INTEGER,
    shapes=packed_attention(past=8, dtype=3),
    caches={8: 1},
)
def quantized_attention(site: Site) -> None:
    """Quantized input times weights (in, q+k+v), then attention in float."""
    heads = _self_attention(site, past=8, bias_operand=-1, zero=6)
    site.space.unify(heads.width, heads.value)
    for operand in (4, 7):
        if site.has(operand) and site.shape(operand) not in ((), (1,)):
            site.space.unify(site.axes(operand)[0], site.axes(1)[1])


def _self_attention(site: Site, past: int, bias_operand: int, zero: int | None = None) -> Heads:
    data, weight = site.axes(0), site.axes(1)
    count = site.int_("num_heads")
    size = weight[1].size
    if not isinstance(size, int) or site.int_("do_rotary") or site.int_("past_present_share_buffer"):
        raise CannotFollowError("a rotation or a shared cache inside it is not followed")
    sizes = site.ints("qkv_hidden_sizes") or [size // 3] * 3
    pieces = site.space.pieces(weight[1], sizes)
    if pieces is None or count < 1:
        raise CannotFollowError(f"its weights cannot be cut into {sizes}")
    (head, width), (key, key_width), (value, value_width) = (
        in_groups(site, p, count, "an axis of heads") for p in pieces
    )
    site.space.unify(head, key)
    site.space.unify(head, value)
    site.space.unify(width, key_width)
    site.space.unify(data[2], weight[0])
    site.reduces(0, 2, fill=zero)
    site.reduces(1, 1, fill=None if zero is None else zero + 1)  # scores sum over the width of Q and K
    if site.has(2):
        site.space.unify(weight[1], site.axes(2)[0])
        site.reduces(2, 0)
    heads = Heads(head, head, width, value_width)
    total = data[1]
    if site.has(past):
        _joint_cache(site, past, data[0], heads)
        total = site.fixed(cat([Atom(site.shape(past)[3]), Atom(data[1].size)]).size, "the keys")
    attend(site, heads, data[0], data[1], total)
    site.pin(data[1], "the keys")
    if bias_operand >= 0:
        add_mask(site, bias_operand, [data[0], head, data[1], total])
    site.multiplies(*data, weight[1])
    site.set([data[0], data[1], mul((head, value_width))])
    if site.outputs() > 1 and site.node.outputs[1].name:
        site.space.unify(width, value_width)
        give(site, 1, [site.fixed(2, "keys and values"), data[0], head, total, width])
    return heads


def _joint_cache(site: Site, operand: int, batch: Axis, heads: Heads) -> None:
    """One cache (2, batch, heads, past, width) for keys and values."""
    own = site.axes(operand)
    site.pin([own[0], own[3]], "the cached positions")
    site.same(own[1], batch)
    site.same(own[2], heads.query)
    site.space.unify(heads.width, heads.value)
    site.same(own[4], heads.width)


@rule(
    "MultiHeadAttention",
    fix=mend_heads,
    domain=MS,
    traits=Trait.COMPOSITE,
    shapes=split_attention(past=6),
    caches={6: 1, 7: 2},
)
def multi_head_attention(site: Site) -> None:
    """Q, K, V apart or packed, with an optional bias (q+k+v) and caches."""
    _multi_head(site, bias=3, mask=5, past=6)


@rule(
    "DecoderMaskedMultiHeadAttention",
    fix=mend_heads,
    domain=MS,
    traits=Trait.COMPOSITE,
    shapes=split_attention(past=5),
    caches={5: 1, 6: 2},
)
def decoder_attention(site: Site) -> None:
    """One step of a decoder: Q, K, V with an optional bias (q+k+v) and caches."""
    if site.int_("past_present_share_buffer"):
        raise CannotFollowError("a shared cache is not followed")
    _multi_head(site, bias=10, mask=4, past=5)


def _multi_head(site: Site, bias: int, mask: int, past: int) -> None:
    query, key, value = _unfolded(site, site.int_("num_heads"))
    site.space.unify(query[3], key[3])
    for a, b in ((query, key), (query, value)):
        site.space.unify(a[1], b[1])
        site.same(a[0], b[0])
    if site.has(past):
        site.space.unify(key[3], value[3])  # kernels take cached values of no other width
    heads = Heads(query[1], query[1], query[3], value[3])
    total = key[2]
    if site.has(past):
        total = site.fixed(cat([Atom(site.shape(past)[2]), Atom(key[2].size)]).size, "the keys")
    attend(site, heads, query[0], query[2], total)
    site.pin([key[2], value[2]], "the keys")
    if site.has(bias):
        parts = [mul((a[1], a[3])) for a in (query, key, value)]
        site.space.unify(cat(parts), site.axes(bias)[0])
        site.reduces(bias, 0)
    scores = [query[0], query[1], query[2], total]
    add_mask(site, mask, scores)
    join_cache(site, past, key)
    join_cache(site, past + 1, value)
    whole = [query[0], query[2], mul((query[1], value[3]))]
    for output, axes in enumerate((whole, key, value, scores)):
        give(site, output, axes)


def _unfolded(site: Site, count: int) -> tuple[list[Axis], list[Axis], list[Axis]]:
    """Q, K and V as (batch, heads, length, width), from whichever packing the operator was given."""
    query = list(site.axes(0))
    if len(query) == 5:  # (batch, length, heads, 3, width)
        site.pin(query[3], "queries, keys and values")
        site.reduces(0, 4)
        axes = [query[0], query[2], query[1], query[4]]
        return axes, list(axes), list(axes)
    site.reduces(0, 2)
    first = unpacked(site, query, count)
    key = list(site.axes(1))
    if len(key) == 5:  # (batch, length, heads, 2, width)
        site.pin(key[3], "keys and values")
        axes = [key[0], key[2], key[1], key[4]]
        return first, axes, list(axes)
    return first, unpacked(site, key, count), unpacked(site, list(site.axes(2)), count)


@rule(
    "GroupQueryAttention",
    fix=mend_heads,
    domain=MS,
    traits=Trait.COMPOSITE,
    shapes=OutputShapes(grouped_attention),
    caches={3: 1, 4: 2},
)
def group_query_attention(site: Site) -> None:
    """Query heads in runs that share a key head; the rotation couples slots in pairs."""
    count, groups = site.int_("num_heads"), site.int_("kv_num_heads")
    if any(site.has(i) for i in range(12, 16)):
        raise CannotFollowError("a quantized cache or norms inside it are not followed")
    query = list(site.axes(0))
    if site.has(1):
        counts = (count, groups, groups)
        first, key, value = (unpacked(site, site.axes(i), n) for i, n in enumerate(counts))
    else:
        first, key, value = _cut_packed(site, query, count, groups)
    for other in (key, value):
        site.space.unify(first[3], other[3])
    site.space.unify(key[1], value[1])
    site.reduces(0, 2)
    heads = Heads(first[1], key[1], first[3], first[3])
    total = key[2] if not site.has(3) else site.fixed(site.out_shape(1)[2], "the keys")
    attend(site, heads, first[0], first[2], total)
    site.pin(key[2], "the keys")
    _turn(site, first[3])
    add_mask(site, 10, [first[0], first[1], first[2], total])
    if site.has(11):
        site.same(first[1], site.axes(11)[0])
    join_cache(site, 3, key)
    join_cache(site, 4, value)
    give(site, 0, [first[0], first[2], mul((first[1], first[3]))])
    give(site, 1, key)
    give(site, 2, value)


def _turn(site: Site, width: Axis) -> None:
    """The rotation inside, and the widths that its kernels take: multiples of 8, with a rotation of 16."""
    if not site.int_("do_rotary"):
        _in_runs(site, width, 8)
        return
    columns = site.shape(7)[-1]
    if not isinstance(columns, int):
        raise CannotFollowError("the width of its caches is dynamic")
    turn = rotate(site, width, 2 * columns, (7, 8), bool(site.int_("rotary_interleaved")))
    _in_runs(site, turn.pairs, 8)
    if turn.rest is not None:
        _in_runs(site, turn.rest, 16)


def _in_runs(site: Site, axis: Axis, length: int) -> None:
    """Only whole runs of slots may go."""
    runs = quotient(axis.size, length)
    found = site.space.factored(axis, (runs, length)) if runs is not None else None
    site.pin(found[1] if found else axis, f"its kernels take head widths in steps of {length}: a step")


def _cut_packed(
    site: Site, query: Sequence[Axis], count: int, groups: int
) -> tuple[list[Axis], list[Axis], list[Axis]]:
    """(batch, length, q+k+v) as three tensors (batch, heads, length, width)."""
    width = quotient(query[2].size, count + 2 * groups)
    if not isinstance(width, int):
        raise CannotFollowError("its packed axis is not a whole number of heads")
    pieces = site.space.pieces(query[2], [count * width, groups * width, groups * width])
    if pieces is None:
        raise CannotFollowError("its packed axis cannot be cut into queries, keys and values")
    made = [unpacked(site, [*query[:2], p], n) for p, n in zip(pieces, (count, groups, groups), strict=True)]
    return made[0], made[1], made[2]

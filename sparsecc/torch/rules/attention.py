"""Scaled dot product attention as one ATen call."""

from __future__ import annotations

import math

from sparsecc.axes.algebra import Axis
from sparsecc.rules.attention import relate_heads
from sparsecc.rules.site import CannotFollowError, broadcast
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten


def keep_scale(edit: AtenEdit) -> None:
    """The default scale comes from the width of a head: it stays that of the dense model."""
    width = edit.memo
    if edit.given.get("scale") is None and edit.changed(width):
        edit.set("scale", 1 / math.sqrt(width.size))


@aten("scaled_dot_product_attention", fix=keep_scale)
def attention(site: AtenSite) -> None:
    """q (…, l, e), k (…, s, e), v (…, s, f): e and s are summed, the axes before are heads."""
    query, key, value = site.of("query"), site.of("key"), site.of("value")
    if not isinstance(query[-1].size, int):
        raise CannotFollowError("the width of its heads is dynamic")
    site.space.unify(query[-1], key[-1])
    site.space.unify(key[-2], value[-2])
    site.pin(key[-2], "attention is normalised over the keys: the axis")
    if site.arg("enable_gqa"):
        key, value = _repeated(site, query, key), _repeated(site, query, value)
    batch = broadcast(site, [query[:-2], key[:-2], value[:-2]])
    if site.holds("attn_mask"):
        broadcast(site, [[*batch, query[-2], key[-2]], site.of("attn_mask")])
    for axis in batch:
        site.space.mark(axis, "head")
    for axis in (query[-1], value[-1]):
        site.space.mark(axis, "head_dim")
    for name in ("query", "key"):
        site.reduces(site.number(name), -1)
    site.remember(query[-1])
    site.set([*batch, query[-2], value[-1]])
    site.multiplies(*batch, query[-2], key[-2], query[-1])
    site.multiplies(*batch, query[-2], key[-2], value[-1])


def _repeated(site: AtenSite, query: list[Axis], other: list[Axis]) -> list[Axis]:
    """Grouped queries: each head of the keys serves several heads of the queries."""
    relate_heads(site, query[-3], other[-3])
    return [*other[:-3], query[-3], *other[-2:]]

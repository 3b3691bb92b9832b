"""Rotary embedding: slots turn in pairs, and each pair has a column of the cosine and sine caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsecc.axes.algebra import Axis
from sparsecc.axes.sizes import quotient
from sparsecc.rules.attention import MS
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import SAME
from sparsecc.rules.site import CannotFollowError, Site, in_groups
from sparsecc.rules.table import rule


@dataclass(frozen=True)
class Turn:
    """A head width that is rotated: the part that turns, its pairs, and the part that does not, if any."""

    rotated: Axis
    pairs: Axis
    rest: Axis | None


@dataclass(frozen=True)
class Rotation:
    """The axes of one rotary embedding."""

    heads: Axis | None
    rotated: Axis


def mend_rotation(edit: Edit) -> None:
    """The number of heads and the rotated width follow."""
    rotation: Rotation = edit.memo
    partial = edit.node.attributes.get_int("rotary_embedding_dim", 0)
    if partial and edit.changed(rotation.rotated):
        edit.set_attribute("rotary_embedding_dim", edit.left(rotation.rotated))
    heads, given = rotation.heads, edit.node.attributes.get_int("num_heads", 0)
    if given and heads is not None and edit.changed(heads):
        edit.set_attribute("num_heads", edit.left(heads))


def rotate(site: Site, width: Axis, rotated: int, caches: Sequence[int], interleaved: bool) -> Turn:
    """Slots turn in pairs, i with i+half or 2i with 2i+1; each pair has a column of the caches."""
    size = width.size
    if not isinstance(size, int) or rotated % 2 or rotated > size:
        raise CannotFollowError("its head width is not known to be made of pairs")
    turned, rest = width, None
    if rotated != size:
        halves = site.space.cut(width, rotated)
        if halves is None:
            raise CannotFollowError("the rotated part cannot be cut off")
        turned, rest = halves
    found = site.space.factored(turned, (rotated // 2, 2) if interleaved else (2, rotated // 2))
    if found is None:
        raise CannotFollowError("its head width cannot be seen as pairs")
    pair, columns = (found[1], found[0]) if interleaved else (found[0], found[1])
    site.pin(pair, "the two slots of a rotated pair")
    for operand in caches:
        if site.has(operand):
            axes = site.axes(operand)
            site.same(columns, axes[-1])
            site.pin(axes[:-1], "the positions of a rotation")
    return Turn(turned, columns, rest)


@rule("RotaryEmbedding", fix=mend_rotation)
def rotary_embedding(site: Site) -> None:
    """Pairs of slots turn together, each with its column of the caches."""
    _rotary(site, caches=(1, 2))


@rule("RotaryEmbedding", fix=mend_rotation, domain=MS, shapes=SAME)
def rotary_embedding_ms(site: Site) -> None:
    """Pairs of slots turn together, each with its column of the caches."""
    _rotary(site, caches=(2, 3))


def _rotary(site: Site, caches: tuple[int, int]) -> None:
    data = site.axes(0)
    columns = site.shape(caches[0])[-1]
    if not isinstance(columns, int):
        raise CannotFollowError("the width of its caches is dynamic")
    heads, width = None, data[-1]
    if len(data) == 3:
        count = site.int_("num_heads")
        given = count or quotient(width.size, 2 * columns)
        if not isinstance(given, int):
            raise CannotFollowError("it does not say how many heads it has")
        heads, width = in_groups(site, width, given, "an axis of heads")
    rotated = site.int_("rotary_embedding_dim") or width.size
    if not isinstance(rotated, int):
        raise CannotFollowError("its head width is dynamic")
    turn = rotate(site, width, rotated, caches, bool(site.int_("interleaved")))
    site.remember(Rotation(heads, turn.rotated))
    site.set(data)

"""ATen operators that rearrange slots: views, permutations, joins and repeats."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsecc.axes.algebra import Atom, Axis, cat, mul
from sparsecc.axes.sizes import quotient
from sparsecc.rules import Trait
from sparsecc.rules.select import turned
from sparsecc.rules.shape import copies_of, follow_repeats, joined, reshaped
from sparsecc.rules.site import CannotFollowError, broadcast, in_groups
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten


def mend_view(edit: AtenEdit) -> None:
    """The target sizes follow the axes of the output."""
    name = "shape" if "shape" in edit.given else "size"
    edit.set_sizes(name, edit.out_axes())


@aten("view reshape _unsafe_view _reshape_alias", fix=mend_view, traits=Trait.MOVES)
def view(site: AtenSite) -> None:
    """Row-major: a run of axes is the product of the run it becomes."""
    site.set(reshaped(site, site.axes(0), site.out_shape()))


@aten("flatten ravel", traits=Trait.MOVES)
def flatten(site: AtenSite) -> None:
    """A run of axes becomes their product."""
    site.set(reshaped(site, site.axes(0), site.out_shape()))


def mend_unflatten(edit: AtenEdit) -> None:
    """The sizes follow the axes that one axis became."""
    position = edit.memo
    count = len(edit.given["sizes"])
    edit.set_sizes("sizes", edit.out_axes()[position : position + count])


@aten("unflatten", fix=mend_unflatten, traits=Trait.MOVES)
def unflatten(site: AtenSite) -> None:
    """One axis becomes a run of axes."""
    site.remember(site.dim())
    site.set(reshaped(site, site.axes(0), site.out_shape()))


def mend_expand(edit: AtenEdit) -> None:
    """The target sizes follow the axes of the output."""
    edit.set_sizes("size", edit.out_axes())


@aten("expand", fix=mend_expand, traits=Trait.MOVES)
def expand(site: AtenSite) -> None:
    """Axes of size 1 are repeated: fresh slots, free until something else says more."""
    repeated: list[Axis] = [Atom(size) for size in site.out_shape()]
    site.set(broadcast(site, [site.axes(0), repeated]))


@aten("expand_as broadcast_to", traits=Trait.MOVES)
def expand_as(site: AtenSite) -> None:
    """Axes of size 1 are repeated as often as another operand says."""
    site.set(broadcast(site, site.everything()))


@aten("transpose swapaxes swapdims", traits=Trait.MOVES)
def transpose(site: AtenSite) -> None:
    """Two axes change places."""
    axes = list(site.axes(0))
    rank = len(axes)
    names = ("dim0", "dim1") if "dim0" in site.given else ("axis0", "axis1")
    i, j = (site.dim(name, rank) for name in names)
    axes[i], axes[j] = axes[j], axes[i]
    site.set(axes)


@aten("t numpy_T mT adjoint", traits=Trait.MOVES)
def last_two(site: AtenSite) -> None:
    """The last two axes change places."""
    axes = list(site.axes(0))
    site.set([*axes[:-2], *axes[-2:][::-1]])


@aten("permute", traits=Trait.MOVES)
def permute(site: AtenSite) -> None:
    """The axes in another order."""
    axes = site.axes(0)
    site.set([axes[int(i)] for i in site.arg("dims")])


@aten("movedim moveaxis", traits=Trait.MOVES)
def movedim(site: AtenSite) -> None:
    """Axes taken out and put in elsewhere."""
    axes = site.axes(0)
    rank = len(axes)
    source, goal = site.arg("source"), site.arg("destination")
    sources = [s % rank for s in (source if isinstance(source, list | tuple) else [source])]
    goals = [g % rank for g in (goal if isinstance(goal, list | tuple) else [goal])]
    placed = dict(zip(goals, sources, strict=True))
    rest = iter(i for i in range(rank) if i not in sources)
    site.set([axes[placed[i] if i in placed else next(rest)] for i in range(rank)])


@aten("squeeze", traits=Trait.MOVES)
def squeeze(site: AtenSite) -> None:
    """Axes of size 1 vanish."""
    axes = site.axes(0)
    chosen = site.dims("dim", len(axes)) if "dim" in site.given else range(len(axes))
    site.set([a for i, a in enumerate(axes) if i not in chosen or a.size != 1])


@aten("unsqueeze", traits=Trait.MOVES)
def unsqueeze(site: AtenSite) -> None:
    """A new axis of size 1."""
    axes = list(site.axes(0))
    axes.insert(site.dim(rank=len(axes) + 1), Atom(1))
    site.set(axes)


@aten("cat concat concatenate")
def concat(site: AtenSite) -> None:
    """Side by side along one axis; the others are the same."""
    operands = [axes for axes in site.everything() if [a.size for a in axes] != [0]]
    site.set(joined(site, operands, site.nonnegative(site.integer("dim"), len(operands[0]))))


@aten("stack")
def stack(site: AtenSite) -> None:
    """Operands of equal axes along a new one, whose slots stay."""
    result = broadcast(site, site.everything())
    new = Atom(len(site.node.inputs))
    site.pin(new, "the stacked axis")
    result.insert(site.dim(rank=len(result) + 1), new)
    site.set(result)


def mend_repeats(edit: AtenEdit) -> None:
    """The numbers of repeats follow the copies that are left."""
    name = "repeats" if "repeats" in edit.given else "dims"
    edit.set_sizes(name, edit.memo[-len(edit.given[name]) :])


@aten("repeat tile", fix=mend_repeats, traits=Trait.MOVES)
def repeat(site: AtenSite) -> None:
    """Repeats: the product of a fresh axis and the old one."""
    axes = site.axes(0)
    follow_repeats(site, [*(Atom(1) for _ in range(len(site.out_shape()) - len(axes))), *axes])


def mend_interleaved(edit: AtenEdit) -> None:
    """The number of repeats, and the size they come to where it was given, follow the copies that are left."""
    copies, whole = edit.memo
    if edit.changed(copies):
        edit.set("repeats", edit.left(copies))
    if edit.given.get("output_size") is not None and edit.changed(whole):
        edit.set("output_size", edit.left(whole))


@aten("repeat_interleave", fix=mend_interleaved, traits=Trait.MOVES)
def repeat_interleave(site: AtenSite) -> None:
    """Every slot of one axis several times in a row."""
    if site.arg("dim") is None or site.holds("repeats"):
        raise CannotFollowError("its repeats are computed at run time")
    axes, axis = list(site.axes(0)), site.dim()
    copies = copies_of(axes[axis], site.out_shape()[axis])
    axes[axis] = copies if axes[axis].size == 1 else mul((axes[axis], copies))
    site.remember((copies, axes[axis]))
    site.set(axes)


@aten("channel_shuffle", traits=Trait.MOVES)
def channel_shuffle(site: AtenSite) -> None:
    """Channels seen as groups by width, transposed: the groups stay."""
    data, groups = list(site.axes(0)), site.integer("groups", 1)
    outer, inner = in_groups(site, data[1], groups)
    site.pin(outer, "the shuffled groups")
    data[1] = mul((inner, outer))
    site.set(data)


@aten("pixel_shuffle", traits=Trait.MOVES)
def pixel_shuffle(site: AtenSite) -> None:
    """Channels are C*block*block; the blocks stay."""
    data, block = site.axes(0), site.integer("upscale_factor", 1)
    depth = quotient(data[1].size, block * block)
    found = site.space.factored(data[1], (depth, block, block)) if depth is not None else None
    if found is None:
        raise CannotFollowError("its channels cannot be seen as blocks")
    site.pin([*found[1:], *data[2:]], "a block")
    site.set([data[0], found[0], *(site.fixed(s, "a spatial axis") for s in site.out_shape()[2:])])


@aten("pixel_unshuffle", traits=Trait.MOVES)
def pixel_unshuffle(site: AtenSite) -> None:
    """Channels become C*block*block."""
    data, block = site.axes(0), site.integer("downscale_factor", 1)
    site.pin(data[2:], "a spatial axis")
    blocks = [site.fixed(block, "a block") for _ in range(2)]
    spatial = [site.fixed(s, "a spatial axis") for s in site.out_shape()[2:]]
    site.set([data[0], mul((data[1], *blocks)), *spatial])


@aten("flip", traits=Trait.MOVES)
def flip(site: AtenSite) -> None:
    """All slots of some axes backwards; those of an axis without a static size stay."""
    axes = list(site.axes(0))
    for i in site.dims("dims", len(axes)):
        backwards = turned(site, axes[i]) if isinstance(axes[i].size, int) and axes[i].size != 1 else None
        if backwards is None:
            site.pin(axes[i], "slots that change places")
        axes[i] = backwards or axes[i]
    site.set(axes)


@aten("roll", traits=Trait.MOVES)
def moved(site: AtenSite) -> None:
    """Slots change places along some axes, which stay whole."""
    data = site.axes(0)
    site.pin([data[i] for i in site.dims("dims", len(data))], "slots that change places")
    site.set(data)


def mend_pad(edit: AtenEdit) -> None:
    """The amounts of padding follow the padded slots."""
    padded: dict[int, tuple[Axis, Axis]] = edit.memo or {}
    if not any(edit.changed(a) for ends in padded.values() for a in ends):
        return
    new = list(edit.given["pad"])
    rank = len(edit.out_axes())
    for axis, (before, after) in padded.items():
        place = 2 * (rank - 1 - axis)
        new[place], new[place + 1] = edit.left(before), edit.left(after)
    edit.set("pad", new)


@aten("pad constant_pad_nd", fix=mend_pad)
def pad(site: AtenSite) -> None:
    """Constant padding adds fresh slots at the ends; other modes pin what they touch."""
    axes, shape = list(site.axes(0)), site.out_shape()
    amounts = site.sizes("pad")
    constant = site.arg("mode", "constant") == "constant"
    padded: dict[int, tuple[Axis, Axis]] = {}
    for place in range(len(amounts) // 2):
        axis = len(axes) - 1 - place
        before, after = amounts[2 * place], amounts[2 * place + 1]
        if before == after == 0:
            continue
        static = isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0
        if not constant or not static or not isinstance(axes[axis].size, int):
            site.pin(axes[axis], "the padded axis")
            axes[axis] = site.fixed(shape[axis], "the padded axis")
            continue
        padded[axis] = (Atom(before), Atom(after))
        axes[axis] = cat([a for a in (padded[axis][0], axes[axis], padded[axis][1]) if a.size != 0])
    site.remember(padded)
    site.set(axes)


@aten(
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)
def spatial_pad(site: AtenSite) -> None:
    """Space is padded; batch and channels pass."""
    spatial(site, site.axes(0))


@aten(
    """upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d
    upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa grid_sampler
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d lp_pool2d max_pool2d_with_indices
    _adaptive_avg_pool2d fractional_max_pool2d"""
)
def pool(site: AtenSite) -> None:
    """Windows over space; batch and channels pass."""
    for operand in range(1, len(site.node.inputs)):
        site.pin(site.axes(operand), "the points sampled")
    spatial(site, site.axes(0))


def spatial(site: AtenSite, data: Sequence[Axis]) -> None:
    """Axes from 2 on are laid out anew."""
    site.pin(list(data[2:]), "a spatial axis")
    for output in range(site.outputs()):
        fixed = [site.fixed(s, "a spatial axis") for s in site.out_shape(output)[2:]]
        site.set([*data[:2], *fixed], output)


SPLIT_SIZES = torch.ops.aten.split_with_sizes.default

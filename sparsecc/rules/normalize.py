"""Normalisation, reduction, pooling and softmax."""

from __future__ import annotations

from collections.abc import Sequence

from sparsecc.axes.algebra import Atom, Axis
from sparsecc.axes.sizes import Size
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import SAME, embed_norm, rms_norm, skip_norm
from sparsecc.rules.site import SPATIAL, CannotFollowError, Site, broadcast, in_groups
from sparsecc.rules.table import pinned, rule
from sparsecc.rules.traits import Trait
from sparsecc.shapes.contrib_ops import OutputShapes

MS = "com.microsoft"


@rule("BatchNormalization", traits=Trait.NORMALISES, weights=(1, 2, 3, 4))
def batch_normalization(site: Site) -> None:
    """Channel by channel: scale, bias, mean and variance follow axis 1; in training, the rest is normalised over.

    With `spatial=0`, which opset 9 left out, they follow all axes but the batch.
    """
    if site.version < 9 and site.int_("spatial", 1) == 0:
        data = site.axes(0)
        for operand in range(1, len(site.node.inputs)):
            for a, b in zip(data[1:], site.axes(operand), strict=True):
                site.same(a, b)
        site.set(data)
        return
    follow_batch_norm(site, training=bool(site.int_("training_mode")))


def follow_batch_norm(site: Site, *, training: bool) -> None:
    """All operands but the first follow axis 1 of it; statistics of the batch itself are over all other axes."""
    data = site.axes(0)
    channel = data[1] if len(data) > 1 else data[0]
    for operand in range(1, len(site.node.inputs)):
        if site.has(operand):
            site.same(channel, site.axes(operand)[0])
    if training:
        others = [p for p in range(len(data)) if p != 1]
        site.reduces(0, others, "instancenorm")
        if any(v.uses() or v.is_graph_output() for v in site.node.outputs[1:]):
            site.pin([data[p] for p in others], "the statistics")
    site.set(data)
    for output in range(1, site.outputs()):
        site.set([channel], output)


@rule("InstanceNormalization", traits=Trait.NORMALISES, weights=(1, 2))
def instance_normalization(site: Site) -> None:
    """Channel by channel; what lies behind axis 1 is normalised over."""
    follow_instance_norm(site)


def follow_instance_norm(site: Site) -> None:
    """All operands but the first follow axis 1 of it; statistics are over the axes behind."""
    data = site.axes(0)
    for operand in range(1, len(site.node.inputs)):
        site.same(data[1], site.axes(operand)[0])
    site.reduces(0, range(2, len(data)), "instancenorm")
    site.set(data)


@rule("LayerNormalization", traits=Trait.NORMALISES, weights=(1, 2))
@rule("SimplifiedLayerNormalization", traits=Trait.NORMALISES, weights=(1,), shapes=OutputShapes(rms_norm))
@rule("RMSNormalization", traits=Trait.NORMALISES, weights=(1,))
def layer_normalization(site: Site) -> None:
    """The axes from `axis` on are normalised over; scale and bias follow them."""
    kind = "layernorm" if site.node.op_type == "LayerNormalization" else "rmsnorm"
    follow_layer_norm(site, site.axis(default=-1), kind)


def follow_layer_norm(site: Site, axis: int, kind: str) -> None:
    """The axes from `axis` on are normalised over as `kind` says; scale, bias and statistics follow."""
    data = site.axes(0)
    for operand in range(1, len(site.node.inputs)):
        if site.has(operand):
            scale = site.axes(operand)
            for a, b in zip(data[len(data) - len(scale) :], scale, strict=True):
                site.same(a, b)
    site.reduces(0, range(axis, len(data)), kind)
    site.set(data)
    for output in range(1, site.outputs()):
        site.set([*data[:axis], *(Atom(1) for _ in data[axis:])], output)


@rule("SkipLayerNormalization SkipSimplifiedLayerNormalization", domain=MS, shapes=OutputShapes(skip_norm))
def skip_normalization(site: Site) -> None:
    """The sum of data, skip and bias is normalised over its last axis; scales and biases follow it."""
    data = broadcast(site, [site.axes(i) for i in range(len(site.node.inputs)) if site.has(i)])
    kind = "layernorm" if site.node.op_type == "SkipLayerNormalization" else "rmsnorm"
    site.reduces(0, -1, kind)
    site.set(data)
    for output in (1, 2, 3):
        if output < site.outputs() and site.node.outputs[output].name:
            site.set(data if output == 3 else [*data[:-1], Atom(1)], output)


@rule("EmbedLayerNormalization", domain=MS, shapes=embed_norm(dtype=2))
def embed_normalization(site: Site) -> None:
    """Embeddings are summed and normalised over their width, which is one axis; rows are pinned."""
    ids, width = site.axes(0), site.axes(2)[1]
    for operand in (2, 3, 4):
        if site.has(operand):
            table = site.axes(operand)
            site.pin(table[0], "the rows looked up")
            site.same(width, table[1])
    for operand in (5, 6):
        site.same(width, site.axes(operand)[0])
    site.reduces(2, 1, "layernorm")
    for output in (0, 2):
        if output < site.outputs() and site.node.outputs[output].name:
            site.set([*ids, width], output)
    if site.outputs() > 1 and site.node.outputs[1].name:
        site.set([site.fixed(size, "the mask") for size in site.out_shape(1)], 1)


pinned(
    "QEmbedLayerNormalization",
    "its embeddings are quantized together",
    domain=MS,
    traits=Trait.INTEGER,
    shapes=embed_norm(dtype=8),
)


def mend_groups(edit: Edit) -> None:
    """`num_groups` becomes the number of groups left."""
    if edit.memo is not None and edit.changed(edit.memo):
        edit.set_attribute("num_groups", edit.left(edit.memo))


@rule("GroupNormalization", fix=mend_groups, weights=(1, 2), shapes=SAME)
def group_normalization(site: Site) -> None:
    """Channels are groups of equal width, normalised over within each group and over space."""
    follow_group_norm(site, site.int_("num_groups", 1))


def follow_group_norm(site: Site, count: int) -> None:
    """Axis 1 in `count` groups, which are remembered; scale and bias are one per channel, or per group (opset 18)."""
    data = site.axes(0)
    groups, _ = in_groups(site, data[1], count)
    for operand in range(1, len(site.node.inputs)):
        scale = site.axes(operand)[0]
        site.same(groups if scale.size == count else data[1], scale)
    site.remember(groups)
    site.reduces(0, range(1, len(data)), "groupnorm")
    site.set(data)


_KIND = {
    "ReduceSum": "sum", "ReduceSumSquare": "sum", "ReduceL1": "sum", "ReduceL2": "sum", "ReduceMean": "mean",
    "ReduceMax": "max", "ReduceMin": "min", "ReduceLogSum": "sum", "ReduceLogSumExp": "max",
}  # fmt: skip


@rule("ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceMean ReduceMax ReduceMin", traits=Trait.KEEPS_ZEROS)
@rule("ReduceProd", traits=Trait.KEEPS_ZEROS)
@rule("ReduceLogSum ReduceLogSumExp")
def reduce(site: Site) -> None:
    """The reduced axes vanish; the others pass."""
    data = site.axes(0)
    given = site.axis_list(1)
    if given is None or (not given and not site.int_("noop_with_empty_axes")):
        given = list(range(len(data)))
    gone = sorted(site.nonnegative(i, len(data)) for i in given)
    follow_reduction(site, gone, _KIND.get(site.node.op_type), keep=bool(site.int_("keepdims", 1)))


def follow_reduction(site: Site, gone: Sequence[int], kind: str | None, *, keep: bool) -> None:
    """Axes vanish, or have size 1 where they are kept; where there is no `kind` of reduction for them, they stay."""
    data = site.axes(0)
    if kind is None:
        site.pin([data[i] for i in gone], "the reduced axis")
    elif gone:
        site.reduces(0, gone, kind)
    for output in range(site.outputs()):
        site.set([Atom(1) if i in gone else a for i, a in enumerate(data) if keep or i not in gone], output)


@rule("ArgMax ArgMin")
def arg_extreme(site: Site) -> None:
    """The searched axis is pinned: its slots are numbered."""
    follow_search(site, site.axis(), keep=bool(site.int_("keepdims", 1)))


def follow_search(site: Site, axis: int, *, keep: bool) -> None:
    """The slots of an axis are numbered and stay; the axis vanishes, or has size 1 where it is kept."""
    data = site.axes(0)
    site.pin(data[axis], "the searched axis")
    for output in range(site.outputs()):
        site.set([Atom(1) if i == axis else a for i, a in enumerate(data) if keep or i != axis], output)


@rule("TopK")
def top_k(site: Site) -> None:
    """Experts are chosen by it: then the numbers it gives pick their weights. Any other searched axis stays."""
    follow_choice(site, site.axes(0), site.axis(default=-1), bool(site.int_("largest", 1)))


def follow_choice(site: Site, data: Sequence[Axis], axis: int, largest: bool) -> None:
    """The largest (or smallest) slots of an axis, and their numbers."""
    wanted = site.out_shape()[axis]
    if isinstance(wanted, int) and largest:
        site.pin_unless_experts(data[axis], "the searched axis")
        site.reduces(0, axis, "max")
        site.record.chosen.append((data[axis], wanted))
        site.record.numbers[site.node.outputs[1]] = data[axis]
    else:
        site.pin(data[axis], "the searched axis")
    for output in range(site.outputs()):
        found: Axis = site.fixed(site.out_shape(output)[axis], "the number of results")
        site.set([*data[:axis], found, *data[axis + 1 :]], output)


@rule("Softmax LogSoftmax Hardmax")
def softmax(site: Site) -> None:
    """Each slot's share depends on all others, so the normalised axes stay, unless they are a router's experts."""
    data = site.axes(0)
    axis = site.axis(default=-1 if site.version >= 13 else 1)
    last = axis + 1 if site.version >= 13 else len(data)
    follow_softmax(site, range(axis, last), may_route=site.node.op_type == "Softmax")


def follow_softmax(site: Site, axes: Sequence[int], *, may_route: bool) -> None:
    """Slots are normalised over these axes; a single one may be the experts of a router, whose rest add up to one."""
    data = site.axes(0)
    reason = f"axis {axes[0]} is normalised by {site.node.op_type}: the axis"
    if may_route and len(axes) == 1:
        site.pin_unless_experts(data[axes[0]], reason)
        site.reduces(0, axes[0], "max")
    else:
        site.pin([data[i] for i in axes], reason)
    site.set(data)


@rule("CumSum", traits=Trait.KEEPS_ZEROS)
@rule("CumProd")
def cumulative(site: Site) -> None:
    """Slots are accumulated in order: the axis is pinned."""
    data = site.axes(0)
    given = site.array(1)
    site.pin(data if given is None else data[int(given.item()) % len(data)], "the accumulated axis")
    site.set(data)


@rule("LpNormalization")
def lp_normalization(site: Site) -> None:
    """Every slot is divided by a norm over the axis; removed slots leave the norm."""
    data, axis = site.axes(0), site.axis(default=-1)
    site.reduces(0, axis, "sum")
    site.set(data)


@rule("LRN")
def lrn(site: Site) -> None:
    """Neighbouring channels are mixed: the channel axis is pinned."""
    data = site.axes(0)
    site.pin(data[1], "neighbouring channels are normalised together: the channel axis")
    site.set(data)


@rule("MeanVarianceNormalization", shapes=SAME)
def mean_variance(site: Site) -> None:
    """The normalised axes are pinned."""
    data = site.axes(0)
    site.pin([data[i] for i in site.ints("axes") or [0, 2, 3]], "the normalised axis")
    site.set(data)


@rule("MaxPool AveragePool LpPool", traits=Trait.KEEPS_ZEROS)
def pool(site: Site) -> None:
    """Windows over space; batch and channels pass."""
    data = site.axes(0)
    site.pin(data[2:], SPATIAL)
    if site.outputs() > 1 and any(use.node.op_type != "MaxUnpool" for use in site.node.outputs[1].uses()):
        site.pin(data[1], "positions are numbered across channels")
    for output in range(site.outputs()):
        site.set([*data[:2], *_fixed(site, site.out_shape(output)[2:])], output)


@rule("MaxUnpool", traits=Trait.KEEPS_ZEROS)
def unpool(site: Site) -> None:
    """Back to where a MaxPool found its maxima: batch and channels pass, space is laid out anew."""
    data, indices = site.axes(0), site.axes(1)
    producer = site.value(1).producer()
    if producer is None or producer.op_type != "MaxPool":
        raise CannotFollowError("its positions do not come from a MaxPool")
    for a, b in zip(data, indices, strict=True):
        site.same(a, b)
    site.pin(data[2:], SPATIAL)
    site.set([*data[:2], *_fixed(site, site.out_shape()[2:])])


@rule("GlobalAveragePool GlobalMaxPool GlobalLpPool", traits=Trait.KEEPS_ZEROS)
def global_pool(site: Site) -> None:
    """All of space becomes one slot; batch and channels pass."""
    data = site.axes(0)
    site.pin(data[2:], SPATIAL)
    site.set([*data[:2], *(Atom(1) for _ in data[2:])])


def _fixed(site: Site, sizes: Sequence[Size]) -> list[Axis]:
    return [site.fixed(size, SPATIAL) for size in sizes]

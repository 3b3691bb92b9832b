"""ATen operators whose result depends on a whole axis: norms, softmax, reductions."""

from __future__ import annotations

from sparsecc.axes.sizes import quotient
from sparsecc.rules.normalize import (
    follow_batch_norm,
    follow_group_norm,
    follow_instance_norm,
    follow_layer_norm,
    follow_reduction,
    follow_search,
    follow_softmax,
)
from sparsecc.rules.site import CannotFollowError
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten, pinned


@aten("batch_norm _native_batch_norm_legit_no_training native_batch_norm")
def batch_norm(site: AtenSite) -> None:
    """Channel by channel: scale, bias, mean and variance follow axis 1; in training, the rest is normalised over."""
    follow_batch_norm(site, training=bool(site.arg("training")))


@aten("instance_norm")
def instance_norm(site: AtenSite) -> None:
    """Channel by channel; what lies behind axis 1 is normalised over, unless remembered statistics are used."""
    if site.arg("use_input_stats"):
        follow_instance_norm(site)
    else:
        follow_batch_norm(site, training=False)


@aten("_weight_norm")
def weight_norm(site: AtenSite) -> None:
    """A weight given as direction and length along one axis. Lengths are mended for what goes along the others
    (`sparsecc/torch/program/reparametrized.py`)."""
    direction, length = site.of("v"), site.of("g")
    if length:
        site.same(direction[site.dim()], length[site.dim()])
    site.set(direction)


def mend_shape(edit: AtenEdit) -> None:
    """The normalised shape follows the axes it names."""
    count = len(edit.given["normalized_shape"])
    edit.set_sizes("normalized_shape", edit.out_axes()[-count:])


@aten("layer_norm rms_norm native_layer_norm", fix=mend_shape)
def layer_norm(site: AtenSite) -> None:
    """The last axes are normalised over; scale and bias follow them."""
    kind = "rmsnorm" if site.node.op_type == "rms_norm" else "layernorm"
    follow_layer_norm(site, site.rank(0) - len(site.arg("normalized_shape")), kind)


def mend_group_count(edit: AtenEdit) -> None:
    """The number of groups becomes that of the groups left."""
    if edit.changed(edit.memo):
        edit.set("num_groups", edit.left(edit.memo))


@aten("group_norm", fix=mend_group_count)
def group_norm(site: AtenSite) -> None:
    """Channels are groups of equal width, normalised over within each group and over space."""
    follow_group_norm(site, site.integer("num_groups", 1))


@aten("softmax log_softmax _softmax _log_softmax _safe_softmax softmin")
def softmax(site: AtenSite) -> None:
    """Each slot's share depends on all others, so the normalised axis stays, unless it is a router's experts."""
    follow_softmax(site, [site.dim()], may_route=site.node.op_type in ("softmax", "_softmax"))


@aten("glu")
def glu(site: AtenSite) -> None:
    """Two halves of one axis, the second gates the first slot by slot."""
    data, axis = list(site.axes(0)), site.dim(default=-1)
    half = quotient(data[axis].size, 2)
    halves = site.space.pieces(data[axis], [half, half]) if half is not None else None
    if halves is None:
        raise CannotFollowError("its axis cannot be halved")
    data[axis] = site.same(halves[0], halves[1])
    site.set(data)


_KIND = {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min", "max": "max", "min": "min",
         "linalg_vector_norm": "sum", "norm": "sum", "logsumexp": "max", "nansum": "sum"}  # fmt: skip


@aten("sum mean amax amin linalg_vector_norm norm logsumexp nansum var std var_mean std_mean prod any all")
def reduce(site: AtenSite) -> None:
    """The reduced axes vanish; the others pass."""
    gone = site.dims("dim", site.rank(0))
    follow_reduction(site, gone, _KIND.get(site.node.op_type), keep=bool(site.arg("keepdim")))


@aten("max min")
def extremes(site: AtenSite) -> None:
    """Over everything, of two operands, or along one axis with the positions."""
    if site.outputs() == 1 and site.holds("other"):
        raise CannotFollowError("of two operands: write torch.maximum")
    if site.arg("dim") is None:
        reduce(site)
        return
    follow_search(site, site.dim(), keep=bool(site.arg("keepdim")))


@aten("cumsum cumprod logcumsumexp cummax diff")
def cumulative(site: AtenSite) -> None:
    """Slots are accumulated in order: the axis is pinned."""
    data, axis = list(site.axes(0)), site.dim()
    site.pin(data[axis], "the accumulated axis")
    for output in range(site.outputs()):
        size = site.out_shape(output)[axis]
        same = size == data[axis].size
        site.set(data if same else [*data[:axis], site.fixed(size, "differences"), *data[axis + 1 :]], output)


@aten("cosine_similarity")
def cosine(site: AtenSite) -> None:
    """Two operands are compared along one axis, which vanishes."""
    a, b = site.axes(0), site.axes(1)
    axis = site.dim(default=1)
    for left, right in zip(a, b, strict=True):
        site.same(left, right)
    site.reduces(0, axis)
    site.reduces(1, axis)
    site.set([x for i, x in enumerate(a) if i != axis])


pinned("local_response_norm", "neighbouring channels are normalised together")
pinned("cdist pdist", "distances over a whole axis")

"""Operators that only pass or pin axes, one line each."""

from __future__ import annotations

from sparsecc.axes.algebra import Axis
from sparsecc.axes.sizes import quotient
from sparsecc.rules.output_shapes import SAME, sampled, windows
from sparsecc.rules.site import SPATIAL, CannotFollowError, Site
from sparsecc.rules.table import pinned, row, rule
from sparsecc.rules.traits import MOVED_WHOLE, Trait
from sparsecc.shapes.contrib_ops import OutputShapes

row("Trilu", "* !a !b, -> * a b", reason="the triangle")
row("Trilu", "* !a !b, -> * a b", reason="the triangle", domain="com.microsoft", shapes=SAME)
row("EyeLike", "!a !b -> a b", reason="the diagonal")
row("Det", "* !a !b -> *", reason="a determinant mixes rows and columns")

pinned("NonMaxSuppression", "boxes are numbered slots")
pinned("Constant", "it could not be made an initializer when the model was loaded")
pinned("CropAndResize", "the size of its crops is computed at run time", domain="com.microsoft")
pinned("NonZero Unique", "its result has as many slots as the data says")
pinned("RandomNormal RandomUniform Multinomial", "random slots")
pinned("DFT STFT HannWindow HammingWindow BlackmanWindow MelWeightMatrix", "frequencies are ordered slots")
pinned("StringNormalizer TfIdfVectorizer StringConcat StringSplit RegexFullMatch", "it works on text")
pinned("ImageDecoder", "it decodes a file")
pinned("AffineGrid", "space is laid out anew")
pinned("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", "its classes are numbered slots")
pinned("Adagrad Adam Momentum Gradient", "it is a training step", domain="ai.onnx.preview.training")
pinned(
    """ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer
    LabelEncoder LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler
    TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor ZipMap""",
    "its features are numbered slots",
    domain="ai.onnx.ml",
)


@rule("Range")
def range_(site: Site) -> None:
    """Consecutive numbers: every slot stays."""
    site.set([site.fixed(s, "consecutive numbers") for s in site.out_shape()])


@rule("GridSample")
@rule("GridSample", domain="com.microsoft", shapes=OutputShapes(sampled))
def grid_sample(site: Site) -> None:
    """Batch and channels pass; space is sampled at the points of the grid."""
    data, grid = site.axes(0), site.axes(1)
    site.pin([*data[2:], *grid[1:]], SPATIAL)
    site.same(data[0], grid[0])
    site.set([*data[:2], *grid[1:-1]])


@rule("RoiAlign MaxRoiPool")
def roi_align(site: Site) -> None:
    """Channels pass; batch and space become boxes."""
    data, boxes = site.axes(0), site.axes(1)
    site.pin([data[0], *data[2:], boxes[1]], "boxes")
    spatial = [site.fixed(s, SPATIAL) for s in site.out_shape()[2:]]
    site.set([boxes[0], data[1], *spatial])


@rule("OneHot")
def one_hot(site: Site) -> None:
    """The classes are numbered slots; the axes of the indices pass."""
    indices = site.axes(0)
    axis = site.axis(default=-1, rank=len(indices) + 1)
    classes = site.fixed(site.out_shape()[axis], "its classes")
    site.set([*indices[:axis], classes, *indices[axis:]])


@rule("ReverseSequence", traits=MOVED_WHOLE)
def reverse_sequence(site: Site) -> None:
    """Slots of the time axis are reversed at run time; all but time and batch pass."""
    data = site.axes(0)
    time, batch = site.int_("time_axis"), site.int_("batch_axis", 1)
    site.pin([data[time], data[batch]], "slots reversed at run time")
    site.set(data)


@rule("CenterCropPad")
def center_crop_pad(site: Site) -> None:
    """Axes whose size changes are cut or padded on both sides and pinned; the others pass."""
    data, shape = site.axes(0), site.out_shape()
    given = site.ints("axes")
    result = list(data)
    for axis in range(len(data)) if given is None else given:
        site.pin(data[axis], "the cropped or padded axis")
        result[axis] = site.fixed(shape[axis], "the cropped or padded axis")
    site.set(result)


@rule("Col2Im")
def col2im(site: Site) -> None:
    """Channels are C*block; the block is laid out in space."""
    data, shape = site.axes(0), site.out_shape()
    block = quotient(data[1].size, shape[1])
    found = site.space.factored(data[1], (shape[1], block)) if block is not None else None
    if found is None:
        raise CannotFollowError("its channels are not a multiple of the block")
    site.pin([found[1], data[2]], "a block laid out in space")
    site.set([data[0], found[0], *(site.fixed(s, SPATIAL) for s in shape[2:])])


@rule("DeformConv", traits=Trait.CONVOLUTION)
def deform_conv(site: Site) -> None:
    """A convolution whose offsets are given: input channels are summed."""
    data, weight = site.axes(0), site.axes(1)
    groups, offsets = site.int_("group", 1), site.int_("offset_group", 1)
    site.pin([*data[2:], *weight[2:]], SPATIAL)
    if groups > 1 or offsets > 1:
        site.pin([data[1], weight[0], weight[1]], "the channels of a grouped deformable convolution")
    else:
        site.space.unify(data[1], weight[1])
        site.reduces(0, 1)
    if site.has(3):
        site.same(weight[0], site.axes(3)[0])
    spatial: list[Axis] = [site.fixed(s, SPATIAL) for s in site.out_shape()[2:]]
    site.set([data[0], weight[0], *spatial])
    site.multiplies(data[0], weight[0], *spatial, *weight[1:])


@rule("TensorScatter")
def tensor_scatter(site: Site) -> None:
    """A cache is written along one axis, which is pinned; the others pass."""
    cache, update = site.axes(0), site.axes(1)
    axis = site.axis(default=-2)
    site.pin([cache[axis], update[axis]], "the cached positions")
    for i, (a, b) in enumerate(zip(cache, update, strict=True)):
        if i != axis:
            site.same(a, b)
    site.set(cache)


@rule("UnfoldTensor", domain="com.microsoft", shapes=OutputShapes(windows))
def unfold(site: Site) -> None:
    """Windows over one axis become a new last axis; the others pass."""
    data = site.axes(0)
    axis = site.axis("dim", default=-1)
    site.pin(data[axis], "the axis of the windows")
    shape = site.out_shape()
    result = [*data, site.fixed(shape[-1], "a window")]
    result[axis] = site.fixed(shape[axis], "the windows")
    site.set(result)

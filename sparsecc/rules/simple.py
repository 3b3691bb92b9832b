"""Operators that only pass or pin axes, one line each."""

from __future__ import annotations

from sparsecc.rules.site import Site
from sparsecc.rules.table import pinned, row, rule

row("Trilu", "* !a !b, -> * a b", reason="the triangle")
row("GridSample", "n c *, n !h !w !z -> n c h w", reason="a spatial axis")
row("EyeLike", "!a !b -> a b", reason="the diagonal")

pinned("NonMaxSuppression RoiAlign MaxRoiPool", "boxes are numbered slots")
pinned("NonZero Unique", "its result has as many slots as the data says")
pinned("OneHot", "its classes are numbered slots")
pinned("Range", "its slots are consecutive numbers")
pinned("RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial", "random slots")
pinned("Det", "a determinant mixes rows and columns")
pinned("DFT STFT HannWindow HammingWindow BlackmanWindow MelWeightMatrix", "frequencies are ordered slots")
pinned("StringNormalizer TfIdfVectorizer StringConcat StringSplit RegexFullMatch", "it works on text")
pinned("If Loop Scan", "its body is not followed")
pinned("Optional OptionalGetElement OptionalHasElement", "it holds an optional value")
pinned(
    "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap "
    "SplitToSequence ConcatFromSequence",
    "it holds a sequence of tensors",
)
pinned("Adagrad Adam Momentum Gradient", "it is a training step")
pinned("ImageDecoder", "it decodes a file")
pinned("Col2Im CenterCropPad AffineGrid", "space is laid out anew")
pinned("MaxUnpool", "positions are numbered slots")
pinned("ReverseSequence", "slots are reversed at run time")
pinned("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", "its classes are numbered slots")


@rule("Constant")
def constant(site: Site) -> None:
    """A value of its own; lifted to an initializer when the model is loaded, so only odd ones get here."""
    site.set([site.fixed(s, "a constant that could not be lifted") for s in site.out_shape()])

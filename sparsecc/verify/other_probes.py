"""Other inputs for a model whose outputs show too little on random ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsecc.compilation import Compilation
from sparsecc.data.random_inputs import random_feeds
from sparsecc.runtime.numerics import is_float
from sparsecc.runtime.runner import Feeds

SAMPLES = 2
"""How many calibration samples are tried."""

_COARSE = 4
_TOP = 5
"""Other integers are from 1 up to this, exclusive."""


def other_feeds(compilation: Compilation) -> Iterator[tuple[str, Feeds]]:
    """(what they are, inputs for the dense model), of the sizes of the first probe, likeliest first.

    These are calibration samples; smooth floats from 0 to 1 and from 0 to 255; large random floats. All but the
    samples have other integers.
    """
    seed, sizes = compilation.options.seed, compilation.sizes[0]
    for sample in compilation.batches(SAMPLES):
        if {name: array.shape for name, array in sample.items()} == sizes:
            yield "calibration samples", sample
    assert compilation.dense.graph is not None
    dense = compilation.dense.graph.model()  # with all its inputs, which stages may have narrowed
    drawn = random_feeds(dense, seed=seed + 1, sizes=sizes, integers=(1, _TOP), plain=compilation.plain)
    generator = np.random.default_rng(seed)
    smooth = {n: _smooth(a, generator) if is_float(a) else a for n, a in drawn.items()}
    yield "smooth inputs", smooth
    yield "smooth inputs up to 255", _scaled(smooth, 255)
    yield "large inputs", _scaled(drawn, 20)


def _scaled(feeds: Feeds, factor: float) -> dict[str, np.ndarray]:
    return {n: (a * a.dtype.type(factor)).astype(a.dtype) if is_float(a) else a for n, a in feeds.items()}


def _smooth(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Random numbers from 0 to 1 that change slowly along every axis that is long."""
    coarse = generator.uniform(size=[_steps(size) for size in array.shape])
    for axis, size in enumerate(array.shape):
        if coarse.shape[axis] == size:
            continue
        places = np.linspace(0, coarse.shape[axis] - 1, size)
        low = np.minimum(places.astype(int), coarse.shape[axis] - 2)
        share = (places - low).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        coarse = np.take(coarse, low, axis) * (1 - share) + np.take(coarse, low + 1, axis) * share
    return coarse.astype(array.dtype)


def _steps(size: int) -> int:
    return max(2, size // _COARSE) if size > 2 * _COARSE else size

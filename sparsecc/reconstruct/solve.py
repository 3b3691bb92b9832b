"""The algebra of repair: weights, moments -> weights. Matrices are (groups, outputs, columns), float64.

The refit is the least-squares optimum of "Optimal Brain Surgeon" (Hassibi & Stork, 1993) for a fixed set of
kept inputs, as OBSPA ("Structurally Prune Anything", Wang et al., 2024) uses it, with two changes: the inputs
are those of the pruned and already repaired model, and the penalty draws towards the present weights instead
of zero, so that a layer with nothing to mend stays as it is.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import scipy

from sparsecc.calibrate.moments import Moments

_LARGEST_SCALE = 4.0


MISSED = 1e9
"""The relative error of missing what does not vary: finite, so that reports stay plain JSON."""


class Products:
    """What weights of one layer make of its inputs, about their means: the covariance is worked out once, and the
    product of a weight with it, which takes longest, once for each weight in turn."""

    def __init__(self, moments: Moments) -> None:
        self.moments, self.covariance = moments, moments.covariance()
        self._weight, self._product = np.zeros(0), np.zeros(0)

    def of(self, weight: np.ndarray) -> np.ndarray:
        """W C: (groups, outputs, columns)."""
        if self._weight is not weight:
            self._weight, self._product = weight, weight @ self.covariance
        return self._product

    def variance(self, weight: np.ndarray) -> np.ndarray:
        """Of the outputs, the diagonal of W C W^T: (groups, outputs)."""
        return np.asarray(np.einsum("gok,gok->go", self.of(weight), weight))

    def scaled(self, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The weight with its outputs times `scale` (groups, outputs), its product known."""
        product = self.of(weight) * scale[:, :, None]
        self._weight, self._product = weight * scale[:, :, None], product
        return self._weight


def refit(
    weight: np.ndarray,
    moments: Moments,
    *,
    intercept: bool,
    damping: float,
    products: Products | None = None,
) -> np.ndarray:
    """The weight that gives the targets best from these inputs; `intercept` leaves the means to a bias.

    `damping` is the penalty on changes, as a share of the mean variance of the inputs.
    """
    if products is not None and intercept:
        missing = moments.cross_covariance() - products.of(weight)
        return np.asarray(weight + change(products.covariance, missing, damping))
    inputs, wanted = normal_equations(moments, intercept=intercept)
    return np.asarray(weight + change(inputs, wanted - weight @ inputs, damping))


def normal_equations(moments: Moments, *, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Second moments of the inputs, and of targets with inputs; about their means if there is an intercept."""
    if intercept:
        return moments.covariance(), moments.cross_covariance()
    return moments.second, moments.yx / max(moments.rows, 1)


def change(inputs: np.ndarray, missing: np.ndarray, damping: float) -> np.ndarray:
    """What is added to a weight that lacks `missing` of the targets' moments with these inputs."""
    damped = inputs.copy()
    diagonal = np.einsum("gkk->gk", damped)
    mean = diagonal.mean(axis=1)
    diagonal += (damping * np.where(mean > 0, mean, 1.0))[:, None]
    if len(damped) == 1:
        with suppress(np.linalg.LinAlgError):  # rounding may leave it indefinite
            factor = scipy.linalg.cho_factor(damped[0].T, lower=True, check_finite=False)
            return np.asarray(scipy.linalg.cho_solve(factor, missing[0].T, check_finite=False).T[None])
    return np.asarray(np.linalg.solve(damped, missing.transpose(0, 2, 1)).transpose(0, 2, 1))


def power(weight: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The diagonal of W S W^T, for inputs with the second moments S: (groups, outputs)."""
    return np.asarray(np.einsum("gok,gok->go", weight @ inputs, weight))


def bias_for(weight: np.ndarray, moments: Moments) -> np.ndarray:
    """The bias with which the outputs have the targets' means: (groups, outputs)."""
    return np.asarray(moments.target_mean - np.einsum("gok,gk->go", weight, moments.mean))


def faded_bias_for(weight: np.ndarray, moments: Moments) -> np.ndarray:
    """The bias with which each output has its target's ratio of mean to deviation: (groups, outputs).

    Without some of its inputs a layer's signal is weaker. The full mean with a weaker signal would leave most
    of a ReLU's inputs on one side of zero, layer after layer, until nothing gets through; a mean that fades as
    the signal does keeps who fires. An output as strong as its target gets the target's mean.
    """
    variance = power(weight, moments.covariance())
    share = fading(variance, moments.target_variance())
    return np.asarray(share * moments.target_mean - np.einsum("gok,gk->go", weight, moments.mean))


def fading(variance: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How much of its deviation a signal has left, at most all of it."""
    known = (variance > 0) & (wanted > 0)
    share = np.sqrt(np.where(known, variance, 1.0) / np.where(known, wanted, 1.0))
    return np.asarray(np.minimum(share, 1.0))


def rescaled(weight: np.ndarray, moments: Moments, products: Products | None = None) -> np.ndarray:
    """The weight with each output's variance that of its target: what re-estimating a batch norm would do."""
    products = products or Products(moments)
    return products.scaled(weight, scale_to(products.variance(weight), moments.target_variance()))


def scale_to(variance: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What a signal is multiplied with to have the wanted variance, within reason."""
    usable = (variance > 0) & (wanted > 0)
    scale = np.sqrt(np.where(usable, wanted, 1.0) / np.where(usable, variance, 1.0))
    return np.asarray(np.clip(scale, 1 / _LARGEST_SCALE, _LARGEST_SCALE))


def relative_error(
    weight: np.ndarray, bias: np.ndarray | None, moments: Moments, products: Products | None = None
) -> float:
    """E|W x + b - y|² / E|y - mean y|², over all outputs; MISSED where y never varies but is missed."""
    products, wanted = products or Products(moments), moments.target_variance()
    offset = np.zeros(moments.y.shape) if bias is None else bias
    shift = np.einsum("gok,gk->go", weight, moments.mean) + offset - moments.target_mean
    both = np.einsum("gok,gok->go", weight, moments.cross_covariance())
    noise = float(np.maximum(products.variance(weight) - 2 * both + wanted + np.square(shift), 0).sum())
    signal = float(wanted.sum())
    if signal > 0:
        return noise / signal
    return 0.0 if noise <= 1e-12 else MISSED

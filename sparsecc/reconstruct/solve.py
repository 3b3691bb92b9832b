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


def refit(weight: np.ndarray, moments: Moments, *, intercept: bool, damping: float) -> np.ndarray:
    """The weight that gives the targets best from these inputs; `intercept` leaves the means to a bias.

    `damping` is the penalty on changes, as a share of the mean variance of the inputs.
    """
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


def rescaled(weight: np.ndarray, moments: Moments) -> np.ndarray:
    """The weight with each output's variance that of its target: what re-estimating a batch norm would do."""
    variance = power(weight, moments.covariance())
    return np.asarray(weight * scale_to(variance, moments.target_variance())[:, :, None])


def scale_to(variance: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What a signal is multiplied with to have the wanted variance, within reason."""
    usable = (variance > 0) & (wanted > 0)
    scale = np.sqrt(np.where(usable, wanted, 1.0) / np.where(usable, variance, 1.0))
    return np.asarray(np.clip(scale, 1 / _LARGEST_SCALE, _LARGEST_SCALE))


def relative_error(weight: np.ndarray, bias: np.ndarray | None, moments: Moments) -> float:
    """E|W x + b - y|² / E|y - mean y|², over all outputs; MISSED where y never varies but is missed."""
    mean = moments.mean
    offset = np.zeros(moments.y.shape) if bias is None else bias
    cross = moments.yx / max(moments.rows, 1)
    made = power(weight, moments.second)
    made += 2 * offset * np.einsum("gok,gk->go", weight, mean) + np.square(offset)
    both = np.einsum("gok,gok->go", weight, cross) + offset * moments.target_mean
    wanted = moments.yy / max(moments.rows, 1)
    noise = float(np.maximum(made - 2 * both + wanted, 0).sum())
    signal = float(moments.target_variance().sum())
    if signal > 0:
        return noise / signal
    return 0.0 if noise <= 1e-12 else MISSED

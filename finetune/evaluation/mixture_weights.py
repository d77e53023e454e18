"""Weights of a mean of models that minimise its log loss."""

import numpy as np
from numpy.typing import NDArray

_FLOOR = 1e-12
_TOLERANCE = 1e-9
_MAX_ITERATIONS = 100_000


def fit_mixture_weights(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-negative weights, which sum to 1, that minimise the log loss of the mean.

    The log loss is convex in the weights. They are found by expectation maximisation (Dempster et
    al. 1977, section 4.3, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x), which never
    increases it, to within 1e-9 of its minimum or for 100,000 iterations.

    Args:
        probabilities: Probability of the true class of each image by each model, shape (N, M).

    Returns:
        Weights, shape (M,).

    Raises:
        ValueError: There are no images or no models.
    """
    if 0 in probabilities.shape:
        raise ValueError(f"no probabilities: shape {probabilities.shape}")
    values = np.maximum(probabilities, _FLOOR)
    weights = np.full(values.shape[1], 1 / values.shape[1])
    for _ in range(_MAX_ITERATIONS):
        # by concavity, the log likelihood of no weights is higher by more than max(gains) - 1
        gains = (values / (values @ weights)[:, None]).mean(axis=0)
        if gains.max() - 1 < _TOLERANCE:
            break
        weights = weights * gains
        weights /= weights.sum()
    return weights


def compute_mixture_loss(probabilities: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the mean log loss of a weighted mean of models.

    Args:
        probabilities: Probability of the true class of each image by each model, shape (N, M).
        weights: Weights, shape (M,).
    """
    return float(-np.log(np.maximum(probabilities, _FLOOR) @ weights).mean())

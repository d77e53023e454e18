"""Confidence interval of an accuracy, and significance tests between models."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def compute_wilson_interval(
    num_correct: int, total: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Compute a confidence interval for a proportion in [0, 1].

    Wilson's score interval (1927), which stays inside [0, 1] and has nearly nominal coverage for
    few images and proportions near 1, unlike the Wald interval (Brown, Cai and DasGupta 2001,
    https://doi.org/10.1214/ss/1009213286).

    Args:
        num_correct: Number of successes, in [0, total].
        total: Number of trials, at least 1.
        confidence: Nominal coverage, in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    proportion = num_correct / total
    scale = 1 + z * z / total
    center = (proportion + z * z / (2 * total)) / scale
    variance = proportion * (1 - proportion) / total + z * z / (4 * total * total)
    half = z / scale * math.sqrt(variance)
    # exactly 0 and 1 at the ends, without rounding errors
    low = 0.0 if num_correct == 0 else max(0.0, center - half)
    high = 1.0 if num_correct == total else min(1.0, center + half)
    return low, high


def compute_mcnemar_p_value(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> float:
    """Compute the two-sided p-value of the exact McNemar test between two models.

    McNemar (1947, https://doi.org/10.1007/BF02295996). Under the null hypothesis, each image that
    only one of the models classifies correctly is equally likely to be either model's.

    Args:
        correct_a: Whether the first model classifies each image correctly, shape (N,).
        correct_b: Whether the second model does, for the same images, shape (N,).
    """
    num_only_a = int((correct_a & ~correct_b).sum())
    num_only_b = int((correct_b & ~correct_a).sum())
    count = num_only_a + num_only_b
    constant = math.lgamma(count + 1) - count * math.log(2)
    tail = sum(
        math.exp(constant - math.lgamma(k + 1) - math.lgamma(count - k + 1))
        for k in range(min(num_only_a, num_only_b) + 1)
    )
    return min(1.0, 2 * tail)


def apply_holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests, in the same order.

    Step-down method of Holm (1979), which controls the family-wise error rate.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

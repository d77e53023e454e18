"""What chance alone may do to a count of right answers: an interval, and a test of two models."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def compute_wilson_interval(
    num_correct: int, total: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval for a share in [0, 1] of which ``num_correct`` of ``total`` were seen.

    Wilson's score interval (1927), which stays inside [0, 1] and keeps its promise for few images
    and shares near 1, where the textbook's does not (Brown, Cai and DasGupta 2001,
    https://doi.org/10.1214/ss/1009213286).

    Args:
        num_correct: In [0, total].
        total: At least 1.
        confidence: How often the true share is to lie inside, in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_correct / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # at the ends they touch 0 and 1 but for rounding
    low = 0.0 if num_correct == 0 else max(0.0, middle - half)
    high = 1.0 if num_correct == total else min(1.0, middle + half)
    return low, high


def compute_mcnemar_p_value(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> float:
    """Return how probable it is that chance alone tells two models so far apart.

    The exact test of McNemar (1947, https://doi.org/10.1007/BF02295996), two-sided: of the images
    that one model alone gets right, each might as well have been the other's.

    Args:
        correct_a: Whether a model gets each image right, shape (N,).
        correct_b: The same of another model for the same images.
    """
    mine, others = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    count = mine + others
    constant = math.lgamma(count + 1) - count * math.log(2)
    tail = sum(
        math.exp(constant - math.lgamma(k + 1) - math.lgamma(count - k + 1))
        for k in range(min(mine, others) + 1)
    )
    return min(1.0, 2 * tail)


def apply_holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return p-values that several tests at once may be judged by, in the same order.

    Holm (1979): the more questions are asked, the more often chance answers one of them.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted

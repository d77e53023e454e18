"""Tests of whether a difference between numbers of images is more than chance."""

import math
from statistics import NormalDist

from finetune.evaluation.significance import compute_wilson_interval

CONFIDENCE = 0.99
"""Coverage of the intervals that a finding rests on.

About twenty rules judge each run: with 95%, every other run that has nothing wrong with it would be
accused of something.
"""

Z_LIMIT = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
"""Standard errors from which a difference of means is more than chance."""


def compute_difference_interval(
    num_correct: int, total: int, other_correct: int, other_total: int
) -> tuple[float, float]:
    """Return the interval of the difference of two proportions, the first minus the other.

    Newcombe's hybrid score interval (1998, method 10,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C873::AID-SIM779%3E3.0.CO;2-I), for
    proportions of different images. Where both are of the same images, as in two epochs, the truth
    is narrower: a finding is rather missed than made up.

    Args:
        num_correct: Successes of the first, in [0, total].
        total: Trials of the first, at least 1.
        other_correct: Successes of the other.
        other_total: Trials of the other, at least 1.
    """
    low, high = compute_wilson_interval(num_correct, total, confidence=CONFIDENCE)
    other_low, other_high = compute_wilson_interval(
        other_correct, other_total, confidence=CONFIDENCE
    )
    first, other = num_correct / total, other_correct / other_total
    difference = first - other
    below = math.hypot(first - low, other_high - other)
    above = math.hypot(high - first, other - other_low)
    return difference - below, difference + above


def is_lower_accuracy(accuracy: float, other: float, num_images: int, other_images: int) -> bool:
    """Return whether an accuracy is below another one by more than chance."""
    high = compute_difference_interval(
        round(accuracy * num_images), num_images, round(other * other_images), other_images
    )[1]
    return high < 0


def is_higher_loss(loss: float, other: float, *, deviation: float, num_images: int) -> bool:
    """Return whether the mean loss of images is above another one of the same by more than chance.

    Args:
        loss: Mean loss.
        other: Mean loss of the same images at another time.
        deviation: Standard deviation of the losses of the images.
        num_images: Number of images.
    """
    # of losses with a correlation of at least a half, as those of one image in two epochs are, the
    # deviation of the difference is at most that of the losses
    return loss - other > Z_LIMIT * deviation / math.sqrt(num_images)


def compute_binomial_tail(count: int, total: int, proportion: float) -> float:
    """Return the probability of at least ``count`` successes in ``total`` trials."""
    if count <= 0 or proportion >= 1:
        return 1.0
    if proportion <= 0:
        return 0.0
    log_p, log_q = math.log(proportion), math.log1p(-proportion)
    constant = math.lgamma(total + 1)
    return min(
        1.0,
        sum(
            math.exp(
                constant
                - math.lgamma(k + 1)
                - math.lgamma(total - k + 1)
                + k * log_p
                + (total - k) * log_q
            )
            for k in range(count, total + 1)
        ),
    )

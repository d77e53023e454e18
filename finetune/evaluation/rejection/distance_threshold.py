"""Threshold of a distance beyond which images of the classes are rejected at a wanted rate."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.rejection.binomial_bounds import compute_tail_interval


@dataclass(frozen=True, slots=True)
class DistanceThreshold:
    """Distance beyond which an image is unlike the training images.

    Attributes:
        threshold: Largest distance that is not rejected; one of the validation images has it.
        rank: Which of the largest distances of the validation images it is, from 1.
        num_images: Validation images that it was chosen on.
    """

    threshold: float
    rank: int
    num_images: int

    @property
    def expected_rate(self) -> float:
        """Expected rate of false rejections: of new images from where the validation ones are."""
        return self.rank / (self.num_images + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval that has the rate of false rejections with a probability of 95%."""
        return compute_tail_interval(self.rank, self.num_images)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "threshold": self.threshold,
            "num_images": self.num_images,
            "num_rejected": self.rank - 1,
            "expected_false_rejections": self.expected_rate,
            "interval": list(self.interval),
        }


def count_needed_images(rate: float) -> int:
    """Return how many validation images a threshold of a rate of false rejections needs."""
    return math.ceil(1 / rate - 1e-9) - 1


def choose_distance_threshold(
    distances: NDArray[np.floating], *, rate: float
) -> DistanceThreshold | None:
    """Return the smallest threshold that rejects new images of the classes at most at a rate.

    The rate is that expected of new images, which is a little more than that of the images that
    chose (split conformal prediction, Vovk et al. 2005). The distances may be chosen by anything
    but these images.

    Args:
        distances: Distances of validation images, none of which is among the images that distances
            are measured to, shape (N,).
        rate: Wanted rate of false rejections, in (0, 1).

    Returns:
        The threshold; None for fewer images than ``count_needed_images``.
    """
    rank = math.floor((len(distances) + 1) * rate + 1e-9)
    if rank < 1:
        return None
    return DistanceThreshold(float(np.sort(distances)[-rank]), rank, len(distances))

"""Threshold of the probability from which answers have a wanted precision on validation images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.rejection.binomial_bounds import compute_lower_bound

_SEED = 0


@dataclass(frozen=True, slots=True)
class AnsweredImages:
    """Images that are answered, and how many of the answers are right.

    Attributes:
        num_answered: Images whose probability reaches the threshold.
        num_correct: Those of them whose most probable class is right.
        num_images: All images.
    """

    num_answered: int
    num_correct: int
    num_images: int

    @property
    def precision(self) -> float | None:
        """Right answers divided by all answers; None without answers."""
        return self.num_correct / self.num_answered if self.num_answered else None

    @property
    def lower_bound(self) -> float:
        """Precision that is exceeded with a probability of 95%, for independent images."""
        return compute_lower_bound(self.num_correct, self.num_answered)

    @property
    def coverage(self) -> float:
        """Answers divided by images."""
        return self.num_answered / self.num_images if self.num_images else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "num_images": self.num_images,
            "num_answered": self.num_answered,
            "num_correct": self.num_correct,
            "precision": self.precision,
            "precision_lower_bound": self.lower_bound,
            "coverage": self.coverage,
        }


@dataclass(frozen=True, slots=True)
class ProbabilityThreshold:
    """Probability from which the most probable class is an answer.

    Attributes:
        threshold: Smallest probability of an answer.
        chosen: Answers of the images that it was chosen on, among which it was the best choice.
        cross_fitted: Answers of the same images where each half of them has the threshold that the
            other half chooses: what the procedure does to images that did not choose.
    """

    threshold: float
    chosen: AnsweredImages
    cross_fitted: AnsweredImages

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "threshold": self.threshold,
            "chosen_on": self.chosen.to_json(),
            "cross_fitted": self.cross_fitted.to_json(),
        }


def choose_probability_threshold(
    probabilities: NDArray[np.floating], is_correct: NDArray[np.bool_], *, precision: float
) -> ProbabilityThreshold | None:
    """Return the smallest threshold whose answers have a precision; None if no threshold has it.

    Args:
        probabilities: Probability of the most probable class of each image, shape (N,).
        is_correct: Whether that class is right, shape (N,).
        precision: Wanted fraction of right answers, in (0, 1].
    """
    threshold = _find_threshold(probabilities, is_correct, precision)
    if threshold is None:
        return None
    # more folds underestimate: a threshold is the lower, the more errors are held out
    halves = np.random.default_rng(_SEED).permutation(len(probabilities)) % 2
    is_answered = np.zeros(len(probabilities), bool)
    for half in (halves == 0, halves == 1):
        other = _find_threshold(probabilities[~half], is_correct[~half], precision)
        if other is not None:
            is_answered |= half & (probabilities >= other)
    return ProbabilityThreshold(
        threshold,
        count_answers(probabilities >= threshold, is_correct),
        count_answers(is_answered, is_correct),
    )


def find_best_precision(
    probabilities: NDArray[np.floating], is_correct: NDArray[np.bool_]
) -> AnsweredImages:
    """Return the answers of the threshold with the highest precision, with the most images."""
    precisions, counts, values = _compute_precisions(probabilities, is_correct)
    best = max(range(len(counts)), key=lambda row: (precisions[row], counts[row]))
    return count_answers(probabilities >= values[best], is_correct)


def count_answers(is_answered: NDArray[np.bool_], is_correct: NDArray[np.bool_]) -> AnsweredImages:
    """Return how many images are answered, and how many of them rightly; both shape (N,)."""
    num_correct = int((is_answered & is_correct).sum())
    return AnsweredImages(int(is_answered.sum()), num_correct, len(is_answered))


def _find_threshold(
    probabilities: NDArray[np.floating], is_correct: NDArray[np.bool_], precision: float
) -> float | None:
    """Return the smallest threshold with the precision; 0 where all answers together have it."""
    precisions, counts, values = _compute_precisions(probabilities, is_correct)
    # against the rounding of a quotient such as 97 / 100
    reached = np.flatnonzero(precisions >= precision - 1e-12)
    if not len(reached):
        return None
    return 0.0 if counts[reached[-1]] == len(probabilities) else float(values[reached[-1]])


def _compute_precisions(
    probabilities: NDArray[np.floating], is_correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.floating]]:
    """Return precision, number of answers and value of each threshold, from the largest one."""
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order]
    # equal probabilities are answered together
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if len(values) else order
    counts = (last + 1).astype(np.int64)
    return np.cumsum(is_correct[order])[last] / counts, counts, values[last]

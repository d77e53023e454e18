"""Rejection of answers by thresholds that are chosen on validation images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.bundle.model_card import ModelCard
from finetune.bundle.rejection.rejection_statistics import RejectionStatistics
from finetune.errors import ConfigError
from finetune.evaluation.rejection.distance_threshold import (
    DistanceThreshold,
    choose_distance_threshold,
    count_needed_images,
)
from finetune.evaluation.rejection.feature_distance import compute_distances
from finetune.evaluation.rejection.probability_threshold import (
    ProbabilityThreshold,
    choose_probability_threshold,
    find_best_precision,
)
from finetune.evaluation.rejection.reject_options import RejectOptions
from finetune.types import Judgement
from finetune.units import format_count, format_percent

if TYPE_CHECKING:
    from torch import Tensor

LOW_PROBABILITY = "low probability"
UNLIKE_TRAINING = "unlike the training images"


class Rejector:
    """Rejector of the answers of a model.

    Args:
        statistics: Statistics of the model.
        options: Rules.
        card: Card of the model.

    Attributes:
        probability: Threshold of the probability; None for none.
        distance: Threshold of the distance; None for none.

    Raises:
        ConfigError: The validation images are too few for a threshold, or no threshold has the
            precision, or the model predicts several labels of an image.
    """

    def __init__(
        self, statistics: RejectionStatistics, options: RejectOptions, card: ModelCard
    ) -> None:
        self.options = options
        self._statistics = statistics
        self.probability = self._choose_probability(card)
        self.distance = self._choose_distance()

    def judge(self, probabilities: "Tensor", features: "Tensor") -> list[Judgement]:
        """Return a judgement for each image; the distance is the stronger reason.

        Args:
            probabilities: Class probabilities, shape (B, K).
            features: Features, shape (B, D).
        """
        statistics = self._statistics
        distances = compute_distances(
            features.numpy(), statistics.features, num_neighbors=statistics.num_neighbors
        )
        # in the precision of the probabilities that the threshold was chosen from
        values = probabilities.float().max(dim=1).values.tolist()
        return [
            Judgement(self._find_reason(value, distance), distance)
            for value, distance in zip(values, distances.tolist(), strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the rules and their thresholds as JSON values."""
        probability, distance = self.probability, self.distance
        return {
            "precision": self.options.precision,
            "false_rejections": self.options.false_rejections,
            "probability": None if probability is None else probability.to_json(),
            "distance": None if distance is None else distance.to_json(),
        }

    def describe(self) -> list[str]:
        """Return a sentence on each threshold, with what it does to validation images."""
        lines = []
        if self.probability is not None:
            lines.append(_describe_probability(self.probability, self.options))
        if self.distance is not None:
            lines.append(_describe_distance(self.distance))
        return lines

    def find_warnings(self) -> list[str]:
        """Return what the validation images are too few to show; empty if they are enough."""
        probability, wanted = self.probability, self.options.precision
        if probability is None or wanted is None:
            return []
        bound = probability.cross_fitted.lower_bound
        if bound >= wanted:
            return []
        return [
            f"{format_count(probability.chosen.num_images, 'validation image')} cannot show a "
            f"precision of {format_percent(wanted)}: it may be as low as "
            f"{format_percent(bound)} (95% confidence). More validation images narrow this."
        ]

    def _find_reason(self, probability: float, distance: float) -> str:
        # a distance that is not a number is none of the training images
        if self.distance is not None and not distance <= self.distance.threshold:
            return UNLIKE_TRAINING
        if self.probability is not None and not probability >= self.probability.threshold:
            return LOW_PROBABILITY
        return ""

    def _choose_probability(self, card: ModelCard) -> ProbabilityThreshold | None:
        precision, statistics = self.options.precision, self._statistics
        if precision is None:
            return None
        if card.is_multi_label:
            raise ConfigError(
                f"--reject precision={precision:g} cannot apply to a multi-label model, whose "
                f"labels have thresholds of their own. Use --reject false_rejections=0.05, which "
                f"rejects images unlike the training images."
            )
        values, is_correct = statistics.probabilities, statistics.is_correct
        chosen = choose_probability_threshold(values, is_correct, precision=precision)
        if chosen is not None:
            return chosen
        best = find_best_precision(values, is_correct)
        count = format_count(best.num_images, "validation image")
        highest = f"{100 * (best.precision or 0):.1f}%"
        raise ConfigError(
            f"--reject precision={precision:g}: no threshold reaches it on the {count}. The "
            f"highest precision is {highest}, of the {best.num_answered} most probable answers. "
            f"Ask for less, or improve the model."
        )

    def _choose_distance(self) -> DistanceThreshold | None:
        rate = self.options.false_rejections
        if rate is None:
            return None
        chosen = choose_distance_threshold(self._statistics.distances, rate=rate)
        if chosen is not None:
            return chosen
        count = len(self._statistics.distances)
        raise ConfigError(
            f"--reject false_rejections={rate:g} needs at least {count_needed_images(rate)} "
            f"validation images, and the model has {count}. Allow false_rejections="
            f"{_round_up(1 / (count + 1))}, or train with more validation images."
        )


def count_reasons(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Return how many answers are rejected for each reason that occurs."""
    reasons = [judgement.reason for judgement in judgements if judgement.is_rejected]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(sorted(reasons))}


def _describe_probability(found: ProbabilityThreshold, options: RejectOptions) -> str:
    chosen, fitted = found.chosen, found.cross_fitted
    measured = "none of them is answered"
    if fitted.precision is not None:
        measured = (
            f"{format_percent(fitted.coverage)} are answered, {format_percent(fitted.precision)} "
            f"of them rightly (95% confident: at least {format_percent(fitted.lower_bound)})"
        )
    images = format_count(chosen.num_images, "validation image")
    rule = (
        f"Answers below a probability of {found.threshold:.4f} are rejected, the smallest "
        f"threshold with a precision of {options.precision:g} on {images}"
    )
    if found.threshold == 0:
        rule = (
            f"No answer is rejected for a low probability, as all answers together have a "
            f"precision of {options.precision:g} on {images}"
        )
    return f"{rule}. By thresholds that each half of them chooses for the other, {measured}."


def _describe_distance(found: DistanceThreshold) -> str:
    low, high = found.interval
    return (
        f"Images farther than {found.threshold:.4f} from the training images are rejected, among "
        f"them {found.rank - 1} of the {found.num_images} validation images that the threshold was "
        f"chosen on. Of new images like these, {format_percent(found.expected_rate)} are expected "
        f"to be rejected falsely (95% interval {format_percent(low)} to {format_percent(high)})."
    )


def _round_up(rate: float) -> str:
    return f"{np.ceil(rate * 100) / 100:g}"

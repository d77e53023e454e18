"""Fraction of images that are right, or the mean average precision of multi-label images."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.diagnosis.evidence import EpochRow, RunEvidence
from finetune.units import format_percent

_AVERAGE_PRECISION = "mean_average_precision"


@dataclass(frozen=True, slots=True)
class Score:
    """Score in [0, 1] that is judged as a proportion.

    Attributes:
        value: Accuracy, or mean average precision.
        count: Number of images; of a mean average precision the number of trials of a proportion
            with the same variance.
        is_average_precision: Whether it is a mean average precision.
    """

    value: float
    count: int
    is_average_precision: bool = False

    @property
    def num_correct(self) -> int:
        """Number of successes among the trials."""
        return round(self.value * self.count)

    @property
    def name(self) -> str:
        """Name among the numbers of a finding."""
        return _AVERAGE_PRECISION if self.is_average_precision else "accuracy"

    def describe(self, images: str) -> str:
        """Return the score of some images as the beginning of a sentence."""
        if self.is_average_precision:
            return f"The mean average precision of {images} is {format_percent(self.value)}"
        return f"{format_percent(self.value)} of {images} are correct"


def get_train_score(evidence: RunEvidence, row: EpochRow) -> Score | None:
    """Return the score of the measured training images; None if it is unknown."""
    data = evidence.data
    if not data.num_train_eval:
        return None
    if "accuracy" in row.train_eval:
        return Score(row.train_eval["accuracy"], data.num_train_eval)
    value = row.train_eval.get(_AVERAGE_PRECISION)
    if value is None or not data.is_multi_label:
        return None
    part = data.num_train_eval / max(1, data.num_train)
    counts = [count * part for count in data.train_counts]  # the sample is stratified
    return Score(value, _count_trials(counts, data.num_train_eval), is_average_precision=True)


def get_val_score(evidence: RunEvidence, row: EpochRow) -> Score | None:
    """Return the score of the validation images; None if it is unknown."""
    data, validation = evidence.data, evidence.validation
    if not data.num_val:
        return None
    if "accuracy" in row.val:
        return Score(row.val["accuracy"], data.num_val)
    value = row.val.get(_AVERAGE_PRECISION)
    if value is None or not data.is_multi_label:
        return None
    part = data.num_val / max(1, data.num_train)
    counts: list[float] = [count * part for count in data.train_counts]
    if validation is not None and validation.classes:
        counts = [label.support for label in validation.classes]
    return Score(value, _count_trials(counts, data.num_val), is_average_precision=True)


def get_final_score(evidence: RunEvidence) -> Score | None:
    """Return the score of the final model on the validation images; None if it is unknown."""
    validation = evidence.validation
    if validation is None or not validation.num_images:
        return None
    if validation.num_correct is not None:
        return Score(validation.num_correct / validation.num_images, validation.num_images)
    value = validation.metrics.get(_AVERAGE_PRECISION)
    if value is None:
        return None
    counts = [label.support for label in validation.classes]
    count = _count_trials(counts, validation.num_images)
    return Score(value, count, is_average_precision=True)


def compute_val_chance(evidence: RunEvidence) -> float:
    """Return the score of a random order of the validation images; 0 of images of one class.

    As ``compute_chance`` has it of the training images.
    """
    data, validation = evidence.data, evidence.validation
    if not data.is_multi_label or validation is None:
        return 0.0
    present = [label.support for label in validation.classes if label.support]
    return sum(present) / max(1, validation.num_images) / max(1, len(present))


def compute_chance(evidence: RunEvidence) -> float:
    """Return the score of guessing: of the most frequent class, or of a random order of images.

    The average precision of a random order is the fraction of the images with the label.
    """
    data = evidence.data
    total = max(1, data.num_train)
    if data.is_multi_label:
        present = [count for count in data.train_counts if count]
        return sum(present) / total / max(1, len(present))
    return max(data.train_counts, default=0) / total


def _count_trials(counts: Sequence[float], num_images: int) -> int:
    """Return the trials of a proportion with the variance of a mean average precision.

    An average precision has about the variance of a proportion of the images with the label, as in
    the binomial interval of Boyd, Eng and Page (2013,
    https://doi.org/10.1007/978-3-642-40994-3_29). The mean over K labels is that of K of them. An
    image counts once, however many labels it has: they are not independent.

    Args:
        counts: Images with each label; labels without any have no average precision.
        num_images: Number of images.
    """
    present = [count for count in counts if count > 0]
    if not present:
        return 1
    trials = len(present) ** 2 / sum(1 / max(1.0, count) for count in present)
    return max(1, min(num_images, round(trials)))

"""Verification that an exported model gives the same probabilities as the evaluated one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.bundle.model_card import ModelCard
from finetune.errors import ModelError
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.multi_label.label_metrics import evaluate_labels
from finetune.system.files import write_text

PARITY_FILE = "parity.json"
"""File of the result beside an exported model."""

_METRICS = ("accuracy", "loss")
_LABEL_METRICS = ("mean_average_precision", "macro_f1", "loss")


@dataclass(frozen=True, slots=True)
class ParityLimits:
    """Limits of the difference between an exported model and the evaluated one.

    Attributes:
        max_abs_diff: Largest difference of a class probability, in [0, 1].
        min_agreement: Smallest fraction of images with the same answer, in [0, 1]: the most
            probable class, or all labels of a multi-label model. Another class whose probability is
            within ``max_abs_diff`` of the largest is the same, and so is another label whose
            probability is within half of it of the threshold.
    """

    max_abs_diff: float
    min_agreement: float


EXACT = ParityLimits(1e-3, 1.0)
"""Limits of the same network after other preprocessing code and kernels."""

OWN_PREPROCESSING = ParityLimits(0.02, 0.995)
"""Limits of a network with its preprocessing in the file."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Difference between an exported model and the evaluated one on real images.

    Attributes:
        num_images: Number of compared images.
        max_abs_diff: Largest absolute difference of a class probability, in [0, 1].
        num_same_top1: Number of images with the same most probable class.
        num_ties: Number of images with another most probable class whose probability is within the
            limit of the largest.
        num_same_labels: Number of images with the same labels at the thresholds of a multi-label
            model; None for other models.
        num_label_ties: Number of images with other labels, all of whose probabilities are at their
            thresholds, within half of the limit.
        metrics: Metric name to its value of the evaluated and of the exported model, "model" and
            "export"; empty for images without labels.
    """

    num_images: int
    max_abs_diff: float
    num_same_top1: int
    num_ties: int = 0
    num_same_labels: int | None = None
    num_label_ties: int = 0
    metrics: Mapping[str, Mapping[str, float]] | None = None

    @property
    def agreement(self) -> float:
        """Fraction of the images with the same answer, ties included, in [0, 1].

        It is the most probable class, or the labels of a multi-label model at its thresholds.
        """
        return 1 - self.num_different / max(1, self.num_images)

    @property
    def num_different(self) -> int:
        """Number of images with another answer that is no tie."""
        if self.num_same_labels is not None:
            return self.num_images - self.num_same_labels - self.num_label_ties
        return self.num_images - self.num_same_top1 - self.num_ties

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def measure_parity(
    actual: Tensor,
    expected: Tensor,
    *,
    card: ModelCard,
    targets: Tensor | None = None,
    limits: ParityLimits = EXACT,
) -> Parity:
    """Compare the probabilities of an exported model with those of the evaluated one.

    Args:
        actual: Probabilities of the exported model, shape (N, K).
        expected: Probabilities of the evaluated model, shape (N, K).
        card: Card of the evaluated model.
        targets: Class indices, shape (N,), or 1 for each label of multi-label images, shape (N, K);
            None for images without labels.
        limits: Limits that decide which classes are tied.
    """
    num_same_labels, num_label_ties = None, 0
    if card.thresholds is not None:
        thresholds = torch.tensor(card.thresholds)
        is_same_label = (actual >= thresholds) == (expected >= thresholds)
        is_tied = (expected - thresholds).abs() < limits.max_abs_diff / 2
        num_same_labels = int(is_same_label.all(1).sum())
        num_label_ties = int((is_same_label | is_tied).all(1).sum()) - num_same_labels
    top_actual, top_expected = actual.argmax(1, keepdim=True), expected.argmax(1, keepdim=True)
    gap = (expected.gather(1, top_expected) - expected.gather(1, top_actual))[:, 0]
    is_same = (top_actual == top_expected)[:, 0]
    return Parity(
        num_images=len(expected),
        max_abs_diff=float((actual - expected).abs().max()),
        num_same_top1=int(is_same.sum()),
        num_ties=int((~is_same & (gap < limits.max_abs_diff)).sum()),
        num_same_labels=num_same_labels,
        num_label_ties=num_label_ties,
        metrics=None if targets is None else _compute_metrics(actual, expected, targets, card),
    )


def check_parity(parity: Parity, *, name: str, limits: ParityLimits = EXACT) -> None:
    """Check that an exported model does not differ from the evaluated one.

    Args:
        parity: Measured difference.
        name: Name of the exported model for messages.
        limits: Limits of the difference.

    Raises:
        ModelError: A probability, or the answer for too many images, differs.
    """
    if not parity.max_abs_diff <= limits.max_abs_diff:  # NaN raises, too
        raise ModelError(
            f"{name} differs from the evaluated model by {parity.max_abs_diff:.2g} in a "
            f"probability (allowed: {limits.max_abs_diff:g}). Do not use this export; please "
            f"report it."
        )
    if parity.agreement < limits.min_agreement:
        answer = "another class" if parity.num_same_labels is None else "other labels"
        raise ModelError(
            f"{name} predicts {answer} than the evaluated model on "
            f"{parity.num_different} of {parity.num_images} "
            f"images (at least {limits.min_agreement:.1%} must agree). Do not use this export; "
            f"please report it."
        )


def write_parity(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write the result of a comparison beside an exported model.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    write_text(folder / PARITY_FILE, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def _compute_metrics(
    actual: Tensor, expected: Tensor, targets: Tensor, card: ModelCard
) -> dict[str, dict[str, float]]:
    """Return the metrics of both models."""
    names = _LABEL_METRICS if card.is_multi_label else _METRICS
    columns = {
        "model": _evaluate(expected, targets, card),
        "export": _evaluate(actual, targets, card),
    }
    return {
        name: {key: metrics[name] for key, metrics in columns.items()}
        for name in names
        if all(name in metrics for metrics in columns.values())
    }


def _evaluate(probabilities: Tensor, targets: Tensor, card: ModelCard) -> Mapping[str, float]:
    if card.is_multi_label:
        return evaluate_labels(
            probabilities, targets, classes=card.classes, thresholds=card.thresholds
        ).metrics
    return evaluate_probabilities(probabilities, targets, classes=card.classes).metrics

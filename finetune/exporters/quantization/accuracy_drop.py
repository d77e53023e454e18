"""Points of a metric that a smaller file loses, with an interval, and the limit of the loss."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.bundle.model_card import ModelCard
from finetune.errors import ModelError
from finetune.evaluation.multi_label.label_metrics import evaluate_labels
from finetune.evaluation.paired_comparison import compute_bonett_price_interval

_POINTS = 100

_LABEL_METRICS = ("mean_average_precision", "macro_f1")
"""Metrics of multi-label images: the order of the images, and the labels that users are given."""


@dataclass(frozen=True, slots=True)
class AccuracyDrop:
    """Points that a smaller file loses on the compared images.

    Attributes:
        metric: "accuracy"; for multi-label images "mean_average_precision" or "macro_f1" at the
            thresholds, of which the one that loses more; or "agreement" with the evaluated model
            for images without labels, which bounds the lost accuracy.
        points: The evaluated model's value minus the smaller file's, in points of a hundred;
            negative for a gain.
        low: Lower end of the 95% interval of the points; None where it is unknown.
        high: Upper end.
        num_images: Number of compared images.
        max_points: Largest loss that is allowed.
    """

    metric: str
    points: float
    low: float | None
    high: float | None
    num_images: int
    max_points: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def measure_drop(
    actual: Tensor,
    expected: Tensor,
    *,
    card: ModelCard,
    targets: Tensor | None,
    max_points: float,
) -> AccuracyDrop:
    """Return what a smaller file loses.

    Args:
        actual: Probabilities of the smaller file, shape (N, K).
        expected: Probabilities of the evaluated model, shape (N, K).
        card: Card of the evaluated model.
        targets: Class indices, shape (N,), or 1 for each label of multi-label images, shape (N, K);
            None for images without labels.
        max_points: Largest loss that is allowed.
    """
    if targets is not None and card.is_multi_label:
        before, after = (_compute_metrics(table, targets, card) for table in (expected, actual))
        points = {
            name: _POINTS * (before[name] - after[name])
            for name in _LABEL_METRICS
            if name in before and name in after
        }
        if points:
            worst = max(points, key=lambda name: (math.isnan(points[name]), points[name]))
            return AccuracyDrop(worst, points[worst], None, None, len(actual), max_points)
    if card.thresholds is not None:
        limits = torch.tensor(card.thresholds)
        is_same = ((actual >= limits) == (expected >= limits)).all(1)
    elif targets is None:
        is_same = actual.argmax(1) == expected.argmax(1)
    else:
        rights = [table.argmax(1) == targets for table in (expected, actual)]
        return _build_drop("accuracy", rights[0], rights[1], max_points)
    return _build_drop("agreement", torch.ones_like(is_same), is_same, max_points)


def check_drop(drop: AccuracyDrop, *, name: str, precision: str) -> None:
    """Check that a smaller file does not lose more than is allowed.

    Args:
        drop: Measured loss.
        name: Name of the file for messages.
        precision: Its precision.

    Raises:
        ModelError: It does.
    """
    if drop.points <= drop.max_points + 1e-9:  # NaN raises, too
        return
    noun = {
        "accuracy": "points of accuracy",
        "mean_average_precision": "points of mean average precision",
        "macro_f1": "points of macro F1 at the thresholds",
        "agreement": "points of agreement with the evaluated model",
    }[drop.metric]
    interval = "" if drop.low is None else f" (95% interval {drop.low:.1f} to {drop.high:.1f})"
    raise ModelError(
        f"{name} was not written: in {precision} the model loses {drop.points:.2f} {noun}"
        f"{interval} on {drop.num_images} images, more than --max-drop {drop.max_points:g}. "
        f"Allow more with --max-drop, or use --precision "
        f"{'fp16' if precision == 'int8' else 'fp32'}."
    )


def describe_resolution(drop: AccuracyDrop) -> str | None:
    """Return what a small number of images cannot show; None for a large one."""
    step = _POINTS / max(1, drop.num_images)
    if drop.metric in _LABEL_METRICS or 10 * step <= drop.max_points:
        return None
    return (
        f"{drop.num_images} images are few: one of them is {step:.2f} points of {drop.metric}, and "
        f"a smaller loss cannot be seen. The 95% interval of the loss is {drop.low:.1f} to "
        f"{drop.high:.1f} points"
    )


def _build_drop(metric: str, before: Tensor, after: Tensor, max_points: float) -> AccuracyDrop:
    """Return the loss between two vectors of right answers, shape (N,)."""
    only_before, only_after = int((before & ~after).sum()), int((after & ~before).sum())
    low, high = compute_bonett_price_interval(only_before, only_after, len(before))
    # the interval is that of after - before
    return AccuracyDrop(
        metric,
        _POINTS * (only_before - only_after) / len(before),
        -_POINTS * high,
        -_POINTS * low,
        len(before),
        max_points,
    )


def _compute_metrics(table: Tensor, targets: Tensor, card: ModelCard) -> Mapping[str, float]:
    """Return the metrics of multi-label images; those that are undefined are missing."""
    return evaluate_labels(table, targets, classes=card.classes, thresholds=card.thresholds).metrics

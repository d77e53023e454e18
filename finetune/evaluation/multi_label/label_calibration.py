"""Temperature of multi-label models, and the metrics of validation images during training.

Each label of each image is a choice between yes and no with the logits z and 0, so that the
temperature scaling of ``calibration`` applies to all pairs of image and label together: one number
for all labels, which leaves the order of the images by each label, and so the average precision,
as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from finetune.evaluation.calibration import Calibration, calibrate, fit_temperature
from finetune.evaluation.multi_label.label_metrics import evaluate_labels
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds

# N images, K labels


def calibrate_labels(
    logits_NK: Tensor, target_NK: Tensor, *, groups: NDArray[np.int64] | None = None
) -> Calibration | None:
    """Fit the temperature of a multi-label model and cross-validate its effect.

    Args:
        logits_NK: Unnormalised scores, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
        groups: Groups of images that are kept in one fold, in the form of ``encode_groups``, shape
            (N,); None for none.

    Returns:
        The calibration, whose loss is the mean over images and labels, or None with fewer than two
        images.
    """
    num_images, num_labels = logits_NK.shape
    if num_images < 2:
        return None
    rows = np.arange(num_images) if groups is None or len(np.unique(groups)) < 2 else groups
    pairs = np.repeat(rows * num_labels, num_labels)  # the labels of an image share a fold
    logits, target = _list_pairs(logits_NK, target_NK)
    calibration = calibrate(logits, target, groups=pairs)
    return None if calibration is None else replace(calibration, num_images=num_images)


def compute_label_validation_metrics(
    logits_NK: Tensor,
    target_NK: Tensor,
    *,
    classes: Sequence[str],
    train_counts: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return the metrics of ``evaluate_labels`` and the calibrated log loss.

    The thresholds of F1 are chosen on the same images.

    Args:
        logits_NK: Unnormalised scores, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
        classes: Label names, K of them.
        train_counts: Training images with each label, shape (K,), or None.

    Raises:
        ValueError: The set of images is empty.
    """
    probabilities_NK = logits_NK.double().sigmoid()
    evaluation = evaluate_labels(
        probabilities_NK,
        target_NK,
        classes=classes,
        thresholds=choose_thresholds(probabilities_NK, target_NK),
        train_counts=train_counts,
    )
    losses = compute_calibrated_label_losses(logits_NK, target_NK)
    return {**evaluation.metrics, "calibrated_loss": float(losses.mean())}


def compute_calibrated_label_losses(logits_NK: Tensor, target_NK: Tensor) -> Tensor:
    """Compute the mean log loss of each image's labels after the best temperature, shape (N,).

    Args:
        logits_NK: Unnormalised scores, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
    """
    temperature = fit_temperature(*_list_pairs(logits_NK, target_NK))
    return binary_cross_entropy_with_logits(
        logits_NK.double() / temperature, target_NK.double(), reduction="none"
    ).mean(dim=1)


def _list_pairs(logits_NK: Tensor, target_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of no and yes, shape (N * K, 2), and the answers, int64, (N * K,)."""
    flat = logits_NK.double().flatten()
    return torch.stack([torch.zeros_like(flat), flat], dim=1), target_NK.flatten().long()

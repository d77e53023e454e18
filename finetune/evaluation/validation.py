"""Metrics of the validation images during training, among them the one that selects the epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.evaluation.calibration import fit_temperature
from finetune.evaluation.metrics import evaluate_probabilities
from finetune.evaluation.multi_label.label_calibration import (
    compute_calibrated_label_losses,
    compute_label_validation_metrics,
)


def compute_outputs(logits: Tensor, target: Tensor) -> Tensor:
    """Return what the metrics of logits (N, K) are computed from, shape (N, K).

    That is class probabilities, or the logits themselves for multi-label images, whose
    probabilities may be too close to 0 or 1 for float32.

    Args:
        logits: Unnormalised scores, shape (N, K).
        target: Class indices, shape (N,), or 1 for each label of an image, shape (N, K).
    """
    return logits if target.ndim == 2 else logits.softmax(dim=1)


def compute_validation_metrics(
    probabilities: Tensor,
    target: Tensor,
    *,
    classes: Sequence[str],
    train_counts: Sequence[int] | None = None,
    logit_shift: Tensor | None = None,
) -> dict[str, float]:
    """Return the metrics of ``evaluate_probabilities`` and the calibrated log loss.

    Those of multi-label images are the metrics of ``compute_label_validation_metrics``.

    A shift adjusts the probabilities to another class prior than that of the images, whose log loss
    would be about the prior instead of the model. The calibrated loss is therefore that without it.

    Args:
        probabilities: Class probabilities, shape (N, K), rows sum to 1, as ``compute_outputs``
            returns them; of multi-label images the logits.
        target: True class indices in [0, K), int64, shape (N,), or 1 for each label of multi-label
            images, shape (N, K).
        classes: Class names, K of them.
        train_counts: Number of training images per class, shape (K,), or None.
        logit_shift: Shift of the logits that the probabilities contain, shape (K,), or None.

    Raises:
        ValueError: The set of images is empty.
    """
    if target.ndim == 2:
        return compute_label_validation_metrics(
            probabilities, target, classes=classes, train_counts=train_counts
        )
    evaluation = evaluate_probabilities(
        probabilities, target, classes=classes, train_counts=train_counts
    )
    model_probabilities = _remove_shift(probabilities, logit_shift)
    return {
        **evaluation.metrics,
        "calibrated_loss": compute_calibrated_loss(model_probabilities, target),
    }


def compute_calibrated_loss(probabilities: Tensor, target: Tensor) -> float:
    """Compute the mean log loss after the temperature that suits these images best.

    It compares models by what they know, apart from their confidence, which one number corrects
    after training (Berta et al. 2025, https://arxiv.org/abs/2501.19195). Among 50 images, accuracy
    moves by 2 points with each of them; this loss moves by a little with all.

    Args:
        probabilities: Class probabilities, shape (N, K), rows sum to 1.
        target: True class indices in [0, K), int64, shape (N,).
    """
    return float(compute_calibrated_losses(probabilities, target).mean())


def compute_calibrated_losses(probabilities: Tensor, target: Tensor) -> Tensor:
    """Compute the log loss of each image, as in ``compute_calibrated_loss``, float64, shape (N,).

    Args:
        probabilities: Class probabilities, shape (N, K), rows sum to 1; of multi-label images the
            logits.
        target: True class indices in [0, K), int64, shape (N,), or 1 for each label of multi-label
            images, shape (N, K).
    """
    if target.ndim == 2:
        return compute_calibrated_label_losses(probabilities, target)
    logits = _compute_logits(probabilities)
    if probabilities.shape[1] > 1:
        logits = logits / fit_temperature(logits, target)
    return cross_entropy(logits, target, reduction="none")


def _remove_shift(probabilities: Tensor, logit_shift: Tensor | None) -> Tensor:
    """Return probabilities (N, K) without the shift (K,) of their logits."""
    if logit_shift is None:
        return probabilities
    return (_compute_logits(probabilities) - logit_shift.to(probabilities.device)).softmax(dim=1)


def _compute_logits(probabilities: Tensor) -> Tensor:
    return probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log()

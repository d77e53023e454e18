"""How sure a model says it is, set right by one number: temperature scaling.

Guo et al. 2017, section 4.2 (https://arxiv.org/abs/1706.04599): logits are divided by a temperature
that lowers the log loss on validation images. No class changes places, so accuracy stays as it is.

It is fitted to the network's own logits: answers for another prior are calibrated first and then
adjusted (Alexandari et al. 2020, https://arxiv.org/abs/1901.06852). Where training balanced the
classes, its logits are first moved to the shares of the images that it is fitted to.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.evaluation.metrics import calibration_error, log_loss

NUM_FOLDS = 5
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Temperatures beyond say that something else is wrong with a model."""

_MAX_NEWTON_STEPS = 60


@dataclass(frozen=True, slots=True)
class CalibrationMetrics:
    """How well probabilities agree with what came true.

    Attributes:
        loss: Mean log loss.
        calibration_error: Expected calibration error over 15 bins, in [0, 1].
    """

    loss: float
    calibration_error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature and what it is worth on images that it was not fitted to.

    Attributes:
        temperature: What logits are divided by; 1 where ``fitted`` does not help.
        fitted: The temperature of all images.
        num_images: Images that it was fitted to.
        num_folds: Parts of them; a temperature fitted to all others serves each part in ``after``.
        before: At temperature 1.
        after: With the temperatures of the other parts.
    """

    temperature: float
    fitted: float
    num_images: int
    num_folds: int
    before: CalibrationMetrics
    after: CalibrationMetrics

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def calibrate(logits: Tensor, target: Tensor, *, shift: Tensor | None = None) -> Calibration | None:
    """Return the temperature of a model, cross-fitted so that the gain is an honest one.

    A temperature that does not lower the log loss of images that it was not fitted to is left out.
    The parts take every fifth image each, so that images in the order of their classes are shared
    out evenly.

    Args:
        logits: Unnormalised scores, shape (N, K).
        target: True class indices in [0, K), int64, shape (N,).
        shift: Added to logits once they are divided, shape (K,), where they are for other shares of
            the classes than these images have; None adds nothing.

    Returns:
        What came of it; None where there are fewer than two images or classes.
    """
    num_images, num_classes = logits.shape
    num_folds = min(NUM_FOLDS, num_images)
    if num_folds < 2 or num_classes < 2:
        return None
    logits = logits.double()
    moved = torch.zeros(num_classes) if shift is None else shift.double()
    part = torch.arange(num_images) % num_folds
    scaled = torch.empty_like(logits)
    for fold in range(num_folds):
        left_out = part == fold
        temperature = fit_temperature(logits[~left_out], target[~left_out], shift=moved)
        scaled[left_out] = logits[left_out] / temperature
    before, after = (
        _compute_calibration_metrics(logits + moved, target),
        _compute_calibration_metrics(scaled + moved, target),
    )
    fitted = fit_temperature(logits, target, shift=moved)
    return Calibration(
        temperature=fitted if after.loss < before.loss else 1.0,
        fitted=fitted,
        num_images=num_images,
        num_folds=num_folds,
        before=before,
        after=after,
    )


def fit_temperature(logits: Tensor, target: Tensor, *, shift: Tensor | None = None) -> float:
    """Return the temperature with the lowest log loss, within [0.05, 20].

    The loss is convex in 1 / temperature: a root of its slope is looked for by Newton's steps,
    inside of a bracket that each of them narrows.

    Where a model is right about every image, the loss falls for ever as the temperature does. The
    targets therefore leave room for the image that would have been wrong: 1 / (N + 2) of each is
    shared by the other classes, as by Platt (1999, "Probabilistic outputs for support vector
    machines and comparisons to regularized likelihood methods") for two classes.

    Args:
        logits: Unnormalised scores, shape (N, K); K is 2 or more.
        target: True class indices in [0, K), int64, shape (N,).
        shift: Added to logits once they are divided, shape (K,); None adds nothing.
    """
    logits = logits.double()
    moved = torch.zeros(logits.shape[1]) if shift is None else shift
    spread = float((logits.amax(dim=1) - logits.amin(dim=1)).max())
    if not 0 < spread < math.inf:  # nothing that a temperature could change
        return 1.0
    wanted = _compute_mean_target_logit(logits, target)
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    inverse = 1.0
    for _ in range(_MAX_NEWTON_STEPS):
        slope, curvature = _compute_loss_derivatives(logits, inverse, wanted, moved)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curvature if curvature > 0 else low
        if not low < following < high:
            following = math.sqrt(low * high)
        if abs(following - inverse) <= 1e-9 * inverse:
            break
        inverse = following
    return 1 / inverse


def _compute_mean_target_logit(logits: Tensor, target: Tensor) -> float:
    """Return the mean logit of the targets, which leave a little to the other classes."""
    num_images, num_classes = logits.shape
    room = 1 / (num_images + 2)
    own = logits.gather(1, target[:, None])[:, 0]
    others = (logits.sum(dim=1) - own) / (num_classes - 1)
    return float(((1 - room) * own + room * others).mean())


def _compute_loss_derivatives(
    logits: Tensor, inverse_temperature: float, mean_target_logit: float, shift: Tensor
) -> tuple[float, float]:
    """Return the first two derivatives of the mean loss by 1 / temperature."""
    probabilities = (logits * inverse_temperature + shift).softmax(dim=1)
    mean = (probabilities * logits).sum(dim=1)
    variance = (probabilities * (logits - mean[:, None]).square()).sum(dim=1)
    return float(mean.mean()) - mean_target_logit, float(variance.mean())


def _compute_calibration_metrics(logits: Tensor, target: Tensor) -> CalibrationMetrics:
    probabilities = logits.softmax(dim=1)
    return CalibrationMetrics(
        loss=log_loss(probabilities, target),
        calibration_error=calibration_error(probabilities, target),
    )

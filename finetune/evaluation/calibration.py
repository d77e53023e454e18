"""Temperature scaling: calibration of probabilities by one number.

Guo et al. 2017, section 4.2 (https://arxiv.org/abs/1706.04599): logits are divided by a temperature
that minimises the log loss on validation images. The order of the classes is unchanged, so accuracy
does not change.

The temperature is fitted to the network's own logits: probabilities for another class prior are
calibrated first and adjusted second (Alexandari et al. 2020, https://arxiv.org/abs/1901.06852). If
training balanced the classes, the logits are first shifted to the class prior of the validation
images.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.grouped_folds import assign_folds
from finetune.evaluation.metrics import calibration_error, log_loss

NUM_FOLDS = 5
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Range of the temperature; values beyond indicate another problem of the model."""

_MAX_NEWTON_STEPS = 60


@dataclass(frozen=True, slots=True)
class CalibrationMetrics:
    """Agreement of probabilities with the true classes.

    Attributes:
        loss: Mean log loss.
        calibration_error: Expected calibration error over 15 bins, in [0, 1].
    """

    loss: float
    calibration_error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperature and its cross-validated effect.

    Attributes:
        temperature: Divisor of the logits; 1 where ``fitted_temperature`` does not help.
        fitted_temperature: The temperature of all images.
        num_images: Number of images that the temperature was fitted to.
        num_folds: Number of folds; ``after`` scales each by a temperature fitted to the others.
        before: Metrics at temperature 1.
        after: Cross-validated metrics at the fitted temperatures.
    """

    temperature: float
    fitted_temperature: float
    num_images: int
    num_folds: int
    before: CalibrationMetrics
    after: CalibrationMetrics

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def calibrate(
    logits: Tensor,
    target: Tensor,
    *,
    shift: Tensor | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Calibration | None:
    """Fit the temperature of a model and cross-validate its effect.

    The temperature is 1 if the fitted one does not lower the cross-validated log loss. The folds
    are stratified (``assign_folds``). With fewer than two groups, groups are divided.

    Args:
        logits: Unnormalised scores, shape (N, K).
        target: True class indices in [0, K), int64, shape (N,).
        shift: Logit adjustment added after the division, shape (K,), for logits that assume another
            class prior than that of these images; None adds nothing.
        groups: Groups of images that are kept in one fold, in the form of ``encode_groups``, shape
            (N,); None for none.

    Returns:
        The calibration, or None with fewer than two images or classes.
    """
    num_images, num_classes = logits.shape
    num_groups = num_images if groups is None else len(np.unique(groups))
    if num_groups < 2:
        groups, num_groups = None, num_images
    num_folds = min(NUM_FOLDS, num_groups)
    if num_folds < 2 or num_classes < 2:
        return None
    logits = logits.double()
    offset = torch.zeros(num_classes) if shift is None else shift.double()
    fold_of_image = torch.from_numpy(assign_folds(target.numpy(), num_folds, groups=groups))
    scaled = torch.empty_like(logits)
    for fold in range(num_folds):
        is_held_out = fold_of_image == fold
        temperature = fit_temperature(logits[~is_held_out], target[~is_held_out], shift=offset)
        scaled[is_held_out] = logits[is_held_out] / temperature
    before, after = (
        _compute_calibration_metrics(logits + offset, target),
        _compute_calibration_metrics(scaled + offset, target),
    )
    fitted = fit_temperature(logits, target, shift=offset)
    return Calibration(
        temperature=fitted if after.loss < before.loss else 1.0,
        fitted_temperature=fitted,
        num_images=num_images,
        num_folds=num_folds,
        before=before,
        after=after,
    )


def fit_temperature(logits: Tensor, target: Tensor, *, shift: Tensor | None = None) -> float:
    """Fit the temperature with the lowest log loss, within [0.05, 20].

    The loss is convex in 1 / temperature; the root of its slope is found by Newton's method inside
    a bracket that each step narrows.

    If a model classifies every image correctly, the loss decreases without bound as the temperature
    does. The targets are therefore smoothed: 1 / (N + 2) of each is distributed over the other
    classes, as by Platt (1999, "Probabilistic outputs for support vector machines and comparisons
    to regularized likelihood methods") for two classes.

    Args:
        logits: Unnormalised scores, shape (N, K); K is 2 or more.
        target: True class indices in [0, K), int64, shape (N,).
        shift: Logit adjustment added after the division, shape (K,); None adds nothing.
    """
    logits = logits.double()
    offset = torch.zeros(logits.shape[1]) if shift is None else shift
    spread = float((logits.amax(dim=1) - logits.amin(dim=1)).max())
    if not 0 < spread < math.inf:  # the temperature has no effect
        return 1.0
    mean_target_logit = _compute_mean_target_logit(logits, target)
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    inverse = 1.0
    for _ in range(_MAX_NEWTON_STEPS):
        slope, curvature = _compute_loss_derivatives(logits, inverse, mean_target_logit, offset)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        candidate = inverse - slope / curvature if curvature > 0 else low
        if not low < candidate < high:
            candidate = math.sqrt(low * high)
        if abs(candidate - inverse) <= 1e-9 * inverse:
            break
        inverse = candidate
    return 1 / inverse


def _compute_mean_target_logit(logits: Tensor, target: Tensor) -> float:
    """Return the mean logit of the smoothed targets."""
    num_images, num_classes = logits.shape
    smoothing = 1 / (num_images + 2)
    own = logits.gather(1, target[:, None])[:, 0]
    others = (logits.sum(dim=1) - own) / (num_classes - 1)
    return float(((1 - smoothing) * own + smoothing * others).mean())


def _compute_loss_derivatives(
    logits: Tensor, inverse_temperature: float, mean_target_logit: float, shift: Tensor
) -> tuple[float, float]:
    """Return the first two derivatives of the mean loss with respect to 1 / temperature."""
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

"""Losses of multi-label images: each label is a yes or no of its own.

They are means over images and labels, so that their values do not grow with the number of labels,
and linear in the target: that of a mixture of two images is the mixture of their losses.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# B batch, K labels

MAX_POSITIVE_WEIGHT = 100.0
"""Largest weight of the images with a label, that of one image in 101."""

_MIN_BASE = 1e-6
"""Smallest base of a power, whose derivative may be infinite at 0."""


def bce(
    logits_BK: Tensor,
    target_BK: Tensor,
    *,
    positive_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the mean binary cross-entropy, as torch's ``BCEWithLogitsLoss``.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target_BK: 1 for each label of each image, else 0, or values in between, shape (B, K).
        positive_weights_K: Factor of the loss of images with the label, shape (K,); None for 1.
        label_smoothing: Fraction s by which targets move towards one half: 1 becomes 1 - s / 2, and
            0 becomes s / 2; in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.
    """
    target_BK = target_BK.to(logits_BK.dtype)
    if label_smoothing:
        target_BK = target_BK * (1 - label_smoothing) + label_smoothing / 2
    if positive_weights_K is not None:
        positive_weights_K = positive_weights_K.to(
            logits_BK.device, logits_BK.dtype, non_blocking=True
        )
    return functional.binary_cross_entropy_with_logits(
        logits_BK, target_BK, pos_weight=positive_weights_K
    )


def asymmetric(
    logits_BK: Tensor,
    target_BK: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> Tensor:
    """Compute the mean asymmetric loss (Ridnik et al. 2021, eq. 4 to 7).

    https://arxiv.org/abs/2009.14119. Images without a label are many and mostly easy: their losses
    are focused more, and vanish below the probability ``clip``. The paper sums over images and
    labels, which multiplies the value.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target_BK: 1 for each label of each image, else 0, or values in between, shape (B, K).
        gamma_neg: Focusing exponent of images without the label, 0 or more.
        gamma_pos: Focusing exponent of images with the label, 0 or more.
        clip: Probability that is subtracted for images without the label, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: A parameter is out of range.
    """
    for name, gamma in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos)):
        if not 0 <= gamma < math.inf:
            raise ValueError(f"{name}={gamma} is not a finite number of 0 or more")
    if not 0 <= clip < 1:
        raise ValueError(f"clip={clip} is not in [0, 1)")
    target_BK = target_BK.to(logits_BK.dtype)
    p_BK, negative_p_BK = logits_BK.sigmoid(), (-logits_BK).sigmoid()
    log_negative_BK = functional.logsigmoid(-logits_BK)
    if clip:
        negative_p_BK = (negative_p_BK + clip).clamp(max=1)
        log_negative_BK = negative_p_BK.log()
    positive_loss_BK = -_focus(1 - p_BK, gamma_pos) * functional.logsigmoid(logits_BK)
    negative_loss_BK = -_focus(1 - negative_p_BK, gamma_neg) * log_negative_BK
    return (target_BK * positive_loss_BK + (1 - target_BK) * negative_loss_BK).mean()


def _focus(error_BK: Tensor, gamma: float) -> Tensor:
    """Return the focusing factor of errors in [0, 1]."""
    return error_BK.clamp(min=_MIN_BASE) ** gamma if gamma else torch.ones_like(error_BK)


def compute_positive_weights(
    class_counts: Sequence[int], num_images: int, *, max_weight: float = MAX_POSITIVE_WEIGHT
) -> Tensor:
    """Compute the images without each label divided by those with it, shape (K,).

    With these weights the images with a label and those without it count the same.

    Args:
        class_counts: Training images of each label, shape (K,); a label without images gets 1.
        num_images: Training images.
        max_weight: Largest weight, since a single image of a rare label must not outweigh a whole
            batch; its inverse is the smallest.
    """
    counts_K = torch.tensor(class_counts, dtype=torch.float64)
    weights_K = (num_images - counts_K) / counts_K.clamp(min=1)
    weights_K = weights_K.clamp(1 / max_weight, max_weight)
    return torch.where(counts_K > 0, weights_K, 1.0).float()

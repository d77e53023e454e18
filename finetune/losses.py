"""Losses as pure functions: means over a batch, so that ranks and accumulation add up.

Each is linear in its target: the loss of a soft label is the mean of the losses of the classes by
its shares, so that a mixture of two images costs the mixture of their losses. A class's weight
multiplies the loss of its label; with weights whose mean over the training set is 1 (as those made
here) the average over ranks or accumulated batches is the value of the whole batch, where torch's
weighted mean, which divides by the batch's own sum of weights, is not.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

# B batch, K classes


def cross_entropy(
    logits_BK: Tensor,
    target: Tensor,
    *,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy with smoothed labels (Szegedy et al. 2016, section 7).

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or shares of classes, shape (B, K).
        class_weights_K: Factor of a label's loss by its class, shape (K,); None weighs all alike.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.
    """
    losses_BK = -logits_BK.log_softmax(dim=1)
    return _reduce_mean(_smooth_losses(losses_BK, label_smoothing), target, class_weights_K)


def focal(
    logits_BK: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean focal loss (Lin et al. 2017, eq. 4, https://arxiv.org/abs/1708.02002).

    What is right already counts for less: (1 - p) ** gamma times the cross-entropy.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or shares of classes, shape (B, K).
        gamma: Focusing exponent, 0 or more; 0 gives cross-entropy.
        class_weights_K: Factor of a label's loss by its class (the paper's alpha), shape (K,).
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: gamma is out of range.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is 0 or more, not {gamma}")
    log_p_BK = logits_BK.log_softmax(dim=1)
    losses_BK = -((1 - log_p_BK.exp()).clamp(min=1e-6) ** gamma) * log_p_BK
    return _reduce_mean(_smooth_losses(losses_BK, label_smoothing), target, class_weights_K)


def logit_adjusted(
    logits_BK: Tensor,
    target: Tensor,
    *,
    class_counts_K: Tensor,
    tau: float = 1.0,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of logits + tau * log prior (Menon et al. 2021, eq. 10).

    https://arxiv.org/abs/2007.07314; with tau = 1 the balanced softmax of Ren et al. 2020, eq. 4,
    https://arxiv.org/abs/2007.10740. The logits themselves are then those for classes of equal
    size. The smoothed share of a target goes to the classes by their adjusted prior: spread evenly
    it would be worth most to the rarest class, for every image.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or shares of classes, shape (B, K).
        class_counts_K: Training images of each class, shape (K,).
        tau: How much of the prior is taken; 0 gives cross-entropy.
        class_weights_K: Factor of a label's loss by its class, shape (K,): a second correction of
            the same imbalance.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.
    """
    offset_K = compute_prior_offset(class_counts_K, tau=tau).to(
        logits_BK.device, logits_BK.dtype, non_blocking=True
    )
    losses_BK = -(logits_BK + offset_K).log_softmax(dim=1)
    smoothed_BK = _smooth_losses(
        losses_BK, label_smoothing, smoothing_prior_K=offset_K.softmax(dim=0)
    )
    return _reduce_mean(smoothed_BK, target, class_weights_K)


def ldam(
    logits_BK: Tensor,
    target: Tensor,
    *,
    class_counts_K: Tensor,
    max_margin: float = 0.5,
    scale: float = 1.0,
    class_weights_K: Tensor | None = None,
) -> Tensor:
    """Return the mean label-distribution-aware margin loss (Cao et al. 2019, eq. 13).

    https://arxiv.org/abs/1906.07413. The logit of the label is lowered by a margin that falls with
    the fourth root of its class's size. The paper multiplies by a scale of 30, as the logits of its
    normalised classifier are cosines; those of a plain linear layer have the scale that training
    gives them, and 30 would multiply every gradient: here it is 1, and a margin is one of logits.
    Labels are not smoothed, which would take back the margins.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or shares of classes, shape (B, K).
        class_counts_K: Training images of each class, shape (K,).
        max_margin: Of the smallest class, 0 or more.
        scale: Factor of the logits after the margin, above 0.
        class_weights_K: Factor of a label's loss by its class, shape (K,).

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: max_margin or scale is out of range.
    """
    if not 0 <= max_margin < math.inf:
        raise ValueError(f"max_margin is 0 or more, not {max_margin}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is above 0, not {scale}")
    root_K = class_counts_K.clamp(min=1) ** -0.25
    margins_K = (max_margin * root_K / root_K.max()).to(
        logits_BK.device, logits_BK.dtype, non_blocking=True
    )
    scaled_BK = scale * logits_BK
    # each column as if it were the label: its own logit lowered by its margin, the others as they
    # are, which is the cross-entropy of that logit against the log of the sum of all the others
    lead_BK = scaled_BK - scale * margins_K - _compute_leave_one_out_logsumexp(scaled_BK)
    return _reduce_mean(-functional.logsigmoid(lead_BK), target, class_weights_K)


def _compute_leave_one_out_logsumexp(logits_BK: Tensor) -> Tensor:
    """Return for each class the log of the sum of the other classes' exponentials, shape (B, K).

    What a class leaves of the whole is exact where it has at most half of it; the largest, whose
    share may round to 1, is summed around.
    """
    top_B1 = logits_BK.detach().argmax(dim=1, keepdim=True)
    is_top_BK = torch.arange(logits_BK.shape[1], device=logits_BK.device) == top_B1
    p_BK = logits_BK.softmax(dim=1).masked_fill(is_top_BK, 0)
    rest_BK = logits_BK.logsumexp(dim=1, keepdim=True) + torch.log1p(-p_BK)
    of_top_B1 = logits_BK.masked_fill(is_top_BK, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.where(is_top_BK, of_top_B1, rest_BK)


def compute_prior_offset(class_counts_K: Tensor, *, tau: float = 1.0) -> Tensor:
    """Return tau * log of each class's share of the training images, shape (K,).

    Args:
        class_counts_K: Training images of each class, shape (K,); none counts as one.
        tau: Factor.
    """
    counts_K = class_counts_K.clamp(min=1)
    return tau * (counts_K / counts_K.sum()).log()


def balanced_class_weights(class_counts: Sequence[int]) -> Tensor:
    """Return inverse class sizes whose mean over the training images is 1, shape (K,).

    Args:
        class_counts: Training images of each class, shape (K,); an empty class gets weight 0.
    """
    counts_K = torch.tensor(class_counts, dtype=torch.float64)
    return _normalize_to_unit_mean(1 / counts_K.clamp(min=1), counts_K)


def effective_number_class_weights(class_counts: Sequence[int], *, beta: float = 0.999) -> Tensor:
    """Return inverse effective numbers whose mean over the training images is 1, shape (K,).

    Cui et al. 2019, eq. 2, https://arxiv.org/abs/1901.05555; the paper makes the sum over the
    classes K instead, which differs by a factor.

    Args:
        class_counts: Training images of each class, shape (K,); an empty class gets weight 0.
        beta: In [0, 1): a class counts for 1 / (1 - beta) images at most.

    Raises:
        ValueError: beta is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta lies in [0, 1), not at {beta}")
    counts_K = torch.tensor(class_counts, dtype=torch.float64)
    return _normalize_to_unit_mean((1 - beta) / (1 - beta ** counts_K.clamp(min=1)), counts_K)


def _normalize_to_unit_mean(weights_K: Tensor, counts_K: Tensor) -> Tensor:
    weights_K = torch.where(counts_K > 0, weights_K, 0.0)
    return (weights_K * counts_K.sum() / (weights_K @ counts_K)).float()


def _smooth_losses(
    losses_BK: Tensor, label_smoothing: float, *, smoothing_prior_K: Tensor | None = None
) -> Tensor:
    """Return the losses of labels of which a share goes to all classes, shape (B, K)."""
    if not label_smoothing:
        return losses_BK
    if smoothing_prior_K is None:
        of_all_B1 = losses_BK.mean(dim=1, keepdim=True)
    else:
        of_all_B1 = (losses_BK * smoothing_prior_K).sum(dim=1, keepdim=True)
    return (1 - label_smoothing) * losses_BK + label_smoothing * of_all_B1


def _reduce_mean(losses_BK: Tensor, target: Tensor, class_weights_K: Tensor | None) -> Tensor:
    """Return the mean loss of a batch, of the loss that each class would have as the label."""
    if class_weights_K is not None:
        losses_BK = losses_BK * class_weights_K.to(
            losses_BK.device, losses_BK.dtype, non_blocking=True
        )
    if target.ndim == 1:
        return losses_BK.gather(1, target[:, None]).mean()
    return (losses_BK * target.to(losses_BK.dtype)).sum(dim=1).mean()


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "logit_adjusted": logit_adjusted,
    "ldam": ldam,
}
"""``logits, target``; one that takes ``class_counts_K`` or ``label_smoothing`` is given it."""

CLASS_WEIGHTS: Mapping[str, Callable[..., Tensor]] = {
    "balanced": balanced_class_weights,
    "effective_number": effective_number_class_weights,
}

"""Losses and class weights as pure functions, and the registries of both.

Each loss is a mean over the batch, so that ranks and accumulated batches average to the value of
the whole batch, and is linear in its target: the loss of a soft label is the mean of the losses of
the classes, weighted by their probabilities, so that a mixture of two images has the mixture of
their losses. A class weight multiplies the loss of its label. With weights whose mean over the
training set is 1, as those computed here, the average over ranks or accumulated batches equals the
value of the whole batch; torch's weighted mean, which divides by the batch's own sum of weights,
does not have this property.
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
    """Compute the mean cross-entropy with smoothed labels (Szegedy et al. 2016, section 7).

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        class_weights_K: Factor of the loss of each label's class, shape (K,); None weights all
            classes equally.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).

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
    """Compute the mean focal loss (Lin et al. 2017, eq. 4, https://arxiv.org/abs/1708.02002).

    The cross-entropy is multiplied by (1 - p) ** gamma, which reduces the loss of images that are
    already classified well.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        gamma: Focusing exponent, 0 or more; 0 gives cross-entropy.
        class_weights_K: Factor of the loss of each label's class (the paper's alpha), shape (K,);
            None weights all classes equally.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: ``gamma`` is out of range.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma={gamma} is not a finite number of 0 or more")
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
    """Compute the mean cross-entropy of logits + tau * log prior (Menon et al. 2021, eq. 10).

    https://arxiv.org/abs/2007.07314; with tau = 1 the balanced softmax of Ren et al. 2020, eq. 4,
    https://arxiv.org/abs/2007.10740. The logits then assume classes of equal size. Label smoothing
    spreads its fraction over the classes by their adjusted prior: spread evenly, it would favour
    the rarest class in every image.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        class_counts_K: Training images of each class, shape (K,).
        tau: Factor of the log prior; 0 gives cross-entropy.
        class_weights_K: Factor of the loss of each label's class, shape (K,), which corrects the
            same imbalance a second time; None weights all classes equally.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).

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
    """Compute the mean label-distribution-aware margin loss (Cao et al. 2019, eq. 13).

    https://arxiv.org/abs/1906.07413. The logit of the label is lowered by a margin that is
    inversely proportional to the fourth root of its class's size. The paper multiplies by a scale
    of 30, since the logits of its normalised classifier are cosines; training determines the scale
    of the logits of a plain linear layer, and a factor of 30 would multiply every gradient. The
    default is therefore 1, with margins in units of logits. Labels are not smoothed, since
    smoothing would counteract the margins.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        class_counts_K: Training images of each class, shape (K,).
        max_margin: Margin of the smallest class, 0 or more.
        scale: Factor of the logits after the margin, above 0.
        class_weights_K: Factor of the loss of each label's class, shape (K,); None weights all
            classes equally.

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: ``max_margin`` or ``scale`` is out of range.
    """
    if not 0 <= max_margin < math.inf:
        raise ValueError(f"max_margin={max_margin} is not a finite number of 0 or more")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} is not a finite number above 0")
    root_K = class_counts_K.clamp(min=1) ** -0.25
    margins_K = (max_margin * root_K / root_K.max()).to(
        logits_BK.device, logits_BK.dtype, non_blocking=True
    )
    scaled_BK = scale * logits_BK
    # each column as if it were the label, its own logit lowered by its margin and the others
    # unchanged: the binary cross-entropy of that logit against the logsumexp of all others
    lead_BK = scaled_BK - scale * margins_K - _compute_leave_one_out_logsumexp(scaled_BK)
    return _reduce_mean(-functional.logsigmoid(lead_BK), target, class_weights_K)


def _compute_leave_one_out_logsumexp(logits_BK: Tensor) -> Tensor:
    """Compute the logsumexp of the other classes' logits for each class, shape (B, K).

    Subtracting a class from the total is accurate for probabilities up to one half. The largest
    probability may round to 1, and its column is summed over the other classes instead.
    """
    top_B1 = logits_BK.detach().argmax(dim=1, keepdim=True)
    is_top_BK = torch.arange(logits_BK.shape[1], device=logits_BK.device) == top_B1
    p_BK = logits_BK.softmax(dim=1).masked_fill(is_top_BK, 0)
    rest_BK = logits_BK.logsumexp(dim=1, keepdim=True) + torch.log1p(-p_BK)
    top_rest_B1 = logits_BK.masked_fill(is_top_BK, -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.where(is_top_BK, top_rest_B1, rest_BK)


def compute_prior_offset(class_counts_K: Tensor, *, tau: float = 1.0) -> Tensor:
    """Compute tau * log of each class's fraction of the training images, shape (K,).

    Args:
        class_counts_K: Training images of each class, shape (K,); 0 is treated as 1.
        tau: Factor of the log prior.
    """
    counts_K = class_counts_K.clamp(min=1)
    return tau * (counts_K / counts_K.sum()).log()


def compute_balanced_class_weights(class_counts: Sequence[int]) -> Tensor:
    """Compute inverse class sizes, scaled to mean 1 over the training images, shape (K,).

    Args:
        class_counts: Training images of each class, shape (K,); an empty class gets weight 0.
    """
    counts_K = torch.tensor(class_counts, dtype=torch.float64)
    return _normalize_to_unit_mean(1 / counts_K.clamp(min=1), counts_K)


def compute_effective_number_class_weights(
    class_counts: Sequence[int], *, beta: float = 0.999
) -> Tensor:
    """Compute inverse effective numbers, scaled to mean 1 over the training images, shape (K,).

    Cui et al. 2019, eq. 2, https://arxiv.org/abs/1901.05555; the paper scales the sum over the
    classes to K instead, which differs by a factor.

    Args:
        class_counts: Training images of each class, shape (K,); an empty class gets weight 0.
        beta: Hyperparameter in [0, 1): the effective number is at most 1 / (1 - beta) images.

    Raises:
        ValueError: ``beta`` is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} is not in [0, 1)")
    counts_K = torch.tensor(class_counts, dtype=torch.float64)
    return _normalize_to_unit_mean((1 - beta) / (1 - beta ** counts_K.clamp(min=1)), counts_K)


def _normalize_to_unit_mean(weights_K: Tensor, counts_K: Tensor) -> Tensor:
    weights_K = torch.where(counts_K > 0, weights_K, 0.0)
    return (weights_K * counts_K.sum() / (weights_K @ counts_K)).float()


def _smooth_losses(
    losses_BK: Tensor, label_smoothing: float, *, smoothing_prior_K: Tensor | None = None
) -> Tensor:
    """Compute the losses of smoothed labels, shape (B, K)."""
    if not label_smoothing:
        return losses_BK
    if smoothing_prior_K is None:
        mean_B1 = losses_BK.mean(dim=1, keepdim=True)
    else:
        mean_B1 = (losses_BK * smoothing_prior_K).sum(dim=1, keepdim=True)
    return (1 - label_smoothing) * losses_BK + label_smoothing * mean_B1


def _reduce_mean(losses_BK: Tensor, target: Tensor, class_weights_K: Tensor | None) -> Tensor:
    """Compute the mean loss of a batch from the losses that each class has as the label, (B, K)."""
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
"""Losses by name, called with ``logits, target``, and with ``class_counts_K``, ``class_weights_K``
and ``label_smoothing`` if they take them."""

CLASS_WEIGHTS: Mapping[str, Callable[..., Tensor]] = {
    "balanced": compute_balanced_class_weights,
    "effective_number": compute_effective_number_class_weights,
}
"""Class weights by name, called with the number of training images of each class."""

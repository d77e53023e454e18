"""Cross-entropy and its variants: focal loss and logit adjustment."""

import math

from torch import Tensor

from finetune.losses.reduction import reduce_mean, smooth_losses

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
    return reduce_mean(smooth_losses(losses_BK, label_smoothing), target, class_weights_K)


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
    return reduce_mean(smooth_losses(losses_BK, label_smoothing), target, class_weights_K)


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
    smoothed_BK = smooth_losses(
        losses_BK, label_smoothing, smoothing_prior_K=offset_K.softmax(dim=0)
    )
    return reduce_mean(smoothed_BK, target, class_weights_K)


def compute_prior_offset(class_counts_K: Tensor, *, tau: float = 1.0) -> Tensor:
    """Compute tau * log of each class's fraction of the training images, shape (K,).

    Args:
        class_counts_K: Training images of each class, shape (K,); 0 is treated as 1.
        tau: Factor of the log prior.
    """
    counts_K = class_counts_K.clamp(min=1)
    return tau * (counts_K / counts_K.sum()).log()

"""Losses with a margin between the logit of the label and those of the other classes."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from finetune.losses.reduction import reduce_mean

# B batch, K classes


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
    return reduce_mean(-functional.logsigmoid(lead_BK), target, class_weights_K)


def hinge(
    logits_BK: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    class_weights_K: Tensor | None = None,
) -> Tensor:
    """Compute the mean multi-class hinge loss (Weston and Watkins 1999), as torch's.

    https://www.esann.org/sites/default/files/proceedings/legacy/es1999-461.pdf. It is the sum over
    the other classes of the amount by which their logits exceed that of the label less the margin,
    divided by K (``torch.nn.MultiMarginLoss``). Unlike the one-versus-rest loss of scikit-learn's
    ``LinearSVC`` it depends on differences of logits alone, as the softmax does that is calibrated
    afterwards. The minimum does not estimate probabilities, so that labels are not smoothed.

    Args:
        logits_BK: Scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        margin: Least lead of the label's logit without a loss, above 0.
        class_weights_K: Factor of the loss of each label's class, shape (K,); None weights all
            classes equally.

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: ``margin`` is out of range.
    """
    return _compute_multi_margin(logits_BK, target, 1, margin, class_weights_K)


def squared_hinge(
    logits_BK: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    class_weights_K: Tensor | None = None,
) -> Tensor:
    """Compute the mean multi-class hinge loss with squared excesses (Tang 2013, section 2.2).

    https://arxiv.org/abs/1306.0239; ``torch.nn.MultiMarginLoss(p=2)``. Its gradient has no jump at
    the margin, and grows with the excess.

    Args:
        logits_BK: Scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        margin: Least lead of the label's logit without a loss, above 0.
        class_weights_K: Factor of the loss of each label's class, shape (K,); None weights all
            classes equally.

    Returns:
        Scalar, same dtype as ``logits_BK``.

    Raises:
        ValueError: ``margin`` is out of range.
    """
    return _compute_multi_margin(logits_BK, target, 2, margin, class_weights_K)


def _compute_multi_margin(
    logits_BK: Tensor,
    target: Tensor,
    power: int,
    margin: float,
    class_weights_K: Tensor | None,
) -> Tensor:
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin} is not a finite number above 0")
    num_classes = logits_BK.shape[1]
    if target.ndim == 1:
        own_B1 = logits_BK.gather(1, target[:, None])
        excesses_BK = (margin + logits_BK - own_B1).clamp_min(0) ** power
        losses_B = excesses_BK.scatter(1, target[:, None], 0).sum(dim=1) / num_classes
        if class_weights_K is not None:
            weights_K = class_weights_K.to(losses_B.device, losses_B.dtype, non_blocking=True)
            losses_B = losses_B * weights_K[target]
        return losses_B.mean()
    excesses_BKK = (margin + logits_BK[:, None, :] - logits_BK[:, :, None]).clamp_min(0) ** power
    is_own_KK = torch.eye(num_classes, dtype=torch.bool, device=logits_BK.device)
    losses_BK = excesses_BKK.masked_fill(is_own_KK, 0).sum(dim=2) / num_classes
    return reduce_mean(losses_BK, target, class_weights_K)


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

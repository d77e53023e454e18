"""Loss of independent logistic regressions, one for each label, and the scores of their logits."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from finetune.evaluation.multi_label.label_metrics import compute_average_precision

# N images, H heads, K labels


def compute_label_loss_and_error(
    logits_NHK: Tensor,
    targets_NK: Tensor,
    sample_weights_NH: Tensor,
    positive_weights_K: Tensor | None,
) -> tuple[float, Tensor]:
    """Return the weighted sum of the losses of all labels, and its gradient by the logits.

    Args:
        logits_NHK: Logits of each head, shape (N, H, K).
        targets_NK: 1 for each label of each image, else 0, shape (N, K).
        sample_weights_NH: Weight of each image in the loss of each head, shape (N, H).
        positive_weights_K: Factor of images with the label, shape (K,); None for 1.
    """
    targets = targets_NK[:, None].to(logits_NHK.dtype)
    weights = sample_weights_NH[..., None]
    if positive_weights_K is not None:
        weights = weights * (1 + (positive_weights_K - 1) * targets)
    loss = float(((softplus(logits_NHK) - targets * logits_NHK) * weights).sum())
    return loss, (logits_NHK.sigmoid() - targets) * weights


def score_label_logits(
    logits_NK: Tensor,
    targets_NK: Tensor,
    sample_weights_N: Tensor,
    positive_weights_K: Tensor | None = None,
) -> tuple[float, float]:
    """Return the weighted loss of held-out logits, the mean over labels, and the mean accuracy.

    Args:
        logits_NK: Logits, shape (N, K).
        targets_NK: 1 for each label of each image, else 0, shape (N, K).
        sample_weights_N: Weight of each image, shape (N,).
        positive_weights_K: Factor of the loss of images with the label, shape (K,); None for 1.
    """
    losses_NK = softplus(logits_NK) - targets_NK * logits_NK
    if positive_weights_K is not None:
        losses_NK = losses_NK * (1 + (positive_weights_K - 1) * targets_NK)
    losses_N = losses_NK.mean(dim=1)
    is_right_N = ((logits_NK > 0) == (targets_NK > 0.5)).float().mean(dim=1)
    total = max(float(sample_weights_N.sum()), 1e-12)
    return float(losses_N @ sample_weights_N) / total, float(is_right_N @ sample_weights_N) / total


def compute_held_out_mean_average_precision(probabilities_NK: Tensor, targets_NK: Tensor) -> float:
    """Return the mean average precision over the labels with images; 0 without any.

    Args:
        probabilities_NK: Out-of-fold probability of each label, shape (N, K).
        targets_NK: 1 for each label of each image, else 0, shape (N, K).
    """
    columns = zip(probabilities_NK.double().T, targets_NK.T, strict=True)
    values = [compute_average_precision(p.numpy(), y.numpy() > 0.5) for p, y in columns]
    defined = torch.tensor([value for value in values if value is not None])
    return float(defined.double().mean()) if len(defined) else 0.0

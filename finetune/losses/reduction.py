"""Label smoothing, class weights and mean of a batch, common to all losses."""

from torch import Tensor

# B batch, K classes


def smooth_losses(
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


def reduce_mean(losses_BK: Tensor, target: Tensor, class_weights_K: Tensor | None) -> Tensor:
    """Compute the mean loss of a batch from the losses that each class has as the label, (B, K)."""
    if class_weights_K is not None:
        losses_BK = losses_BK * class_weights_K.to(
            losses_BK.device, losses_BK.dtype, non_blocking=True
        )
    if target.ndim == 1:
        return losses_BK.gather(1, target[:, None]).mean()
    return (losses_BK * target.to(losses_BK.dtype)).sum(dim=1).mean()

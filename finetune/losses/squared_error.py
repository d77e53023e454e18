"""Squared error of the probabilities."""

from torch import Tensor

from finetune.losses.reduction import reduce_mean, smooth_losses

# B batch, K classes


def mse(
    logits_BK: Tensor,
    target: Tensor,
    *,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the mean squared error of the probabilities (Brier 1950), summed over the classes.

    https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2. The probabilities are the
    softmax of the logits. It is a proper score like cross-entropy, so that the probabilities and
    the class prior that they assume keep their meaning; regression on the logits (Hui and Belkin
    2021, https://arxiv.org/abs/2006.07322) has neither. Its gradient is bounded, and vanishes for
    images that are confidently wrong. Of a soft label it is the mean of the losses of the classes,
    which exceeds the squared error to the label by a constant.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target: Class indices in [0, K), int64, shape (B,), or class probabilities, shape (B, K).
        class_weights_K: Factor of the loss of each label's class, shape (K,); None weights all
            classes equally.
        label_smoothing: Fraction of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.
    """
    p_BK = logits_BK.softmax(dim=1)
    losses_BK = p_BK.square().sum(dim=1, keepdim=True) - 2 * p_BK + 1
    return reduce_mean(smooth_losses(losses_BK, label_smoothing), target, class_weights_K)

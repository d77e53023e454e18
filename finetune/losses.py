"""Losses as pure functions: means over a batch, so that ranks and accumulation add up."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's own name

# B batch, K classes


def cross_entropy(
    logits_BK: Tensor,  # noqa: N803 - shape suffix
    target_B: Tensor,  # noqa: N803
    *,
    class_weights_K: Tensor | None = None,  # noqa: N803
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy with smoothed labels (Szegedy et al. 2016, section 7).

    Unlike torch's, the weighted mean divides by B, not by the sum of the batch's weights: with
    weights of mean 1 over the training set (``balanced_class_weights``) the average over ranks or
    accumulated batches is then the value of the whole batch.

    Args:
        logits_BK: Unnormalised scores, shape (B, K).
        target_B: Class indices in [0, K), int64, shape (B,).
        class_weights_K: Factor of each class, shape (K,); None weighs all alike.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, same dtype as ``logits_BK``.
    """
    losses_B = F.cross_entropy(  # noqa: N806
        logits_BK, target_B, reduction="none", label_smoothing=label_smoothing
    )
    if class_weights_K is not None:
        losses_B = losses_B * class_weights_K.to(losses_B)[target_B]  # noqa: N806
    return losses_B.mean()


def balanced_class_weights(class_counts: Sequence[int]) -> Tensor:
    """Return inverse class sizes whose mean over the training images is 1, shape (K,).

    Args:
        class_counts: Training images of each class, shape (K,); an empty class gets weight 0.
    """
    counts_K = torch.tensor(class_counts, dtype=torch.float32)  # noqa: N806
    present = counts_K > 0
    return torch.where(present, counts_K.sum() / (present.sum() * counts_K.clamp(min=1)), 0.0)


LOSSES: Mapping[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy}

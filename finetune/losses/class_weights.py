"""Class weights as functions of the class sizes."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# K classes


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


CLASS_WEIGHTS: Mapping[str, Callable[..., Tensor]] = {
    "balanced": compute_balanced_class_weights,
    "effective_number": compute_effective_number_class_weights,
}
"""Class weights by name, called with the number of training images of each class."""

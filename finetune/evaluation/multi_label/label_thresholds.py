"""Probabilities from which labels are predicted, chosen on held-out images.

Each label has the threshold of its best F1. With few images of a label that would fit chance
("SCut" of Yang 2001, "A study of thresholding strategies for text categorization", overfits rare
categories), so such labels share the threshold of the best F1 over all labels together.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.multi_label.label_metrics import DEFAULT_THRESHOLD

# N images, K labels

MIN_IMAGES_FOR_OWN_THRESHOLD = 10
"""Held-out images with a label from which it has a threshold of its own."""


def choose_thresholds(
    probabilities_NK: Tensor,
    target_NK: Tensor,
    *,
    min_images: int = MIN_IMAGES_FOR_OWN_THRESHOLD,
) -> tuple[float, ...]:
    """Return the threshold of each label with the highest F1, shape (K,).

    Args:
        probabilities_NK: Probability of each label of held-out images, shape (N, K).
        target_NK: 1 for each label of each image, else 0, shape (N, K).
        min_images: Images with a label below which it has the common threshold.
    """
    p_NK, is_true_NK = probabilities_NK.double().numpy(), target_NK.numpy() > 0.5
    common = find_best_threshold(p_NK.ravel(), is_true_NK.ravel())
    counts_K = is_true_NK.sum(axis=0)
    return tuple(
        find_best_threshold(p_NK[:, column], is_true_NK[:, column])
        if count >= min_images
        else common
        for column, count in enumerate(counts_K.tolist())
    )


def find_best_threshold(p_N: NDArray[np.float64], is_true_N: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1; 0.5 without an image that has the label.

    It lies halfway between two probabilities, and of equally good ones it is the highest.

    Args:
        p_N: Probability of the label, shape (N,).
        is_true_N: Whether each image has the label, shape (N,).
    """
    if not is_true_N.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-p_N, kind="stable")
    scores, correct = p_N[order], np.cumsum(is_true_N[order])
    f1 = 2 * correct / (np.arange(1, len(order) + 1) + correct[-1])
    # images with equal probabilities are predicted together
    is_end = np.append(np.diff(scores) < 0, True)
    best = int(np.where(is_end, f1, -1.0).argmax())
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    middle = (scores[best] + below) / 2
    # between adjacent numbers the middle is rounded to one of them
    return float(middle if middle > below else scores[best])

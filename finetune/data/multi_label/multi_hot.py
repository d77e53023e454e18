"""Targets of multi-label images, and a single label of each that folds are stratified by."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.types import Sample

# N images, K labels


def encode_multi_hot(samples: Sequence[Sample], classes: Sequence[str]) -> NDArray[np.float32]:
    """Return 1 for each label of each image and 0 elsewhere, shape (N, K).

    Args:
        samples: N images.
        classes: Label names in index order, K of them.
    """
    index = {name: number for number, name in enumerate(classes)}
    targets_NK = np.zeros((len(samples), len(classes)), np.float32)
    for row, sample in enumerate(samples):
        targets_NK[row, [index[name] for name in sample.class_names]] = 1
    return targets_NK


def find_rarest_labels(targets_NK: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the index of the rarest label of each image, by which folds are stratified, (N,).

    Iterative stratification treats the rarest labels first, too (Sechidis et al. 2011). Images
    without any label have the index of the most frequent one.

    Args:
        targets_NK: 1 for each label of each image, shape (N, K).
    """
    counts_K = targets_NK.sum(axis=0)
    rank_K = np.empty(len(counts_K), np.int64)
    order = np.argsort(counts_K, kind="stable")
    rank_K[order] = np.arange(len(order))
    ranks_NK = np.where(targets_NK > 0, rank_K, len(order) - 1)
    return np.asarray(order[ranks_NK.min(axis=1)], np.int64)


def get_strata(targets: NDArray[np.int64] | NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the class by which folds are stratified: that of an image, or its rarest label, (N,).

    Args:
        targets: Class indices, shape (N,), or 1 for each label of each image, shape (N, K).
    """
    if targets.ndim == 2:
        return find_rarest_labels(np.asarray(targets, np.float32))
    return np.asarray(targets, np.int64)


def count_labels(samples: Iterable[Sample]) -> Counter[str]:
    """Return the number of images of each class or label."""
    return Counter(name for sample in samples for name in sample.class_names)

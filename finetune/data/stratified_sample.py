"""Fixed sample of images in which each class keeps its share."""

import numpy as np
from numpy.typing import NDArray


def draw_stratified_sample(
    labels: NDArray[np.int64], *, num_images: int, seed: int
) -> NDArray[np.int64]:
    """Return the rows of a sample that has each class in proportion, and at least once if it can.

    Args:
        labels: Class index of each image, shape (N,); of multi-label images the rarest label.
        num_images: Images of the sample; all images if there are no more.
        seed: Random seed; the sample is a pure function of it and the other arguments.

    Returns:
        Ascending rows, int64, shape (min(num_images, N),).
    """
    if num_images >= len(labels):
        return np.arange(len(labels))
    present, counts = np.unique(labels, return_counts=True)
    sizes = _divide_in_proportion(counts, num_images)
    generator = np.random.default_rng(seed)
    parts = [
        generator.permutation(np.flatnonzero(labels == label))[:size]
        for label, size in zip(present, sizes, strict=True)
    ]
    return np.sort(np.concatenate(parts))


def _divide_in_proportion(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return how many images each class has in a sample of ``total``, by the largest remainders.

    Args:
        counts: Images of each class, all positive, shape (K,).
        total: Images of the sample, fewer than there are.
    """
    shares = counts * (total / int(counts.sum()))
    smallest = 1 if total >= len(counts) else 0
    sizes: NDArray[np.int64] = np.maximum(np.floor(shares).astype(np.int64), smallest)
    while sizes.sum() > total:  # classes that were too rare have been rounded up
        excess = np.where(sizes > smallest, sizes - shares, -np.inf)
        sizes[np.argmax(excess)] -= 1
    while sizes.sum() < total:
        sizes[np.argmax(shares - sizes)] += 1
    return sizes

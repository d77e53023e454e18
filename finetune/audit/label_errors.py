"""Which labels are probably wrong, by what a classifier says that has not seen them.

Confident learning (Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068): a class is
given to an image if it is as sure as it is of the images that bear it, and a label is in doubt if
another class is given.
"""

import numpy as np
from numpy.typing import NDArray


def find_label_errors(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images whose label is in doubt, the most doubtful first, and their likely class.

    A class that is less probable than the label is never given.

    The thresholds are the mean probability of each class over the images that bear it, so that a
    class which the classifier is seldom sure of is not held to be wrong for that. Ranked by how
    much surer the likely class is than the label (the paper's normalised margin).

    Args:
        probabilities: Out of fold, shape (N, K); rows sum to 1.
        labels: Class indices in [0, K), shape (N,).

    Returns:
        Rows (M,) and class indices (M,).
    """
    num_images, num_classes = probabilities.shape
    own = probabilities[np.arange(num_images), labels]
    count = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, weights=own, minlength=num_classes)
    # nothing is as sure as a class that no image bears
    thresholds = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    # a class of few images may have a threshold that images of all others pass
    surer_than_own = probabilities > own[:, None]
    confident = np.where((probabilities >= thresholds) & surer_than_own, probabilities, -1.0)
    likely = confident.argmax(axis=1)
    surer = confident.max(axis=1)
    rows = np.flatnonzero((surer >= 0) & (likely != labels))
    order = np.argsort(own[rows] - surer[rows], kind="stable")
    return rows[order], likely[rows[order]]

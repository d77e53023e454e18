"""Distance of images to the training images in the space of a network's features."""

import numpy as np
from numpy.typing import NDArray

NUM_NEIGHBORS = 5
"""The distance of an image is that to its fifth nearest training image."""

_MAX_CHUNK_VALUES = 2**24


def normalize_features(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return features (N, D) divided by their norms, float32; features of 0 stay as they are."""
    features = np.asarray(features, np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    result: NDArray[np.float32] = features / np.maximum(norms, 1e-12)
    return result


def compute_distances(
    features: NDArray[np.floating],
    reference: NDArray[np.floating],
    *,
    num_neighbors: int = NUM_NEIGHBORS,
) -> NDArray[np.float32]:
    """Return the distance of each image to its k-th nearest training image, in [0, 2], shape (N,).

    It is the Euclidean distance of features that are divided by their norms (Sun et al. 2022,
    https://arxiv.org/abs/2204.06507, section 3).

    Args:
        features: Features of the images, shape (N, D).
        reference: Normalized features of the training images, any floating type, shape (M, D).
        num_neighbors: k; the last neighbour counts where there are fewer training images.
    """
    unit = normalize_features(features)
    reference = np.asarray(reference, np.float32)
    column = min(num_neighbors, len(reference)) - 1
    step = max(1, _MAX_CHUNK_VALUES // len(reference))
    nearest = [
        -np.partition(-(unit[start : start + step] @ reference.T), column, axis=1)[:, column]
        for start in range(0, len(unit), step)
    ]
    cosines = np.concatenate(nearest) if nearest else np.zeros(0, np.float32)
    result: NDArray[np.float32] = np.sqrt(np.maximum(2 - 2 * cosines, 0)).astype(np.float32)
    return result

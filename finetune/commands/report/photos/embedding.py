"""2-D embedding of features: scikit-learn's PCA, then its t-SNE; and nearest neighbours."""

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.report.photos.feature_map import ClassNeighbors

NUM_COMPONENTS = 50
"""Principal components that t-SNE is computed from."""

MAX_POINTS = 5_000
MIN_POINTS = 12
"""Points from which a map is drawn."""

NUM_NEIGHBORS = 10
_NUM_ITERATIONS, _PILOT_ITERATIONS, _PILOT_POINTS = 500, 250, 150
_MARGIN = 1.4


def reduce_features(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the principal components of features (N, D), shape (N, at most 50)."""
    from sklearn.decomposition import PCA

    finite = np.nan_to_num(features, posinf=0.0, neginf=0.0)
    count = min(NUM_COMPONENTS, *finite.shape)
    with np.errstate(invalid="ignore"):  # equal features have no explained variance
        reduced = PCA(count, random_state=0).fit_transform(finite)
    return np.asarray(reduced, np.float32)


def choose_num_points(components: NDArray[np.float32], seconds: float) -> int:
    """Return how many of the points t-SNE can place in some seconds, by a small trial.

    Args:
        components: Principal components, shape (N, D).
        seconds: Time that there is.
    """
    total = min(len(components), MAX_POINTS)
    pilot = components[:_PILOT_POINTS]
    start = time.monotonic()
    place_points(pilot, num_iterations=_PILOT_ITERATIONS)
    spent = time.monotonic() - start
    unit = spent * _NUM_ITERATIONS / _PILOT_ITERATIONS / _compute_cost(len(pilot))
    left = (seconds - spent) / _MARGIN
    while total > 0 and unit * _compute_cost(total) > left:
        total = int(total * 0.8)
    return total


def place_points(
    components: NDArray[np.float32], *, num_iterations: int = _NUM_ITERATIONS
) -> NDArray[np.float64]:
    """Return positions of points (N, D) by t-SNE in [0, 1], shape (N, 2); always the same ones."""
    from sklearn.manifold import TSNE

    if np.ptp(components, axis=0).max() == 0:  # all images have the same features
        return np.full((len(components), 2), 0.5)
    perplexity = min(30.0, (len(components) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=num_iterations, random_state=0)
    placed = np.asarray(tsne.fit_transform(components), np.float64)
    low, high = placed.min(axis=0), placed.max(axis=0)
    # one scale for both axes: distances have no direction
    scaled = (placed - (low + high) / 2) / max(float((high - low).max()), 1e-12) + 0.5
    result: NDArray[np.float64] = scaled
    return result


def compare_neighbors(
    components: NDArray[np.float32],
    labels: NDArray[np.int64],
    names: Sequence[str],
    is_counted: NDArray[np.bool_],
) -> list[ClassNeighbors]:
    """Return for each class of which classes the nearest images are, the least separate first.

    The ten nearest count, or as many as there are other images of the class.

    Args:
        components: Principal components, shape (N, D).
        labels: Class of each image, shape (N,).
        names: Class names.
        is_counted: Images whose surroundings count, shape (N,); neighbours are of all images.
    """
    from sklearn.neighbors import NearestNeighbors

    rows = np.flatnonzero(is_counted)
    count = min(NUM_NEIGHBORS, len(components) - 1)
    search = NearestNeighbors(n_neighbors=count + 1).fit(components)
    found = search.kneighbors(components[rows], return_distance=False)
    sizes = np.bincount(labels, minlength=len(names))
    shares = np.zeros((len(names), len(names)))
    for row, near in zip(rows, found, strict=True):
        # no more than the class has further images, or a small class could never be complete
        depth = min(count, max(1, int(sizes[labels[row]]) - 1))
        others = [one for one in near if one != row][:depth]
        np.add.at(shares[labels[row]], labels[others], 1 / depth)
    result = []
    for label in np.unique(labels[rows]).tolist():
        number = int((labels[rows] == label).sum())
        fractions = shares[label] / number
        same = float(fractions[label])
        fractions[label] = 0
        other = int(fractions.argmax())
        name = names[other] if fractions[other] > 0 else ""
        result.append(ClassNeighbors(names[label], number, same, name, float(fractions[other])))
    return sorted(result, key=lambda one: one.same_fraction)


def _compute_cost(num_points: int) -> float:
    return num_points * math.log2(num_points + 1)

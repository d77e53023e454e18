"""Points of a 2-D map of the features of images, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassNeighbors:
    """Surroundings of the images of a class among the held-out ones.

    Attributes:
        name: Class.
        num_images: Held-out images of the class on the map.
        same_fraction: Mean fraction of the nearest images that are of the same class.
        other: Class of most of the other nearest images; empty without any.
        other_fraction: Mean fraction of the nearest images that are of that class.
    """

    name: str
    num_images: int
    same_fraction: float
    other: str
    other_fraction: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FeatureMap:
    """Map of N images, those with similar features side by side.

    Attributes:
        paths: Path of each image in the manifest, N of them.
        positions: Position of each in [0, 1], shape (N, 2).
        names: Names of classes, or of combinations of labels.
        labels: Index of the true name of each image, shape (N,).
        predicted: Index of the predicted name, shape (N,); -1 where it is not known.
        is_wrong: Whether the prediction of an image is wrong, shape (N,).
        is_training: Whether an image is of the training split, shape (N,).
        num_neighbors: Number of nearest images that are counted.
        neighbors: Surroundings of each class, the least separate one first; empty for several
            labels of an image.
        sheet: Data URI of all thumbnails; row by row from the upper left, in the order of images.
        side_px: Side of a thumbnail on the sheet.
        num_columns: Thumbnails in a row of the sheet.
        num_available: Images that could have been shown.
    """

    paths: Sequence[str]
    positions: NDArray[np.float64]
    names: Sequence[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    is_wrong: NDArray[np.bool_]
    is_training: NDArray[np.bool_]
    num_neighbors: int
    neighbors: Sequence[ClassNeighbors]
    sheet: str
    side_px: int
    num_columns: int
    num_available: int

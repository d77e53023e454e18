"""Links between images that follow each other in file order and look alike to a backbone.

Frames of a video, exposures of a scene and burst photos are neighbours in file order, but few of
them are near-duplicates that an audit finds. In separate folds of a cross-validation each reveals
the label of the others, and the held-out accuracy says nothing about new scenes. Images of a class
are linked if they are within a few rows of each other and more similar to each other than either is
to a sample of other images of the class. In a folder without such neighbours few images are linked,
by chance; folds of contiguous rows, on the other hand, underestimate the accuracy there
(``docs/design/probe.md``).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.grouped_folds import (
    assign_folds,
    connect_pairs,
    count_groups,
    find_testable_rows,
    merge_groups,
)
from finetune.probe.logistic import FeatureArray

MIN_CLASS_SIZE = 50
"""Images of a class below which too few others are left to compare neighbours with."""

_WINDOW = 3
_EXCLUDED_ROWS = 10
"""Distance up to which rows of a class may show the same scene, and are not compared with."""

_NUM_REFERENCES = 200
_NUM_MEAN_ROWS = 2_000
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Folds:
    """Folds of a cross-validation.

    Attributes:
        fold_of_image: Fold of each image, shape (N,).
        is_testable: Whether the class of each image has images in other folds, too, shape (N,).
        num_folds: Number of folds.
        num_groups: Number of groups of two or more images that are kept together.
    """

    fold_of_image: NDArray[np.int64]
    is_testable: NDArray[np.bool_]
    num_folds: int
    num_groups: int


def build_folds(
    features: FeatureArray,
    labels: NDArray[np.int64],
    *,
    num_folds: int,
    groups: NDArray[np.int64] | None = None,
) -> Folds:
    """Return stratified folds that keep groups and similar neighbours together.

    Classes with fewer than 50 images, and those of which more than half would be in one group by
    their links, are not linked: contiguous rows of them share a fold. If every class is in a single
    group, nothing could be held out, and the groups are divided.

    Args:
        features: Features of the images in file order, (N, D).
        labels: Class indices, shape (N,).
        num_folds: Number of folds.
        groups: Groups as ``encode_groups`` returns them, shape (N,); None for none.
    """
    known = np.arange(len(labels)) if groups is None else groups
    links = link_similar_neighbours(features, labels)
    merged = merge_groups(known, links)
    sizes = np.bincount(labels)
    _, first, counts = np.unique(
        np.stack([merged, labels]), axis=1, return_index=True, return_counts=True
    )
    is_large = 2 * counts > sizes[labels[first]]
    contiguous = {*labels[first[is_large]].tolist(), *np.flatnonzero(sizes < MIN_CLASS_SIZE)}
    is_unlinked = np.isin(labels, [*contiguous])
    merged = merge_groups(known, np.where(is_unlinked, np.arange(len(labels)), links))
    folds = assign_folds(labels, num_folds, groups=merged, contiguous_classes=contiguous)
    is_testable = find_testable_rows(labels, folds)
    if not is_testable.any():
        merged = np.arange(len(labels))
        folds = assign_folds(labels, num_folds, contiguous_classes=contiguous)
        is_testable = find_testable_rows(labels, folds)
    return Folds(folds, is_testable, num_folds, count_groups(merged))


def link_similar_neighbours(
    features: FeatureArray,
    labels: NDArray[np.int64],
    *,
    window: int = _WINDOW,
    num_references: int = _NUM_REFERENCES,
    min_class_size: int = MIN_CLASS_SIZE,
) -> NDArray[np.int64]:
    """Return groups of linked images in the form of ``encode_groups``, shape (N,).

    Similarity is the cosine of features less their mean. The references of a class are drawn with a
    fixed seed; those within ten rows of an image are not compared with it.

    Args:
        features: Features of the images in file order, (N, D).
        labels: Class indices, shape (N,).
        window: Largest distance of linked rows of a class.
        num_references: Images of a class that neighbours are compared with.
        min_class_size: Images of a class below which none are linked.
    """
    random = np.random.default_rng(0)
    num_images = len(labels)
    sample = np.sort(random.permutation(num_images)[:_NUM_MEAN_ROWS])
    mean = _read_rows(features, sample).mean(axis=0)
    pairs = [np.empty((0, 2), np.int64)]
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        if len(rows) < min_class_size:
            continue
        references = np.sort(random.permutation(len(rows))[:num_references])
        reference_features = _normalise(_read_rows(features, rows[references]), mean)
        for first in range(0, len(rows), _CHUNK_ROWS):
            positions = np.arange(first, min(first + _CHUNK_ROWS + window, len(rows)))
            chunk = _normalise(_read_rows(features, rows[positions]), mean)
            similarity = chunk @ reference_features.T
            distance = np.abs(positions[:, None] - references[None])
            is_compared = distance > _EXCLUDED_ROWS
            threshold = np.where(is_compared, similarity, -1.0).max(axis=1)
            threshold[~is_compared.any(axis=1)] = np.inf
            for step in range(1, window + 1):
                similarity = (chunk[:-step] * chunk[step:]).sum(axis=1)
                is_linked = similarity > np.maximum(threshold[:-step], threshold[step:])
                pairs.append(rows[np.stack([positions[:-step], positions[step:]], 1)[is_linked]])
    return connect_pairs(num_images, np.concatenate(pairs))


def _read_rows(features: FeatureArray, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the features of ascending rows, read by slices of consecutive ones."""
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    return np.concatenate(
        [features[int(run[0]) : int(run[-1]) + 1] for run in np.split(rows, starts[1:])]
    )


def _normalise(features: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features (N, D) less their mean, with norm 1."""
    centred = features - mean
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))

"""Folds of multi-label images by iterative stratification, with groups and duplicates together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.multi_label.iterative_split import check_label_counts
from finetune.data.multi_label.label_distribution import LabelDistribution, build_units
from finetune.data.multi_label.multi_hot import count_labels
from finetune.types import Sample

ONLY_TRAINS = 0
"""Fold of images that no fold holds out."""


def assign_label_folds(
    samples: Sequence[Sample], num_folds: int, *, seed: int, min_images: int | None = None
) -> NDArray[np.int64]:
    """Return the fold of each multi-label image, from 1, int64, shape (N,).

    Each label is spread over the folds as evenly as the other labels of its images allow. Images of
    a user-defined group, and duplicates, are in one fold. The folds are a pure function of the seed
    and the images, in any order.

    Every label trains in every fold: where one fold would hold out all images of a label, the
    smallest group of them is in ``ONLY_TRAINS``.

    Args:
        samples: Multi-label images, N of them.
        num_folds: Number of folds.
        seed: Random seed.
        min_images: Minimum number of images of each label; None requires none.

    Raises:
        DataError: A label is too rare.
    """
    if min_images is not None:
        check_label_counts(count_labels(samples), min_images)
    order = sorted(range(len(samples)), key=lambda row: samples[row].path)
    in_order = [samples[row] for row in order]
    units = build_units(in_order)
    fractions = dict.fromkeys(range(1, num_folds + 1), 1 / num_folds)
    fold_of = dict(LabelDistribution(in_order, units, fractions, seed).distribute())
    _keep_each_label_in_training(in_order, units, fold_of)
    folds = np.empty(len(samples), np.int64)
    for number, unit in enumerate(units):
        for row in unit:
            folds[order[row]] = fold_of[number]
    return folds


def _keep_each_label_in_training(
    samples: Sequence[Sample], units: Sequence[Sequence[int]], fold_of: dict[int, int]
) -> None:
    """Hold out no image of the smallest unit of each label that one fold alone has."""
    units_of: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        for name in count_labels(samples[row] for row in unit):
            units_of.setdefault(name, []).append(number)
    for name in sorted(units_of):
        having = units_of[name]
        # with two folds, or a unit that only trains, each fold has the label in training
        if len({fold_of[number] for number in having}) == 1:
            fold_of[min(having, key=lambda number: len(units[number]))] = ONLY_TRAINS

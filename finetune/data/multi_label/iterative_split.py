"""Iterative stratification: splits of multi-label images in which each label keeps its fraction.

Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-label Data" (ECML PKDD,
algorithm 1): the rarest remaining label is distributed first, each of its images to the split that
lacks most of it. Here the unit is a group of images that stay together. Where rounding to an image
of each of many rare labels would enlarge a split, the numbers of all labels are rounded together,
and no split becomes more than a tenth too large.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import ceil, floor

import numpy as np

from finetune.data.multi_label.multi_hot import count_labels
from finetune.errors import DataError
from finetune.evaluation.grouped_folds import encode_groups, merge_groups
from finetune.types import Sample, Split


def split_multi_label(
    samples: Sequence[Sample],
    *,
    val_fraction: float,
    test_fraction: float = 0.0,
    seed: int,
    min_images: int | None = None,
) -> list[Split]:
    """Return a split for each image, with each label in each split in its own proportion.

    Images of a user-defined group, and duplicates, are in one split. Duplicates with other labels
    only train. A label with as many units of images as splits is in each of them, unless there are
    so many rare labels that a split would be more than a tenth too large: then some of these only
    train. Every label is in the training split.

    Args:
        samples: Multi-label images, N of them.
        val_fraction: Fraction for validation, in [0, 1).
        test_fraction: Fraction for test, in [0, 1).
        seed: Random seed; the split is a pure function of it and the other arguments.
        min_images: Minimum number of images of each label; None requires none.

    Raises:
        DataError: A label is too rare.
    """
    counts = count_labels(samples)
    if min_images is not None:
        _check_counts(counts, min_images)
    fractions = {Split.TEST: test_fraction, Split.VAL: val_fraction}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    fractions = {Split.TRAIN: 1 - sum(fractions.values()), **fractions}
    units = _build_units(samples)
    splits = [Split.TRAIN] * len(samples)
    free = [unit for unit in units if not _has_conflict(samples, unit)]
    distribution = _Distribution(samples, free, fractions, seed)
    distribution.distribute()
    for number, split in distribution.assigned.items():
        for row in free[number]:
            splits[row] = split
    _give_each_label_to_train(samples, free, splits)
    return splits


def _check_counts(counts: Counter[str], min_images: int) -> None:
    small = sorted(name for name, count in counts.items() if count < min_images)
    if small:
        shown = ", ".join(f"'{name}' ({counts[name]})" for name in small[:5])
        raise DataError(
            f"Labels with fewer than data.min_images_per_class={min_images} images: {shown}"
            f"{', …' if len(small) > 5 else ''}. Add images, or leave the setting out."
        )


def _build_units(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the rows that stay together, in the order of their first rows."""
    groups = merge_groups(
        encode_groups([sample.group for sample in samples]),
        encode_groups([sample.duplicate_group for sample in samples]),
    )
    units: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        units.setdefault(group, []).append(row)
    return list(units.values())


def _has_conflict(samples: Sequence[Sample], unit: Sequence[int]) -> bool:
    """Return whether duplicates in a unit have different labels."""
    labels_of: dict[str, set[str]] = {}
    for row in unit:
        if samples[row].duplicate_group:
            labels_of.setdefault(samples[row].duplicate_group, set()).add(samples[row].label)
    return any(len(labels) > 1 for labels in labels_of.values())


_MAX_EXCESS = 0.1
"""Fraction of the images of a split by which rare labels may enlarge it."""


class _Distribution:
    """Distribution of units over the splits, the units of the rarest label first.

    Args:
        samples: Multi-label images.
        units: Rows that stay together.
        fractions: Fraction of the images of each split.
        seed: Seed of the order of the units.

    Attributes:
        assigned: Split of each unit that has one.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        units: Sequence[Sequence[int]],
        fractions: Mapping[Split, float],
        seed: int,
    ) -> None:
        self.assigned: dict[int, Split] = {}
        self._num_assigned = Counter[Split]()
        self._fractions = fractions
        self._labels_of = [count_labels(samples[row] for row in unit) for unit in units]
        self._sizes = [len(unit) for unit in units]
        self._space = {split: part * sum(self._sizes) for split, part in fractions.items()}
        self._excess = {
            split: max(_MAX_EXCESS * space, 0.0 if split is Split.TRAIN else 1.0 - space)
            for split, space in self._space.items()
        }
        self._num_units = Counter(name for labels in self._labels_of for name in labels)
        total = Counter[str]()
        for labels in self._labels_of:
            total.update(labels)
        generator = np.random.default_rng(seed)
        self._order = generator.permutation(len(units)).tolist()
        names = [sorted(total)[row] for row in generator.permutation(len(total))]
        self._desired = _compute_desired(
            {name: total[name] for name in names}, self._num_units, fractions, self._excess
        )
        # large groups while there is space for them
        self._order.sort(key=lambda unit: -self._sizes[unit])
        self._units_of: dict[str, list[int]] = {}
        for unit in self._order:
            for name in self._labels_of[unit]:
                self._units_of.setdefault(name, []).append(unit)

    def distribute(self) -> None:
        """Assign a split to each unit."""
        while left := [name for name, count in self._num_units.items() if count > 0]:
            name = min(left, key=lambda name: (self._num_units[name], name))
            for unit in self._units_of[name]:
                self._assign(unit, self._desired[name])
        for unit in self._order:
            self._assign(unit, self._space)

    def _assign(self, unit: int, lack: Mapping[Split, float]) -> None:
        """Assign a unit without a split to the one that lacks most."""
        if unit in self.assigned:
            return
        open_splits = [split for split in self._space if self._has_room(split, self._sizes[unit])]
        split = max(open_splits, key=lambda split: (lack[split], self._space[split]))
        self.assigned[unit] = split
        self._num_assigned[split] += self._sizes[unit]
        self._space[split] -= self._sizes[unit]
        for name, count in self._labels_of[unit].items():
            self._desired[name][split] -= count
            self._num_units[name] -= 1

    def _has_room(self, split: Split, size: int) -> bool:
        """Return whether a split may get a unit, by its fraction of what is assigned so far.

        Rare labels come first: they must not take the room of the frequent ones.
        """
        if split is Split.TRAIN or not self._num_assigned[split]:
            return True
        room = self._fractions[split] * (self._num_assigned.total() + size) + self._excess[split]
        return self._num_assigned[split] + size / 2 <= room


def _compute_desired(
    counts: Mapping[str, int],
    num_units: Mapping[str, int],
    fractions: Mapping[Split, float],
    excess: Mapping[Split, float],
) -> dict[str, dict[Split, float]]:
    """Return how many images of each label each split should get.

    That is at least one if there are enough, unless this enlarges a split too much.

    Args:
        counts: Images of each label, in the order in which what rounding leaves is passed on.
        num_units: Units of each label that stay together.
        fractions: Fraction of the images of each split.
        excess: Images of each split by which rare labels may enlarge it.
    """
    desired: dict[str, dict[Split, float]] = {name: {} for name in counts}
    for split, fraction in fractions.items():
        if split is Split.TRAIN:
            continue
        exact = {name: fraction * count for name, count in counts.items()}
        divisible = {name for name in counts if num_units[name] >= len(fractions)}
        wanted = {
            name: max(1.0, value) if name in divisible else value for name, value in exact.items()
        }
        # an image goes to the split that lacks most of it, which rounds the numbers
        growth = sum(floor(value + 0.5) - exact[name] for name, value in wanted.items())
        if growth > excess[split]:
            wanted = _round_together(exact, divisible, excess[split])
        for name, value in wanted.items():
            desired[name][split] = value
    for name, numbers in desired.items():
        numbers[Split.TRAIN] = counts[name] - sum(numbers.values())
    return desired


def _round_together(
    exact: Mapping[str, float], divisible: Collection[str], excess: float
) -> dict[str, float]:
    """Return whole numbers near those of each label, whose sum is at most ``excess`` larger.

    Args:
        exact: Images of each label that a split should get.
        divisible: Labels that may be in each split.
        excess: How much larger the sum may be, so that more labels have an image.
    """
    numbers: dict[str, float] = {}
    passed_on = 0.0
    for name in sorted(exact, key=lambda name: exact[name]):
        number = floor(exact[name] + passed_on + 0.5)
        numbers[name] = min(max(number, floor(exact[name])), ceil(exact[name]))
        passed_on += exact[name] - numbers[name]
    without = [name for name in numbers if name in divisible and not numbers[name]]
    for name in without[::-1][: floor(excess)]:  # the most frequent ones
        numbers[name] = 1.0
    return numbers


def _give_each_label_to_train(
    samples: Sequence[Sample], units: Sequence[Sequence[int]], splits: list[Split]
) -> None:
    """Move the smallest unit of each label that no training image has to the training split."""
    trained = {
        name
        for sample, split in zip(samples, splits, strict=True)
        if split is Split.TRAIN
        for name in sample.class_names
    }
    for name in sorted(set(count_labels(samples)) - trained):
        having = [u for u in units if any(name in samples[row].class_names for row in u)]
        if any(splits[row] is Split.TRAIN for unit in having for row in unit):
            continue  # moved with another label
        for row in min(having, key=len):
            splits[row] = Split.TRAIN

"""Distribution of multi-label images over parts of a dataset, each with its share of every label.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of
Multi-label Data", ECML PKDD, algorithm 1): the rarest remaining label is distributed first, each of
its images to the part that lacks most of it. Here the unit is a group of images that stay together.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from math import ceil, floor
from typing import Generic, TypeVar

import numpy as np

from finetune.data.multi_label.multi_hot import count_labels
from finetune.evaluation.grouped_folds import encode_groups, merge_groups
from finetune.types import Sample

Part = TypeVar("Part", bound=Hashable)
"""Name of a part: a split, or the number of a fold."""


def build_units(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the rows that stay together, in the order of their first rows."""
    groups = merge_groups(
        encode_groups([sample.group for sample in samples]),
        encode_groups([sample.duplicate_group for sample in samples]),
    )
    units: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        units.setdefault(group, []).append(row)
    return list(units.values())


_MAX_EXCESS = 0.1
"""Fraction of the images of a part by which rare labels may enlarge it."""


class LabelDistribution(Generic[Part]):
    """Distribution of units over the parts, the units of the rarest label first.

    Args:
        samples: Multi-label images.
        units: Rows that stay together.
        fractions: Fraction of the images of each part.
        seed: Seed of the order of the units.
        remainder: Part that gets what rounding leaves, and all that is in no other; None for
            parts that are all alike.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        units: Sequence[Sequence[int]],
        fractions: Mapping[Part, float],
        seed: int,
        *,
        remainder: Part | None = None,
    ) -> None:
        self._assigned: dict[int, Part] = {}
        self._remainder = remainder
        self._num_assigned = Counter[Part]()
        self._fractions = fractions
        self._labels_of = [count_labels(samples[row] for row in unit) for unit in units]
        self._sizes = [len(unit) for unit in units]
        self._space = {part: fraction * sum(self._sizes) for part, fraction in fractions.items()}
        self._excess = {
            part: max(_MAX_EXCESS * space, 0.0 if part == remainder else 1.0 - space)
            for part, space in self._space.items()
        }
        self._num_units = Counter(name for labels in self._labels_of for name in labels)
        total = Counter[str]()
        for labels in self._labels_of:
            total.update(labels)
        generator = np.random.default_rng(seed)
        self._order = generator.permutation(len(units)).tolist()
        names = [sorted(total)[row] for row in generator.permutation(len(total))]
        if remainder is None:
            self._desired = {
                name: {part: fraction * total[name] for part, fraction in fractions.items()}
                for name in names
            }
        else:
            self._desired = _compute_desired(
                {name: total[name] for name in names},
                self._num_units,
                fractions,
                self._excess,
                remainder=remainder,
            )
        # large groups while there is space for them
        self._order.sort(key=lambda unit: -self._sizes[unit])
        self._units_of: dict[str, list[int]] = {}
        for unit in self._order:
            for name in self._labels_of[unit]:
                self._units_of.setdefault(name, []).append(unit)

    def distribute(self) -> Mapping[int, Part]:
        """Return the part of each unit."""
        while left := [name for name, count in self._num_units.items() if count > 0]:
            name = min(left, key=lambda name: (self._num_units[name], name))
            for unit in self._units_of[name]:
                self._assign(unit, self._desired[name])
        for unit in self._order:
            self._assign(unit, self._space)
        return self._assigned

    def _assign(self, unit: int, lack: Mapping[Part, float]) -> None:
        """Assign a unit without a part to the one that lacks most."""
        if unit in self._assigned:
            return
        open_parts = [part for part in self._space if self._has_room(part, self._sizes[unit])]
        # where large groups leave no room anywhere, all are as good
        part = max(open_parts or self._space, key=lambda part: (lack[part], self._space[part]))
        self._assigned[unit] = part
        self._num_assigned[part] += self._sizes[unit]
        self._space[part] -= self._sizes[unit]
        for name, count in self._labels_of[unit].items():
            self._desired[name][part] -= count
            self._num_units[name] -= 1

    def _has_room(self, part: Part, size: int) -> bool:
        """Return whether a part may get a unit, by its fraction of what is assigned so far.

        Rare labels come first: they must not take the room of the frequent ones.
        """
        if part == self._remainder or not self._num_assigned[part]:
            return True
        room = self._fractions[part] * (self._num_assigned.total() + size) + self._excess[part]
        return self._num_assigned[part] + size / 2 <= room


def _compute_desired(
    counts: Mapping[str, int],
    num_units: Mapping[str, int],
    fractions: Mapping[Part, float],
    excess: Mapping[Part, float],
    *,
    remainder: Part,
) -> dict[str, dict[Part, float]]:
    """Return how many images of each label each part should get.

    That is at least one if there are enough, unless this enlarges a part too much.

    Args:
        counts: Images of each label, in the order in which what rounding leaves is passed on.
        num_units: Units of each label that stay together.
        fractions: Fraction of the images of each part.
        excess: Images of each part by which rare labels may enlarge it.
        remainder: Part that gets the other images.
    """
    desired: dict[str, dict[Part, float]] = {name: {} for name in counts}
    for part, fraction in fractions.items():
        if part == remainder:
            continue
        exact = {name: fraction * count for name, count in counts.items()}
        divisible = {name for name in counts if num_units[name] >= len(fractions)}
        wanted = {
            name: max(1.0, value) if name in divisible else value for name, value in exact.items()
        }
        # an image goes to the part that lacks most of it, which rounds the numbers
        growth = sum(floor(value + 0.5) - exact[name] for name, value in wanted.items())
        if growth > excess[part]:
            wanted = _round_together(exact, divisible, excess[part])
        for name, value in wanted.items():
            desired[name][part] = value
    for name, numbers in desired.items():
        numbers[remainder] = counts[name] - sum(numbers.values())
    return desired


def _round_together(
    exact: Mapping[str, float], divisible: Collection[str], excess: float
) -> dict[str, float]:
    """Return whole numbers near those of each label, whose sum is at most ``excess`` larger.

    Args:
        exact: Images of each label that a part should get.
        divisible: Labels that may be in each part.
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

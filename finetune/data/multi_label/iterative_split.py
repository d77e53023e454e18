"""Iterative stratification: splits of multi-label images in which each label keeps its fraction.

Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-label Data" (ECML PKDD,
algorithm 1). Where rounding to an image of each of many rare labels would enlarge a split, the
numbers of all labels are rounded together, and no split becomes more than a tenth too large.
"""

from collections import Counter
from collections.abc import Sequence

from finetune.data.multi_label.label_distribution import LabelDistribution, build_units
from finetune.data.multi_label.multi_hot import count_labels
from finetune.errors import DataError
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
        check_label_counts(counts, min_images)
    fractions = {Split.TEST: test_fraction, Split.VAL: val_fraction}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    fractions = {Split.TRAIN: 1 - sum(fractions.values()), **fractions}
    units = build_units(samples)
    splits = [Split.TRAIN] * len(samples)
    free = [unit for unit in units if not _has_conflict(samples, unit)]
    distribution = LabelDistribution(samples, free, fractions, seed, remainder=Split.TRAIN)
    for number, split in distribution.distribute().items():
        for row in free[number]:
            splits[row] = split
    _give_each_label_to_train(samples, free, splits)
    return splits


def check_label_counts(counts: Counter[str], min_images: int) -> None:
    """Check that each label has enough images.

    Raises:
        DataError: One has fewer; the message names them.
    """
    small = sorted(name for name, count in counts.items() if count < min_images)
    if small:
        shown = ", ".join(f"'{name}' ({counts[name]})" for name in small[:5])
        raise DataError(
            f"Labels with fewer than data.min_images_per_class={min_images} images: {shown}"
            f"{', …' if len(small) > 5 else ''}. Add images, or leave the setting out."
        )


def _has_conflict(samples: Sequence[Sample], unit: Sequence[int]) -> bool:
    """Return whether duplicates in a unit have different labels."""
    labels_of: dict[str, set[str]] = {}
    for row in unit:
        if samples[row].duplicate_group:
            labels_of.setdefault(samples[row].duplicate_group, set()).add(samples[row].label)
    return any(len(labels) > 1 for labels in labels_of.values())


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

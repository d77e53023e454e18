"""Images of a transfer experiment: test images, and selections of training images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.commands.demo.class_ranges import TransferClasses
from finetune.data.split import stratified_split
from finetune.errors import DataError
from finetune.types import Sample, Split
from finetune.units import format_count

_TEST_FRACTION = 0.2
_MIN_IMAGES = 4


def choose_sizes(
    images_per_class: Sequence[int], pool: Sequence[Sample], target: Sequence[str]
) -> list[int | None]:
    """Return the numbers of images per class that are below all images, and None for all.

    Args:
        images_per_class: Numbers to choose from.
        pool: Training images.
        target: Classes of the target.
    """
    classes = Counter(sample.label for sample in pool if sample.label in target)
    largest = max(classes.values())
    return [*(size for size in sorted(set(images_per_class)) if size < largest), None]


def split_test(
    root: Path, samples: Sequence[Sample], classes: TransferClasses, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Return the images for training and test, with absolute paths.

    Without a test split, a fifth of each class is drawn for it. Images of a validation split are
    training images: every run holds out its own.

    Raises:
        DataError: A class has too few images.
    """
    used = [
        replace(sample, path=str(root / sample.path))
        for sample in samples
        if sample.label in (*classes.source, *classes.target)
    ]
    test = [sample for sample in used if sample.split is Split.TEST]
    pool = [sample for sample in used if sample.split is not Split.TEST]
    if not test:
        splits = stratified_split(
            [sample.label for sample in pool],
            val_fraction=0.0,
            test_fraction=_TEST_FRACTION,
            seed=seed,
            groups=[sample.group for sample in pool],
        )
        parts = list(zip(pool, splits, strict=True))
        pool = [sample for sample, split in parts if split is not Split.TEST]
        test = [sample for sample, split in parts if split is Split.TEST]
    for name in (*classes.source, *classes.target):
        count = sum(sample.label == name for sample in pool)
        if count < _MIN_IMAGES or all(sample.label != name for sample in test):
            raise DataError(
                f"Class '{name}' has {format_count(count, 'training image')} and "
                f"{format_count(sum(s.label == name for s in test), 'test image')}; the experiment "
                f"needs {_MIN_IMAGES} and 1. Add images, or name other classes."
            )
    return pool, test


def select_images(
    pool: Sequence[Sample], classes: Sequence[str], size: int | None, seed: int
) -> list[Sample]:
    """Return at most ``size`` images of each class; a larger selection contains a smaller one."""
    chosen: list[Sample] = []
    for name in classes:
        images = [sample for sample in pool if sample.label == name]
        order = np.random.default_rng(seed).permutation(len(images))
        chosen += [images[row] for row in order[:size]]
    return chosen

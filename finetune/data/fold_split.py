"""Folds of a cross-validation: stratified, seeded, with groups and duplicates kept together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetune.data.manifest import Manifest
from finetune.data.multi_label.iterative_folds import ONLY_TRAINS, assign_label_folds
from finetune.data.training_data import group_samples
from finetune.errors import DataError
from finetune.evaluation.grouped_folds import assign_folds, encode_groups, find_testable_rows
from finetune.types import Sample, Split
from finetune.units import format_count

NEVER_HELD_OUT = ONLY_TRAINS
"""Fold of images that train in every fold."""

_MAX_SHOWN = 5


def assign_sample_folds(
    samples: Sequence[Sample], num_folds: int, *, seed: int, min_images: int | None = None
) -> NDArray[np.int64]:
    """Return the fold of each image, from 1, int64, shape (N,).

    Each class is spread evenly over the folds; of multi-label images each label is, as far as the
    other labels of its images allow. Images of a user-defined group, and duplicates, are in one
    fold.

    Args:
        samples: Images, shape (N,).
        num_folds: Number of folds.
        seed: Random seed; the folds are a pure function of it and the images.
        min_images: Minimum number of images per class; None requires that each fold can hold out an
            image of each class. Otherwise, and of multi-label images, a fold may have none, and the
            images of a class that are all in one group are ``NEVER_HELD_OUT``.

    Raises:
        DataError: A class is too small, or a fold would be empty.
    """
    if any(sample.labels is not None for sample in samples):
        folds = assign_label_folds(samples, num_folds, seed=seed, min_images=min_images)
    else:
        folds = _assign_class_folds(samples, num_folds, seed=seed, min_images=min_images)
    if set(range(1, num_folds + 1)) - set(folds.tolist()):
        raise DataError(_describe_empty_fold(samples, folds, num_folds))
    return folds


def _describe_empty_fold(
    samples: Sequence[Sample], folds: NDArray[np.int64], num_folds: int
) -> str:
    """Return why images cannot fill the folds, with a remedy."""
    is_held_out = folds != NEVER_HELD_OUT
    num_only_train = int((~is_held_out).sum())
    groups = np.unique(group_samples(samples)[is_held_out])
    images = format_count(int(is_held_out.sum()), "image")
    kind = "class" if samples[0].labels is None else "label"
    cause = ""
    if num_only_train:
        cause = (
            f"{format_count(num_only_train, 'image')} only train, so that each {kind} is in the "
            f"training images of every fold. The other "
        )
    if len(groups) < is_held_out.sum():
        images += f" in {format_count(len(groups), 'group')} that stay together"
    remedy = "Add images" + (f" of each {kind}" if num_only_train else "")
    if num_folds > 2 and len(groups) > 1:
        remedy += ", or use fewer folds (--folds)"
    return f"{cause}{images} cannot fill {num_folds} folds. {remedy}."


def _assign_class_folds(
    samples: Sequence[Sample], num_folds: int, *, seed: int, min_images: int | None
) -> NDArray[np.int64]:
    """Return the fold of each image of one class, from 1, shape (N,); see above."""
    groups = group_samples(samples)
    _check_classes(samples, groups, num_folds, min_images)
    order = np.random.default_rng(seed).permutation(len(samples))
    names = sorted({sample.label for sample in samples})
    index = {name: number for number, name in enumerate(names)}
    labels = np.array([index[samples[row].label] for row in order], np.int64)
    shuffled = encode_groups([str(group) for group in groups[order]])
    folds = assign_folds(labels, num_folds, groups=shuffled)
    only_train = set(shuffled[~find_testable_rows(labels, folds)].tolist())
    folds = np.where(np.isin(shuffled, list(only_train)), NEVER_HELD_OUT, folds + 1)
    result = np.empty_like(folds)
    result[order] = folds
    return result


def build_fold_manifest(manifest: Manifest, folds: NDArray[np.int64], fold: int) -> Manifest:
    """Return the manifest of one fold: its images validate, those of the others train.

    Args:
        manifest: Images with the splits train and test.
        folds: Fold of each training image, in manifest order, shape (N,).
        fold: Fold that is held out, from 1.
    """
    fold_of = iter(folds.tolist())
    samples = tuple(
        replace(sample, split=Split.VAL)
        if sample.split is Split.TRAIN and next(fold_of) == fold
        else sample
        for sample in manifest.samples
    )
    return replace(manifest, samples=samples)


def merge_validation(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples whose given validation images are training images, which the folds divide."""
    return [
        replace(sample, split=Split.TRAIN) if sample.split is Split.VAL else sample
        for sample in samples
    ]


def _check_classes(
    samples: Sequence[Sample], groups: NDArray[np.int64], num_folds: int, min_images: int | None
) -> None:
    """Check that each class has enough images, and independent ones, for the folds.

    Raises:
        DataError: It has not; the message names the classes and a number of folds that works.
    """
    counts = Counter(sample.label for sample in samples)
    if min_images is not None:
        small = {name: count for name, count in counts.items() if count < min_images}
        if small:
            raise DataError(
                f"{_format_classes(small)} than data.min_images_per_class={min_images}. Add "
                f"images, remove the class, or lower the setting."
            )
        return
    members = {
        (sample.label, group) for sample, group in zip(samples, groups.tolist(), strict=True)
    }
    units = Counter(label for label, _ in members)
    small = {name: count for name, count in units.items() if count < num_folds}
    if not small:
        return
    largest = min(small.values())
    is_grouped = any(counts[name] > units[name] for name in small)
    advice = f"use --folds {largest}" if largest >= 2 else "remove the class"
    reason = " Images of a group, and duplicates, stay in one fold and count once." * is_grouped
    raise DataError(
        f"{_format_classes(small)} than the {num_folds} folds, which each hold out some of every "
        f"class.{reason} Add images, {advice}, or set data.min_images_per_class=1: then the "
        f"metrics of a fold leave out the classes that it lacks."
    )


def _format_classes(counts: dict[str, int]) -> str:
    """Return the classes with the fewest images, and their number, as the start of a sentence."""
    ordered = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    shown = ", ".join(f"'{name}' ({count})" for name, count in ordered[:_MAX_SHOWN])
    more = f" and {len(ordered) - _MAX_SHOWN} more" if len(ordered) > _MAX_SHOWN else ""
    subject = "Class" if len(ordered) == 1 else "Classes"
    verb = "has" if len(ordered) == 1 else "have"
    return f"{subject} {shown}{more} {verb} fewer images"

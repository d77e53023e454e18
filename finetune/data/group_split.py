"""Splits that keep user-defined groups of images together."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from finetune.errors import DataError
from finetune.types import Split

_DUPLICATES_PREFIX = "copies "
"""Prefix of duplicate groups among merged groups. Not renamed: scikit-learn sorts the groups by
name before it shuffles them, so another prefix would change the split that a seed gives."""


def split_merged_groups(
    rows: list[int],
    labels: Sequence[str],
    groups: Sequence[str],
    duplicate_groups: Sequence[str],
    fractions: Mapping[Split, float],
    seed: int,
) -> list[Split]:
    """Return a split that keeps groups together, and duplicates with them.

    Args:
        rows: Rows to divide; the other images only train.
        labels: Class names, shape (N,).
        groups: User-defined group of each image, "" for none, shape (N,).
        duplicate_groups: Id of the duplicates of each image, "" for none, shape (N,).
        fractions: Fraction of the images of each held-out split.
        seed: Random seed.

    Raises:
        DataError: The merged groups cannot be divided.
    """
    num_splits = 1 + len(fractions)
    merged = _merge_groups(groups, duplicate_groups)
    rows = filter_splittable(rows, labels, duplicate_groups, num_splits)
    counts, sizes = Counter(labels), Counter(duplicate_groups)
    min_fraction = min(fractions.values(), default=0.0)
    large = {
        merged[row]
        for row in rows
        if duplicate_groups[row]
        and sizes[duplicate_groups[row]] > max(1, round(min_fraction * counts[labels[row]]))
    }
    others = {(labels[row], merged[row] or row) for row in rows if merged[row] not in large}
    num_others = Counter(label for label, _ in others)
    rows = [row for row in rows if merged[row] not in large or num_others[labels[row]] < num_splits]
    return split_groups(rows, labels, merged, fractions, seed, match_size=True)


def split_groups(
    rows: list[int],
    labels: Sequence[str],
    groups: Sequence[str],
    fractions: Mapping[Split, float],
    seed: int,
    *,
    match_size: bool = False,
) -> list[Split]:
    """Return a split that keeps groups together.

    Args:
        rows: Rows to divide; the other images only train.
        labels: Class names, shape (N,).
        groups: Group of each image, "" for none, shape (N,).
        fractions: Fraction of the images of each held-out split.
        seed: Random seed.
        match_size: Whether to hold out the folds closest to the fractions of all images, counting
            those that only train; otherwise the first folds.

    Raises:
        DataError: The groups cannot be divided.
    """
    splits = [Split.TRAIN] * len(labels)
    # a group with an image of a class that is too small to split trains as a whole
    train_groups = {groups[row] for row in set(range(len(labels))) - set(rows)} - {""}
    rows = [row for row in rows if groups[row] not in train_groups]
    assigned = 0.0
    for split, fraction in fractions.items():
        if not rows:
            break
        rest_fraction = fraction / (1 - assigned)
        if match_size:  # images that only train count towards the fraction, too
            rest_fraction *= splits.count(Split.TRAIN) / len(rows)
        held_out = _hold_out_groups(
            rows, labels, groups, rest_fraction, seed, match_size=match_size
        )
        for row in held_out:
            splits[row] = split
        rows = sorted(set(rows) - set(held_out))
        assigned += fraction
    return splits


def filter_splittable(
    rows: Sequence[int], labels: Sequence[str], duplicate_groups: Sequence[str], num_splits: int
) -> list[int]:
    """Return the rows without duplicates across classes, and without classes left too small."""
    labels_of: dict[str, set[str]] = {}
    for group, label in zip(duplicate_groups, labels, strict=True):
        labels_of.setdefault(group, set()).add(label)
    consistent = [
        row
        for row in rows
        if not duplicate_groups[row] or len(labels_of[duplicate_groups[row]]) < 2
    ]
    distinct = {(labels[row], duplicate_groups[row] or row) for row in consistent}
    counts = Counter(label for label, _ in distinct)
    return [row for row in consistent if counts[labels[row]] >= num_splits]


def _merge_groups(groups: Sequence[str], duplicate_groups: Sequence[str]) -> list[str]:
    """Return groups that also contain the duplicates of their images (union-find by name)."""
    parent_of = dict(zip(groups, groups, strict=True))

    def find_root(name: str) -> str:
        while parent_of.setdefault(name, name) != name:
            name = parent_of[name]
        return name

    prefix = _DUPLICATES_PREFIX
    while any(group.startswith(prefix) for group in groups):  # a name of the user's
        prefix += "of "
    duplicates = [prefix + name if name else "" for name in duplicate_groups]
    for group, duplicate in zip(groups, duplicates, strict=True):
        if group and duplicate:
            parent_of[find_root(duplicate)] = find_root(group)
    return [
        find_root(group or duplicate) if group or duplicate else ""
        for group, duplicate in zip(groups, duplicates, strict=True)
    ]


def _hold_out_groups(
    rows: list[int],
    labels: Sequence[str],
    groups: Sequence[str],
    fraction: float,
    seed: int,
    *,
    match_size: bool,
) -> list[int]:
    """Return the rows of a fold of groups with every class inside and outside of it.

    Args:
        rows: Rows to divide.
        labels: Class names, shape (N,).
        groups: Group of each image, "" for none, shape (N,).
        fraction: Fraction of ``rows`` to hold out, in (0, 1).
        seed: Random seed of the folds.
        match_size: Whether to take the fold closest to ``fraction`` instead of the first one.

    Raises:
        DataError: A class is in one group only, or no fold has every class on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    keys = [f"group {groups[row]}" if groups[row] else f"row {row}" for row in rows]
    classes = [labels[row] for row in rows]
    num_folds = max(2, round(1 / fraction))
    keys_of_class: dict[str, set[str]] = {}
    for name, key in zip(classes, keys, strict=True):
        keys_of_class.setdefault(name, set()).add(key)
    for name, class_keys in sorted(keys_of_class.items()):
        if len(class_keys) < 2:
            raise DataError(
                f"All images of class '{name}' are in one group ({next(iter(class_keys))}), which "
                f"cannot be on both sides of a split. If data.group_by found the groups, change "
                f"its pattern, which may capture the class; else divide the group, or add a column "
                f"of splits."
            )
    num_folds = min(num_folds, len(set(keys)), max(Counter(classes).values()))
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    all_classes = set(classes)
    with warnings.catch_warnings():
        # the loop below handles classes with fewer images than folds
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = list(splitter.split(np.zeros(len(rows)), classes, keys))
    candidates = []
    for kept, held_out in folds:
        sides = ({classes[i] for i in kept}, {classes[i] for i in held_out})
        if sides == (all_classes, all_classes):
            candidates.append([rows[i] for i in held_out])
    if not candidates:
        raise DataError(
            f"None of {num_folds} folds keeps every group together and has every class on both "
            f"sides. Add a split column, use fewer classes, or change data.val_fraction."
        )
    if not match_size:
        return candidates[0]
    target_size = fraction * len(rows)
    return min(candidates, key=lambda fold: abs(len(fold) - target_size))

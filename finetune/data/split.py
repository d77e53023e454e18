"""Splits images into train, validation and test: stratified, seeded, groups kept together."""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from finetune.errors import DataError
from finetune.types import Split


def stratified_split(
    labels: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float = 0.0,
    seed: int,
    groups: Sequence[str] | None = None,
    min_images: int | None = None,
) -> list[Split]:
    """Return a split for each image, with every class in every split in its own proportion.

    Args:
        labels: Class names, shape (N,).
        val_fraction: Share for validation, in [0, 1).
        test_fraction: Share for the test, in [0, 1).
        seed: The split is a pure function of the labels and this.
        groups: Images of one non-empty group stay on one side; shape (N,).
        min_images: Fewest images a class may have; None asks for one in each split. Classes that
            are allowed by it but too small to split only train.

    Raises:
        DataError: A class is too small, or its groups cannot be divided.
    """
    shares = {Split.TEST: test_fraction, Split.VAL: val_fraction}
    shares = {split: share for split, share in shares.items() if share > 0}
    needed = 1 + len(shares)
    counts = Counter(labels)
    floor = needed if min_images is None else min_images
    small = sorted(name for name, count in counts.items() if count < floor)
    if small:
        raise DataError(_too_small(small, counts, floor))
    splits = [Split.TRAIN] * len(labels)
    rows = [row for row, label in enumerate(labels) if counts[label] >= needed]
    if groups is not None:
        # a group that holds an image of a class too small to split trains as a whole
        training = {groups[row] for row in set(range(len(labels))) - set(rows)} - {""}
        rows = [row for row in rows if groups[row] not in training]
    taken = 0.0
    for split, share in shares.items():
        held_out = _hold_out(rows, labels, groups, share / (1 - taken), seed)
        for row in held_out:
            splits[row] = split
        rows = sorted(set(rows) - set(held_out))
        taken += share
    return splits


def _hold_out(
    rows: list[int],
    labels: Sequence[str],
    groups: Sequence[str] | None,
    share: float,
    seed: int,
) -> list[int]:
    from sklearn.model_selection import train_test_split  # over a second, which only a split pays

    if groups is not None and any(groups):
        return _hold_out_groups(rows, labels, groups, share, seed)
    by_class: dict[str, list[int]] = {}
    for row in rows:
        by_class.setdefault(labels[row], []).append(row)
    held_out: list[int] = []
    for members in by_class.values():
        # one class at a time: scikit-learn's stratify gives a small class no image at all
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out += train_test_split(members, test_size=count, random_state=seed)[1]
    return held_out


def _hold_out_groups(
    rows: list[int], labels: Sequence[str], groups: Sequence[str], share: float, seed: int
) -> list[int]:
    from sklearn.model_selection import StratifiedGroupKFold

    keys = [f"group {groups[row]}" if groups[row] else f"row {row}" for row in rows]
    classes = [labels[row] for row in rows]
    folds = max(2, round(1 / share))
    of_class: dict[str, set[str]] = {}
    for name, key in zip(classes, keys, strict=True):
        of_class.setdefault(name, set()).add(key)
    for name, members in sorted(of_class.items()):
        if len(members) < 2:
            raise DataError(
                f"Class '{name}' lies in one group ({next(iter(members))}), so it cannot stand on "
                f"both sides of a split. Give a split column, or divide the group."
            )
    folds = min(folds, len(set(keys)), max(Counter(classes).values()))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    wanted = set(classes)
    with warnings.catch_warnings():
        # a class with fewer images than folds is what the loop below looks for
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        parts = list(splitter.split(np.zeros(len(rows)), classes, keys))
    for kept, held_out in parts:
        sides = ({classes[i] for i in kept}, {classes[i] for i in held_out})
        if sides == (wanted, wanted):
            return [rows[i] for i in held_out]
    raise DataError(
        f"No split into {folds} parts keeps every group whole and every class on both sides. "
        f"Give a split column, use fewer classes, or change data.val_fraction."
    )


def _too_small(small: list[str], counts: Counter[str], floor: int) -> str:
    shown = ", ".join(f"'{name}' ({counts[name]})" for name in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    classes = "Class" if len(small) == 1 else "Classes"
    return (
        f"{classes} too small to split: {shown}{more}; at least {floor} images are needed. Add "
        f"images, remove the folder, or set data.min_images_per_class=1 to train on them only."
    )

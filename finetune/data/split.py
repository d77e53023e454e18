"""Splits images into train, validation and test: stratified, seeded, groups kept together."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

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
    duplicate_groups: Sequence[str] | None = None,
    min_images: int | None = None,
) -> list[Split]:
    """Return a split for each image, with every class in every split in its own proportion.

    Args:
        labels: Class names, shape (N,).
        val_fraction: Share for validation, in [0, 1).
        test_fraction: Share for the test, in [0, 1).
        seed: The split is a pure function of the labels and this.
        groups: Images of one non-empty group stay on one side; shape (N,).
        duplicate_groups: The same for images that show the same, shape (N,). Those that stand in several
            classes only train, and so do more of them than their class holds out, unless it has
            no others to hold out: then the fewest are. A class that shows too few things for all
            splits only trains. Copies of images of several groups join these; where that leaves
            nothing to divide, the groups alone are kept whole, and copies may stand on both sides.
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
        raise DataError(_format_small_classes(small, counts, floor))
    rows = [row for row, label in enumerate(labels) if counts[label] >= needed]
    duplicate_groups = (
        duplicate_groups if duplicate_groups is not None and any(duplicate_groups) else None
    )
    if groups is None or not any(groups):
        if duplicate_groups is not None:
            rows = _filter_splittable(rows, labels, duplicate_groups, needed)
        return _split_units(_group_duplicates(rows, duplicate_groups), labels, shares, seed)
    if duplicate_groups is not None:
        with suppress(DataError):
            splits = _split_merged_groups(rows, labels, groups, duplicate_groups, shares, seed)
            if set(splits) >= shares.keys():
                return splits
    return _split_groups(rows, labels, groups, shares, seed)


def _group_duplicates(
    rows: Sequence[int], duplicate_groups: Sequence[str] | None
) -> list[list[int]]:
    """Return the rows, those that show the same together, in the order of their first."""
    by_word: dict[str | int, list[int]] = {}
    for row in rows:
        by_word.setdefault(
            (duplicate_groups[row] if duplicate_groups is not None else "") or row, []
        ).append(row)
    return list(by_word.values())


def _split_units(
    units: list[list[int]], labels: Sequence[str], fractions: Mapping[Split, float], seed: int
) -> list[Split]:
    """Return a split for each image; each unit is of one class and stays whole."""
    splits = [Split.TRAIN] * len(labels)
    left = Counter(labels)
    by_class: dict[str, list[list[int]]] = {}
    for unit in units:
        by_class.setdefault(labels[unit[0]], []).append(unit)
    taken = 0.0
    for number, (split, share) in enumerate(fractions.items()):
        for name, members in by_class.items():
            # one class at a time: scikit-learn's stratify gives a small class no image at all
            wanted = max(1, round(share / (1 - taken) * left[name]))
            most = len(members) - (len(fractions) - number)  # one for each split that follows
            chosen = _select_units(_shuffle_units(members, seed), wanted, most)
            by_class[name] = [unit for unit in members if unit not in chosen]
            for row in (row for unit in chosen for row in unit):
                splits[row] = split
                left[name] -= 1
        taken += share
    return splits


def _shuffle_units(units: list[list[int]], seed: int) -> list[list[int]]:
    from sklearn.model_selection import train_test_split  # over a second, which only a split pays

    if len(units) < 2:
        return units
    last, first = train_test_split(
        list(range(len(units))), test_size=len(units) - 1, random_state=seed
    )
    return [units[place] for place in (*first, *last)]


def _select_units(units: list[list[int]], target_size: int, max_units: int) -> list[list[int]]:
    """Return the first units that come near to so many images together, and are not too many."""
    chosen: list[list[int]] = []
    rest: list[list[int]] = []
    total = 0
    for unit in units:
        fits = len(chosen) < max_units and total + len(unit) <= target_size
        (chosen if fits else rest).append(unit)
        total += len(unit) if fits else 0
    if len(chosen) < max_units:
        fewest = min(rest, key=len)
        nearer = (
            len(fewest) <= target_size and total + len(fewest) - target_size < target_size - total
        )
        if nearer or not chosen:
            chosen.append(fewest)
    return chosen


def _split_merged_groups(
    rows: list[int],
    labels: Sequence[str],
    groups: Sequence[str],
    duplicate_groups: Sequence[str],
    fractions: Mapping[Split, float],
    seed: int,
) -> list[Split]:
    """Return a split that keeps groups whole, and copies with them.

    Raises:
        DataError: They cannot be divided.
    """
    needed = 1 + len(fractions)
    united = _merge_groups(groups, duplicate_groups)
    rows = _filter_splittable(rows, labels, duplicate_groups, needed)
    counts, sizes = Counter(labels), Counter(duplicate_groups)
    least = min(fractions.values(), default=0.0)
    large = {
        united[row]
        for row in rows
        if duplicate_groups[row]
        and sizes[duplicate_groups[row]] > max(1, round(least * counts[labels[row]]))
    }
    others = {(labels[row], united[row] or row) for row in rows if united[row] not in large}
    left = Counter(label for label, _ in others)
    rows = [row for row in rows if united[row] not in large or left[labels[row]] < needed]
    return _split_groups(rows, labels, united, fractions, seed, match_size=True)


def _split_groups(
    rows: list[int],
    labels: Sequence[str],
    groups: Sequence[str],
    fractions: Mapping[Split, float],
    seed: int,
    *,
    match_size: bool = False,
) -> list[Split]:
    """Return a split that keeps groups whole; rows that are not named only train.

    Raises:
        DataError: They cannot be divided.
    """
    splits = [Split.TRAIN] * len(labels)
    # a group that holds an image of a class too small to split trains as a whole
    training = {groups[row] for row in set(range(len(labels))) - set(rows)} - {""}
    rows = [row for row in rows if groups[row] not in training]
    taken = 0.0
    for split, share in fractions.items():
        if not rows:
            break
        part = share / (1 - taken)
        if match_size:  # what only trains counts, too
            part *= splits.count(Split.TRAIN) / len(rows)
        held_out = _hold_out_groups(rows, labels, groups, part, seed, match_size=match_size)
        for row in held_out:
            splits[row] = split
        rows = sorted(set(rows) - set(held_out))
        taken += share
    return splits


def _filter_splittable(
    rows: Sequence[int], labels: Sequence[str], duplicate_groups: Sequence[str], num_splits: int
) -> list[int]:
    """Return the rows less what shows the same in several classes, and classes left too small."""
    classes: dict[str, set[str]] = {}
    for word, label in zip(duplicate_groups, labels, strict=True):
        classes.setdefault(word, set()).add(label)
    alone = [
        row for row in rows if not duplicate_groups[row] or len(classes[duplicate_groups[row]]) < 2
    ]
    shown = {(labels[row], duplicate_groups[row] or row) for row in alone}
    left = Counter(label for label, _ in shown)
    return [row for row in alone if left[labels[row]] >= num_splits]


def _merge_groups(groups: Sequence[str], duplicate_groups: Sequence[str]) -> list[str]:
    """Return groups of which copies are members, too."""
    name_of = dict(zip(groups, groups, strict=True))

    def name(word: str) -> str:
        while name_of.setdefault(word, word) != word:
            word = name_of[word]
        return word

    prefix = "copies "
    while any(group.startswith(prefix) for group in groups):  # the user's own
        prefix += "of "
    words = [prefix + word if word else "" for word in duplicate_groups]
    for group, word in zip(groups, words, strict=True):
        if group and word:
            name_of[name(word)] = name(group)
    return [
        name(group or word) if group or word else ""
        for group, word in zip(groups, words, strict=True)
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
    from sklearn.model_selection import StratifiedGroupKFold

    keys = [f"group {groups[row]}" if groups[row] else f"row {row}" for row in rows]
    classes = [labels[row] for row in rows]
    folds = max(2, round(1 / fraction))
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
    found = []
    for kept, held_out in parts:
        sides = ({classes[i] for i in kept}, {classes[i] for i in held_out})
        if sides == (wanted, wanted):
            found.append([rows[i] for i in held_out])
    if found:
        aim = fraction * len(rows)
        return min(found, key=lambda part: abs(len(part) - aim)) if match_size else found[0]
    raise DataError(
        f"No split into {folds} parts keeps every group whole and every class on both sides. "
        f"Give a split column, use fewer classes, or change data.val_fraction."
    )


def _format_small_classes(small: list[str], counts: Counter[str], min_images: int) -> str:
    shown = ", ".join(f"'{name}' ({counts[name]})" for name in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    classes = "Class" if len(small) == 1 else "Classes"
    return (
        f"{classes} too small to split: {shown}{more}; at least {min_images} images are needed. Add "
        f"images, remove the folder, or set data.min_images_per_class=1 to train on them only."
    )

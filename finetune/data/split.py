"""Stratified, seeded splits into train, validation and test that keep groups together."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from finetune.data.group_split import filter_splittable, split_groups, split_merged_groups
from finetune.errors import DataError
from finetune.types import Split


def find_drawn_splits(given: Collection[Split | None]) -> set[Split]:
    """Return the held-out splits that are drawn from training images if the data give some splits.

    A given validation split leaves the training images undivided.
    """
    return set() if Split.VAL in given else {Split.VAL, Split.TEST} - set(given)


def count_splits(val_fraction: float, test_fraction: float) -> int:
    """Return the number of splits that images are divided into, that of training included."""
    return 1 + (val_fraction > 0) + (test_fraction > 0)


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

    Without groups each class gives ``round(fraction * count)`` images to a split, at least 1, or as
    close to that as its duplicate groups allow. scikit-learn's ``StratifiedGroupKFold`` divides
    user-defined groups; it is not used for duplicates alone, because it holds out 1 / folds of the
    images and not the requested fraction of each class.

    Args:
        labels: Class names, shape (N,).
        val_fraction: Fraction for validation, in [0, 1).
        test_fraction: Fraction for test, in [0, 1).
        seed: Random seed; the split is a pure function of it and the other arguments.
        groups: User-defined group of each image, "" for none, shape (N,). A group is not divided.
        duplicate_groups: Id of the duplicates of each image, "" for none, shape (N,). They are not
            divided either. Duplicates with several labels only train, and so do duplicate groups
            larger than what their class holds out, unless the class has nothing else to hold out:
            then the smallest group is held out. A class with fewer distinct images than splits only
            trains. Duplicates across several user-defined groups merge these; if that leaves
            nothing to divide, only the user-defined groups are kept together.
        min_images: Minimum number of images per class; None requires one for each split. Classes
            that satisfy it but are too small to split only train.

    Raises:
        DataError: A class is too small, or its groups cannot be divided.
    """
    fractions = {Split.TEST: test_fraction, Split.VAL: val_fraction}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    num_splits = count_splits(val_fraction, test_fraction)
    counts = Counter(labels)
    min_count = num_splits if min_images is None else min_images
    small = sorted(name for name, count in counts.items() if count < min_count)
    if small:
        raise DataError(_format_small_classes(small, counts, min_count))
    rows = [row for row, label in enumerate(labels) if counts[label] >= num_splits]
    if duplicate_groups is not None and not any(duplicate_groups):
        duplicate_groups = None
    if groups is None or not any(groups):
        if duplicate_groups is not None:
            rows = filter_splittable(rows, labels, duplicate_groups, num_splits)
        return _split_units(_group_duplicates(rows, duplicate_groups), labels, fractions, seed)
    if duplicate_groups is not None:
        with suppress(DataError):
            splits = split_merged_groups(rows, labels, groups, duplicate_groups, fractions, seed)
            if set(splits) >= fractions.keys():
                return splits
    return split_groups(rows, labels, groups, fractions, seed)


def explain_missing_split(labels: Sequence[str], duplicate_groups: Sequence[str]) -> str:
    """Return why duplicates leave no image for a drawn split, and what to do; "" if they do not.

    Args:
        labels: Class names, shape (N,).
        duplicate_groups: Id of the duplicates of each image, "" for none, shape (N,).
    """
    labels_of: dict[str, set[str]] = {}
    for group, label in zip(duplicate_groups, labels, strict=True):
        labels_of.setdefault(group, set()).add(label)
    conflicts = {group for group, names in labels_of.items() if group and len(names) > 1}
    relevant = conflicts or labels_of.keys() - {""}
    count = sum(group in relevant for group in duplicate_groups)
    if not count:
        return ""
    images = f"{'all' if count == len(labels) else count} of {len(labels)} images"
    if not conflicts:
        return (
            f"{images} are duplicates, which stay in one split, and no class has enough distinct "
            f"images for two. Add images, or give the images their splits."
        )
    names = sorted(set().union(*(labels_of[group] for group in conflicts)))
    shown = ", ".join(f"'{name}'" for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"{images} have copies in another class ({shown}). One of the labels is wrong, so that "
        f"they only train, which leaves nothing to hold out. Remove the wrong copies; finetune "
        f"inspect lists them."
    )


def _group_duplicates(
    rows: Sequence[int], duplicate_groups: Sequence[str] | None
) -> list[list[int]]:
    """Return units of rows, duplicates together, in the order of their first rows."""
    units: dict[str | int, list[int]] = {}
    for row in rows:
        group = "" if duplicate_groups is None else duplicate_groups[row]
        units.setdefault(group or row, []).append(row)
    return list(units.values())


def _split_units(
    units: list[list[int]], labels: Sequence[str], fractions: Mapping[Split, float], seed: int
) -> list[Split]:
    """Return a split for each image; each unit has one class and is not divided."""
    splits = [Split.TRAIN] * len(labels)
    num_left = Counter(labels)
    units_of_class: dict[str, list[list[int]]] = {}
    for unit in units:
        units_of_class.setdefault(labels[unit[0]], []).append(unit)
    assigned = 0.0
    for number, (split, fraction) in enumerate(fractions.items()):
        for name, class_units in units_of_class.items():
            # one class at a time: scikit-learn's stratify may give a small class no image at all
            target_size = max(1, round(fraction / (1 - assigned) * num_left[name]))
            max_units = len(class_units) - (len(fractions) - number)  # one for each later split
            selected = _select_units(_shuffle_units(class_units, seed), target_size, max_units)
            units_of_class[name] = [unit for unit in class_units if unit not in selected]
            for row in (row for unit in selected for row in unit):
                splits[row] = split
                num_left[name] -= 1
        assigned += fraction
    return splits


def _shuffle_units(units: list[list[int]], seed: int) -> list[list[int]]:
    """Return the units in the order of scikit-learn's ``train_test_split``."""
    from sklearn.model_selection import train_test_split  # imports for over a second

    if len(units) < 2:
        return units
    last, first = train_test_split(
        list(range(len(units))), test_size=len(units) - 1, random_state=seed
    )
    return [units[position] for position in (*first, *last)]


def _select_units(units: list[list[int]], target_size: int, max_units: int) -> list[list[int]]:
    """Return at most ``max_units`` of the first units, with nearly ``target_size`` images."""
    selected: list[list[int]] = []
    rest: list[list[int]] = []
    total = 0
    for unit in units:
        fits = len(selected) < max_units and total + len(unit) <= target_size
        (selected if fits else rest).append(unit)
        total += len(unit) if fits else 0
    if len(selected) < max_units:
        smallest = min(rest, key=len)
        is_closer = (
            len(smallest) <= target_size
            and total + len(smallest) - target_size < target_size - total
        )
        if is_closer or not selected:
            selected.append(smallest)
    return selected


def _format_small_classes(small: list[str], counts: Counter[str], min_images: int) -> str:
    shown = ", ".join(f"'{name}' ({counts[name]})" for name in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    classes = "Class" if len(small) == 1 else "Classes"
    return (
        f"{classes} too small to split: {shown}{more}; at least {min_images} images are needed. "
        f"Add images, remove the class, or set data.min_images_per_class=1 to train on them only."
    )

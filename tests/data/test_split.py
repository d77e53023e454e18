"""Tests of splits: fractions, classes, groups and duplicates."""

import warnings
from collections import Counter

import pytest
from sklearn.model_selection import train_test_split

from finetune.data.split import find_drawn_splits, stratified_split
from finetune.errors import DataError
from finetune.types import Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def interleaved(**counts: int) -> list[str]:
    """Return class names with the classes mixed evenly: a, b, a, b, a."""
    positions = [(i / n, name) for name, n in counts.items() for i in range(n)]
    return [name for _, name in sorted(positions)]


def count_by_label_and_split(labels: list[str], splits: list[Split]) -> Counter[tuple[str, Split]]:
    return Counter(zip(labels, splits, strict=True))


def test_split_every_class_gives_its_fraction() -> None:
    counts = {"a": 100, "b": 50, "c": 10}
    labels = interleaved(**counts)
    splits = stratified_split(labels, val_fraction=0.2, test_fraction=0.1, seed=0)
    num_images = count_by_label_and_split(labels, splits)
    for name, count in counts.items():
        assert num_images[name, VAL] == round(0.2 * count)
        assert num_images[name, TEST] == round(0.1 * count)
        assert num_images[name, TRAIN] == count - round(0.2 * count) - round(0.1 * count)


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_split_smallest_class_is_in_every_split(fraction: float) -> None:
    labels = interleaved(big=60, small=3)
    splits = stratified_split(labels, val_fraction=fraction, test_fraction=0.05, seed=1)
    assert {split for label, split in zip(labels, splits, strict=True) if label == "small"} == {
        TRAIN,
        VAL,
        TEST,
    }


def test_split_is_function_of_seed() -> None:
    labels = interleaved(a=30, b=20)
    first = stratified_split(labels, val_fraction=0.3, seed=7)
    assert stratified_split(labels, val_fraction=0.3, seed=7) == first
    assert stratified_split(labels, val_fraction=0.3, seed=8) != first


def test_split_of_class_does_not_depend_on_order_of_others() -> None:
    mixed, sorted_ = interleaved(a=30, b=20), ["b"] * 20 + ["a"] * 30
    by_class = [
        {name: [s for x, s in zip(labels, splits, strict=True) if x == name] for name in "ab"}
        for labels in (mixed, sorted_)
        for splits in [stratified_split(labels, val_fraction=0.3, seed=7)]
    ]
    assert by_class[0] == by_class[1]


@pytest.mark.parametrize(
    ("min_images", "message"),
    [
        (None, r"'rare' \(2\).* 3 .*data\.min_images_per_class=1"),
        (40, r"'big' \(30\), 'rare' \(2\).* 40 "),
    ],
)
def test_split_class_too_small_raises_data_error_with_count(
    min_images: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        stratified_split(
            interleaved(big=30, rare=2),
            val_fraction=0.2,
            test_fraction=0.2,
            seed=0,
            min_images=min_images,
        )


def test_split_small_class_with_min_images_only_trains() -> None:
    labels = interleaved(big=30, rare=1)
    num_images = count_by_label_and_split(
        labels, stratified_split(labels, val_fraction=0.2, seed=0, min_images=1)
    )
    assert (num_images["rare", TRAIN], num_images["big", VAL]) == (1, 6)
    assert num_images["rare", VAL] == 0


def get_sides_with_empty(groups: list[str], splits: list[Split]) -> dict[str, set[Split]]:
    sides_by_group: dict[str, set[Split]] = {}
    for group, split in zip(groups, splits, strict=True):
        sides_by_group.setdefault(group, set()).add(split)
    return sides_by_group


@pytest.mark.parametrize("seed", range(5))
def test_split_groups_stay_together_with_every_class_in_every_split(seed: int) -> None:
    labels = interleaved(a=60, b=40)
    groups = [f"g{i // 5}" for i in range(100)]
    splits = stratified_split(labels, val_fraction=0.2, test_fraction=0.2, seed=seed, groups=groups)
    assert all(len(side) == 1 for side in get_sides_with_empty(groups, splits).values())
    num_images = count_by_label_and_split(labels, splits)
    assert set(num_images) == {(name, split) for name in "ab" for split in Split}
    for split in (VAL, TEST):
        assert 10 <= num_images["a", split] + num_images["b", split] <= 30


def test_split_empty_groups_equal_no_groups() -> None:
    labels = interleaved(a=20, b=20)
    plain = stratified_split(labels, val_fraction=0.2, seed=0)
    assert stratified_split(labels, val_fraction=0.2, seed=0, groups=[""] * 40) == plain
    groups = ["" if i % 2 else "pair" if i < 4 else "" for i in range(40)]
    splits = stratified_split(labels, val_fraction=0.2, seed=0, groups=groups)
    by_group = get_sides_with_empty(groups, splits)
    assert len(by_group["pair"]) == 1
    assert by_group[""] == {TRAIN, VAL}


def test_split_groups_class_smaller_than_folds_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in (interleaved(a=4, b=4), interleaved(a=20, b=3)):
            groups = [str(i) for i in range(len(labels))]
            splits = stratified_split(labels, val_fraction=0.2, seed=0, groups=groups)
            num_images = count_by_label_and_split(labels, splits)
            assert all(num_images[name, split] for name in "ab" for split in (TRAIN, VAL))


@pytest.mark.parametrize("seed", range(5))
def test_split_group_with_train_only_image_trains_entirely(seed: int) -> None:
    labels = ["rare", "a", "a", *interleaved(a=10, b=10)]
    groups = ["shared"] * 3 + [f"g{i}" for i in range(20)]
    splits = stratified_split(labels, val_fraction=0.3, seed=seed, groups=groups, min_images=1)
    assert splits[:3] == [TRAIN] * 3
    assert VAL in splits


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ("aaaabbbb", "11112345", r"'a' .*\(group 1\)"),
        ("aabbcc", "121323", r"2 folds .*data\.val_fraction"),
    ],
)
def test_split_indivisible_groups_raise_data_error(labels: str, groups: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stratified_split(list(labels), val_fraction=0.2, seed=0, groups=list(groups))


def get_sides(groups: list[str], splits: list[Split]) -> dict[str, set[Split]]:
    """Return the splits of each non-empty group."""
    sides_by_group: dict[str, set[Split]] = {}
    for group, split in zip(groups, splits, strict=True):
        if group:
            sides_by_group.setdefault(group, set()).add(split)
    return sides_by_group


@pytest.mark.parametrize("groups", [None, ["" for _ in range(60)]])
def test_split_empty_duplicate_groups_equal_none(groups: list[str] | None) -> None:
    labels = interleaved(a=30, b=20, c=10)
    for seed in range(5):
        plain, same = (
            stratified_split(
                labels,
                val_fraction=0.2,
                test_fraction=0.2,
                seed=seed,
                groups=groups,
                duplicate_groups=duplicates,
            )
            for duplicates in (None, [""] * 60)
        )
        assert plain == same


def test_split_groups_empty_duplicate_groups_equal_none() -> None:
    labels = interleaved(a=30, b=30)
    groups = [f"g{i // 3}" for i in range(60)]
    plain, same = (
        stratified_split(
            labels, val_fraction=0.25, seed=3, groups=groups, duplicate_groups=duplicates
        )
        for duplicates in (None, [""] * 60)
    )
    assert plain == same


@pytest.mark.parametrize("seed", range(5))
def test_split_duplicates_stay_together_and_fractions_are_close(seed: int) -> None:
    # every image has a duplicate, and some have five
    labels = ["a"] * 120 + ["b"] * 60
    duplicates = [str(row // 2 if row % 12 else row // 12 * 6) for row in range(180)]
    splits = stratified_split(
        labels, val_fraction=0.2, test_fraction=0.1, seed=seed, duplicate_groups=duplicates
    )
    assert all(len(side) == 1 for side in get_sides(duplicates, splits).values())
    num_images = count_by_label_and_split(labels, splits)
    for name, count in (("a", 120), ("b", 60)):
        assert num_images[name, VAL] == pytest.approx(0.2 * count, abs=0.05 * count)
        assert num_images[name, TEST] == pytest.approx(0.1 * count, abs=0.05 * count)


@pytest.mark.parametrize("with_groups", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_split_duplicates_across_classes_only_train(seed: int, with_groups: bool) -> None:
    labels = interleaved(a=20, b=20)
    duplicates = ["both" if row in (0, 1, 7) else "" for row in range(40)]
    groups = [f"g{row // 4}" for row in range(20)] + [""] * 20
    assert {labels[row] for row in (0, 1, 7)} == {"a", "b"}
    splits = stratified_split(
        labels,
        val_fraction=0.5,
        seed=seed,
        duplicate_groups=duplicates,
        groups=groups if with_groups else None,
    )
    assert {splits[row] for row in (0, 1, 7)} == {TRAIN}
    assert set(splits) == {TRAIN, VAL}
    if with_groups:
        assert all(len(side) == 1 for side in get_sides(groups, splits).values())


@pytest.mark.parametrize("with_groups", [False, True])
def test_split_class_of_one_distinct_image_only_trains(with_groups: bool) -> None:
    labels = ["many"] * 20 + ["one image"] * 5
    duplicates = [""] * 20 + ["p"] * 5
    groups = [f"g{row // 2}" for row in range(20)] + [""] * 5
    splits = stratified_split(
        labels,
        val_fraction=0.25,
        seed=0,
        duplicate_groups=duplicates,
        groups=groups if with_groups else None,
    )
    assert splits[20:] == [TRAIN] * 5
    assert VAL in splits[:20]


def test_split_all_duplicates_across_classes_holds_out_nothing() -> None:
    labels = ["a", "a", "b", "b"]
    splits = stratified_split(
        labels, val_fraction=0.5, seed=0, duplicate_groups=["1", "2", "1", "2"]
    )
    assert splits == [TRAIN] * 4


@pytest.mark.parametrize("seed", range(5))
def test_split_duplicates_merge_groups(seed: int) -> None:
    labels = interleaved(a=40, b=40)
    groups = [f"g{row // 4}" if row < 60 else "" for row in range(80)]
    duplicates = [""] * 80
    # a chain: g0 - g3 - an image without a group; and two images without groups
    for name, rows in {"1": (0, 14), "2": (12, 70), "3": (61, 63)}.items():
        for row in rows:
            duplicates[row] = name
    splits = stratified_split(
        labels, val_fraction=0.25, seed=seed, groups=groups, duplicate_groups=duplicates
    )
    for names in (groups, duplicates):
        assert all(len(side) == 1 for side in get_sides(names, splits).values())
    assert len({splits[row] for row in (0, 14, 12, 70)}) == 1
    assert (
        count_by_label_and_split(labels, splits)["a", VAL]
        > 0
        < count_by_label_and_split(labels, splits)["b", VAL]
    )


@pytest.mark.parametrize("name", ["copies 1", "copies of 1"])
def test_split_group_named_like_duplicates_stays_separate(name: str) -> None:
    labels = ["a"] * 20 + ["b"] * 20
    groups = [name] * 10 + [""] * 30
    duplicates = [""] * 10 + ["1"] * 10 + [""] * 20
    splits = stratified_split(
        labels, val_fraction=0.5, seed=0, groups=groups, duplicate_groups=duplicates
    )
    assert {splits[0], splits[10]} == {TRAIN, VAL}


@pytest.mark.parametrize("seed", range(8))
def test_split_large_duplicate_group_only_trains(seed: int) -> None:
    labels = ["a"] * 100 + ["b"] * 100
    duplicates = ["large"] * 60 + [""] * 40 + [str(row // 2) for row in range(100)]
    splits = stratified_split(labels, val_fraction=0.2, seed=seed, duplicate_groups=duplicates)
    assert set(splits[:60]) == {TRAIN}
    assert count_by_label_and_split(labels, splits)["a", VAL] == 20
    assert count_by_label_and_split(labels, splits)["b", VAL] == 20


@pytest.mark.parametrize("seed", range(8))
def test_split_large_duplicate_group_leaves_one_image_per_split(seed: int) -> None:
    labels, duplicates = ["a"] * 62 + ["b"] * 40, ["large"] * 60 + [""] * 42
    splits = stratified_split(
        labels, val_fraction=0.2, test_fraction=0.2, seed=seed, duplicate_groups=duplicates
    )
    assert splits[:60] == [TRAIN] * 60
    assert set(splits[60:62]) == {VAL, TEST}


def test_split_only_large_duplicate_groups_holds_out_smallest() -> None:
    labels, duplicates = ["a"] * 100, ["large"] * 60 + ["smaller"] * 40
    splits = stratified_split(labels, val_fraction=0.2, seed=0, duplicate_groups=duplicates)
    assert splits == [TRAIN] * 60 + [VAL] * 40


@pytest.mark.parametrize("seed", range(8))
def test_split_large_duplicate_group_with_groups_only_trains(seed: int) -> None:
    labels = ["a"] * 100 + ["b"] * 100
    duplicates = ["large"] * 60 + [""] * 140
    groups = [""] * 60 + [f"g{row // 2}" for row in range(140)]
    splits = stratified_split(
        labels, val_fraction=0.2, seed=seed, duplicate_groups=duplicates, groups=groups
    )
    assert set(splits[:60]) == {TRAIN}
    assert 30 <= splits.count(VAL) <= 50
    assert all(len(side) == 1 for side in get_sides(groups, splits).values())


@pytest.mark.parametrize("seed", range(4))
def test_split_without_duplicates_equals_train_test_split(seed: int) -> None:
    labels = ["a"] * 37 + ["b"] * 12
    splits = stratified_split(labels, val_fraction=0.2, test_fraction=0.1, seed=seed)
    for first, end in ((0, 37), (37, 49)):
        rows, total = list(range(first, end)), end - first
        rows, test = train_test_split(rows, test_size=round(0.1 * total), random_state=seed)
        rows.sort()
        _, val = train_test_split(rows, test_size=round(0.2 / 0.9 * len(rows)), random_state=seed)
        assert {row for row in range(first, end) if splits[row] is TEST} == set(test)
        assert {row for row in range(first, end) if splits[row] is VAL} == set(val)


@pytest.mark.parametrize("across_classes", [False, True])
def test_split_duplicates_that_merge_all_groups_are_ignored(across_classes: bool) -> None:
    labels = ["a"] * 12 + ["b"] * 12
    groups = [f"g{row // 3}" for row in range(24)]
    duplicates = [""] * 24
    # each group has a duplicate in the next one of its class, or in one of the other class
    pairs = [(g, g + 4) for g in range(4)] if across_classes else [(0, 1), (1, 2), (2, 3)]
    for number, (one, other) in enumerate(pairs):
        duplicates[3 * one + 2] = duplicates[3 * other] = str(number)
    separate, merged = (
        stratified_split(labels, val_fraction=0.25, seed=0, groups=groups, duplicate_groups=names)
        for names in (None, duplicates)
    )
    assert VAL in separate
    assert merged == separate


def test_find_drawn_splits_given_validation_leaves_none() -> None:
    train, val, test = Split
    assert find_drawn_splits({None}) == find_drawn_splits({train}) == {val, test}
    assert find_drawn_splits({train, test}) == {val}
    assert find_drawn_splits({train, val}) == find_drawn_splits({train, val, test}) == set()

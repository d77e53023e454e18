"""Splits keep shares, classes and groups."""

import warnings
from collections import Counter

import pytest

from finetune.data.split import stratified_split
from finetune.errors import DataError
from finetune.types import Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def interleaved(**counts: int) -> list[str]:
    """Return class names with the classes mixed evenly: a, b, a, b, a."""
    places = [(i / n, name) for name, n in counts.items() for i in range(n)]
    return [name for _, name in sorted(places)]


def table(labels: list[str], splits: list[Split]) -> Counter[tuple[str, Split]]:
    return Counter(zip(labels, splits, strict=True))


def test_every_class_gives_its_share_to_every_split() -> None:
    counts = {"a": 100, "b": 50, "c": 10}
    labels = interleaved(**counts)
    splits = stratified_split(labels, val_fraction=0.2, test_fraction=0.1, seed=0)
    found = table(labels, splits)
    for name, count in counts.items():
        assert found[name, VAL] == round(0.2 * count)
        assert found[name, TEST] == round(0.1 * count)
        assert found[name, TRAIN] == count - round(0.2 * count) - round(0.1 * count)


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_the_smallest_class_still_stands_in_every_split(fraction: float) -> None:
    labels = interleaved(big=60, small=3)
    splits = stratified_split(labels, val_fraction=fraction, test_fraction=0.05, seed=1)
    assert {split for label, split in zip(labels, splits, strict=True) if label == "small"} == {
        TRAIN,
        VAL,
        TEST,
    }


def test_the_split_follows_the_seed_alone() -> None:
    labels = interleaved(a=30, b=20)
    first = stratified_split(labels, val_fraction=0.3, seed=7)
    assert stratified_split(labels, val_fraction=0.3, seed=7) == first
    assert stratified_split(labels, val_fraction=0.3, seed=8) != first


def test_a_class_is_split_alike_wherever_the_others_stand() -> None:
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
        (None, r"Class too small to split: 'rare' \(2\); at least 3 images.*min_images_per_class"),
        (40, r"Classes too small to split: 'big' \(30\), 'rare' \(2\); at least 40"),
    ],
)
def test_a_class_too_small_to_split_is_named(min_images: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stratified_split(
            interleaved(big=30, rare=2),
            val_fraction=0.2,
            test_fraction=0.2,
            seed=0,
            min_images=min_images,
        )


def test_a_small_class_that_is_allowed_only_trains() -> None:
    labels = interleaved(big=30, rare=1)
    found = table(labels, stratified_split(labels, val_fraction=0.2, seed=0, min_images=1))
    assert (found["rare", TRAIN], found["big", VAL]) == (1, 6)
    assert found["rare", VAL] == 0


def sides(groups: list[str], splits: list[Split]) -> dict[str, set[Split]]:
    found: dict[str, set[Split]] = {}
    for group, split in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(split)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_every_class_stands_on_both_sides(seed: int) -> None:
    labels = interleaved(a=60, b=40)
    groups = [f"g{i // 5}" for i in range(100)]
    splits = stratified_split(labels, val_fraction=0.2, test_fraction=0.2, seed=seed, groups=groups)
    assert all(len(found) == 1 for found in sides(groups, splits).values())
    found = table(labels, splits)
    assert set(found) == {(name, split) for name in "ab" for split in Split}
    for split in (VAL, TEST):
        assert 10 <= found["a", split] + found["b", split] <= 30


def test_images_without_a_group_are_free_and_no_group_at_all_changes_nothing() -> None:
    labels = interleaved(a=20, b=20)
    plain = stratified_split(labels, val_fraction=0.2, seed=0)
    assert stratified_split(labels, val_fraction=0.2, seed=0, groups=[""] * 40) == plain
    groups = ["" if i % 2 else "pair" if i < 4 else "" for i in range(40)]
    splits = stratified_split(labels, val_fraction=0.2, seed=0, groups=groups)
    found = sides(groups, splits)
    assert len(found["pair"]) == 1
    assert found[""] == {TRAIN, VAL}


def test_groups_of_classes_smaller_than_the_folds_are_split_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in (interleaved(a=4, b=4), interleaved(a=20, b=3)):
            groups = [str(i) for i in range(len(labels))]
            splits = stratified_split(labels, val_fraction=0.2, seed=0, groups=groups)
            found = table(labels, splits)
            assert all(found[name, split] for name in "ab" for split in (TRAIN, VAL))


@pytest.mark.parametrize("seed", range(5))
def test_a_group_with_an_image_that_may_only_train_trains_as_a_whole(seed: int) -> None:
    labels = ["rare", "a", "a", *interleaved(a=10, b=10)]
    groups = ["shared"] * 3 + [f"g{i}" for i in range(20)]
    splits = stratified_split(labels, val_fraction=0.3, seed=seed, groups=groups, min_images=1)
    assert splits[:3] == [TRAIN] * 3
    assert VAL in splits


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ("aaaabbbb", "11112345", r"Class 'a' lies in one group \(group 1\)"),
        ("aabbcc", "121323", "No split into 2 parts keeps every group whole"),
    ],
)
def test_groups_that_cannot_be_divided_are_an_error(labels: str, groups: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stratified_split(list(labels), val_fraction=0.2, seed=0, groups=list(groups))

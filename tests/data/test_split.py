"""Splits keep shares, classes and groups."""

import warnings
from collections import Counter

import pytest
from sklearn.model_selection import train_test_split

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


def sides_of(words: list[str], splits: list[Split]) -> dict[str, set[Split]]:
    """Return the splits in which each non-empty word stands."""
    found: dict[str, set[Split]] = {}
    for word, split in zip(words, splits, strict=True):
        if word:
            found.setdefault(word, set()).add(split)
    return found


@pytest.mark.parametrize("groups", [None, ["" for _ in range(60)]])
def test_without_copies_the_split_is_what_it_was(groups: list[str] | None) -> None:
    labels = interleaved(a=30, b=20, c=10)
    for seed in range(5):
        plain, same = (
            stratified_split(
                labels,
                val_fraction=0.2,
                test_fraction=0.2,
                seed=seed,
                groups=groups,
                duplicate_groups=copies,
            )
            for copies in (None, [""] * 60)
        )
        assert plain == same


def test_without_copies_groups_are_split_as_they_were() -> None:
    labels = interleaved(a=30, b=30)
    groups = [f"g{i // 3}" for i in range(60)]
    plain, same = (
        stratified_split(labels, val_fraction=0.25, seed=3, groups=groups, duplicate_groups=copies)
        for copies in (None, [""] * 60)
    )
    assert plain == same


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_on_one_side_and_shares_roughly_the_same(seed: int) -> None:
    # every image has a copy, and some have five
    labels = ["a"] * 120 + ["b"] * 60
    copies = [str(row // 2 if row % 12 else row // 12 * 6) for row in range(180)]
    splits = stratified_split(
        labels, val_fraction=0.2, test_fraction=0.1, seed=seed, duplicate_groups=copies
    )
    assert all(len(sides) == 1 for sides in sides_of(copies, splits).values())
    found = table(labels, splits)
    for name, count in (("a", 120), ("b", 60)):
        assert found[name, VAL] == pytest.approx(0.2 * count, abs=0.05 * count)
        assert found[name, TEST] == pytest.approx(0.1 * count, abs=0.05 * count)


@pytest.mark.parametrize("with_groups", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_what_shows_the_same_in_two_classes_only_trains(seed: int, with_groups: bool) -> None:
    labels = interleaved(a=20, b=20)
    copies = ["both" if row in (0, 1, 7) else "" for row in range(40)]
    groups = [f"g{row // 4}" for row in range(20)] + [""] * 20
    assert {labels[row] for row in (0, 1, 7)} == {"a", "b"}
    splits = stratified_split(
        labels,
        val_fraction=0.5,
        seed=seed,
        duplicate_groups=copies,
        groups=groups if with_groups else None,
    )
    assert {splits[row] for row in (0, 1, 7)} == {TRAIN}
    assert set(splits) == {TRAIN, VAL}
    if with_groups:
        assert all(len(sides) == 1 for sides in sides_of(groups, splits).values())


@pytest.mark.parametrize("with_groups", [False, True])
def test_a_class_of_one_picture_only_trains(with_groups: bool) -> None:
    labels = ["many"] * 20 + ["one picture"] * 5
    copies = [""] * 20 + ["p"] * 5
    groups = [f"g{row // 2}" for row in range(20)] + [""] * 5
    splits = stratified_split(
        labels,
        val_fraction=0.25,
        seed=0,
        duplicate_groups=copies,
        groups=groups if with_groups else None,
    )
    assert splits[20:] == [TRAIN] * 5
    assert VAL in splits[:20]


def test_classes_that_share_all_their_pictures_leave_nothing_to_hold_out() -> None:
    labels = ["a", "a", "b", "b"]
    splits = stratified_split(
        labels, val_fraction=0.5, seed=0, duplicate_groups=["1", "2", "1", "2"]
    )
    assert splits == [TRAIN] * 4


@pytest.mark.parametrize("seed", range(5))
def test_copies_join_the_groups_that_they_stand_in(seed: int) -> None:
    labels = interleaved(a=40, b=40)
    groups = [f"g{row // 4}" if row < 60 else "" for row in range(80)]
    copies = [""] * 80
    # a chain: g0 - g3 - an image without a group; and two images without groups
    for word, rows in {"1": (0, 14), "2": (12, 70), "3": (61, 63)}.items():
        for row in rows:
            copies[row] = word
    splits = stratified_split(
        labels, val_fraction=0.25, seed=seed, groups=groups, duplicate_groups=copies
    )
    for words in (groups, copies):
        assert all(len(sides) == 1 for sides in sides_of(words, splits).values())
    assert len({splits[row] for row in (0, 14, 12, 70)}) == 1
    assert table(labels, splits)["a", VAL] > 0 < table(labels, splits)["b", VAL]


@pytest.mark.parametrize("name", ["copies 1", "copies of 1"])
def test_a_group_with_the_name_of_copies_is_another_one(name: str) -> None:
    labels = ["a"] * 20 + ["b"] * 20
    groups = [name] * 10 + [""] * 30
    copies = [""] * 10 + ["1"] * 10 + [""] * 20
    splits = stratified_split(
        labels, val_fraction=0.5, seed=0, groups=groups, duplicate_groups=copies
    )
    assert {splits[0], splits[10]} == {TRAIN, VAL}


@pytest.mark.parametrize("seed", range(8))
def test_the_share_is_of_images_and_a_large_group_of_copies_only_trains(seed: int) -> None:
    labels = ["a"] * 100 + ["b"] * 100
    copies = ["large"] * 60 + [""] * 40 + [str(row // 2) for row in range(100)]
    splits = stratified_split(labels, val_fraction=0.2, seed=seed, duplicate_groups=copies)
    assert set(splits[:60]) == {TRAIN}
    assert table(labels, splits)["a", VAL] == 20
    assert table(labels, splits)["b", VAL] == 20


@pytest.mark.parametrize("seed", range(8))
def test_a_large_group_of_copies_beside_others_leaves_one_for_each_split(seed: int) -> None:
    labels, copies = ["a"] * 62 + ["b"] * 40, ["large"] * 60 + [""] * 42
    splits = stratified_split(
        labels, val_fraction=0.2, test_fraction=0.2, seed=seed, duplicate_groups=copies
    )
    assert splits[:60] == [TRAIN] * 60
    assert set(splits[60:62]) == {VAL, TEST}


def test_where_all_groups_of_copies_are_large_the_smallest_is_held_out() -> None:
    labels, copies = ["a"] * 100, ["large"] * 60 + ["smaller"] * 40
    splits = stratified_split(labels, val_fraction=0.2, seed=0, duplicate_groups=copies)
    assert splits == [TRAIN] * 60 + [VAL] * 40


@pytest.mark.parametrize("seed", range(8))
def test_a_large_group_of_copies_only_trains_beside_groups_of_the_user(seed: int) -> None:
    labels = ["a"] * 100 + ["b"] * 100
    copies = ["large"] * 60 + [""] * 140
    groups = [""] * 60 + [f"g{row // 2}" for row in range(140)]
    splits = stratified_split(
        labels, val_fraction=0.2, seed=seed, duplicate_groups=copies, groups=groups
    )
    assert set(splits[:60]) == {TRAIN}
    assert 30 <= splits.count(VAL) <= 50
    assert all(len(found) == 1 for found in sides_of(groups, splits).values())


@pytest.mark.parametrize("seed", range(4))
def test_without_copies_the_draw_is_that_of_scikit_learn(seed: int) -> None:
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
def test_copies_that_leave_groups_undivided_are_divided(across_classes: bool) -> None:
    labels = ["a"] * 12 + ["b"] * 12
    groups = [f"g{row // 3}" for row in range(24)]
    copies = [""] * 24
    # each group has a copy in the next one of its class, or in one of the other class
    pairs = [(g, g + 4) for g in range(4)] if across_classes else [(0, 1), (1, 2), (2, 3)]
    for word, (one, other) in enumerate(pairs):
        copies[3 * one + 2] = copies[3 * other] = str(word)
    alone, united = (
        stratified_split(labels, val_fraction=0.25, seed=0, groups=groups, duplicate_groups=words)
        for words in (None, copies)
    )
    assert VAL in alone
    assert united == alone

"""Tests of the folds of a cross-validation."""

from collections import Counter

import numpy as np
import pytest

from finetune.data.fold_split import NEVER_HELD_OUT, assign_sample_folds
from finetune.errors import DataError
from finetune.types import Sample


def build_samples(counts: dict[str, int], *, group_size: int = 1) -> list[Sample]:
    return [
        Sample(f"{name}/{n}", name, group=f"{name}-{n // group_size}" if group_size > 1 else "")
        for name, count in counts.items()
        for n in range(count)
    ]


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_folds_are_stratified_and_of_equal_size(num_folds: int) -> None:
    samples = build_samples({"a": 53, "b": 20, "c": 11})
    folds = assign_sample_folds(samples, num_folds, seed=0)
    assert set(folds) == set(range(1, num_folds + 1))
    sizes = Counter(folds.tolist())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    for name in ("a", "b", "c"):
        own = Counter(
            fold for sample, fold in zip(samples, folds, strict=True) if sample.label == name
        )
        assert max(own.values()) - min(own.values()) <= 1


def test_folds_depend_on_the_seed_and_not_on_the_file_order() -> None:
    samples = build_samples({"a": 30, "b": 30})
    first = assign_sample_folds(samples, 5, seed=0)
    assert (assign_sample_folds(samples, 5, seed=0) == first).all()
    assert (assign_sample_folds(samples, 5, seed=1) != first).any()
    neighbours = float((first[:-1] == first[1:]).mean())
    assert neighbours < 0.5, "files that follow each other are not put into one fold"


def test_groups_are_not_divided() -> None:
    samples = build_samples({"a": 60, "b": 60}, group_size=4)
    folds = assign_sample_folds(samples, 5, seed=3)
    fold_of: dict[str, set[int]] = {}
    for sample, fold in zip(samples, folds.tolist(), strict=True):
        fold_of.setdefault(sample.group, set()).add(fold)
    assert {len(values) for values in fold_of.values()} == {1}
    assert Counter(folds.tolist()) == dict.fromkeys(range(1, 6), 24)


def test_too_small_classes_are_named_with_a_number_of_folds_that_works() -> None:
    samples = build_samples({"rare": 3, "common": 30})
    with pytest.raises(DataError, match=r"Class 'rare' \(3\) has fewer images than the 5 folds"):
        assign_sample_folds(samples, 5, seed=0)
    with pytest.raises(DataError, match="--folds 3"):
        assign_sample_folds(samples, 5, seed=0)
    assign_sample_folds(samples, 3, seed=0)
    grouped = build_samples({"a": 40, "b": 40}, group_size=20)
    with pytest.raises(DataError, match=r"'a' \(2\), 'b' \(2\) .* count once"):
        assign_sample_folds(grouped, 5, seed=0)


def test_class_in_one_group_only_trains_if_that_is_allowed() -> None:
    samples = [
        *build_samples({"a": 20, "b": 20}),
        *(Sample(f"c/{n}", "c", group="video") for n in range(6)),
        *build_samples({"d": 3}),
    ]
    folds = assign_sample_folds(samples, 5, seed=0, min_images=1)
    labels = np.array([sample.label for sample in samples])
    assert set(folds[labels == "c"]) == {NEVER_HELD_OUT}
    assert len(set(folds[labels == "d"])) == 3
    for fold in range(1, 6):
        assert set(labels[folds != fold]) == {"a", "b", "c", "d"}, "each class trains in each fold"


def test_more_folds_than_groups_is_an_error() -> None:
    samples = build_samples({"a": 2, "b": 2})
    with pytest.raises(DataError, match="cannot fill 5 folds"):
        assign_sample_folds(samples, 5, seed=0, min_images=1)

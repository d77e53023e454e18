"""Tests of folds of multi-label images."""

from collections import Counter

import numpy as np
import pytest

from finetune.data.fold_split import NEVER_HELD_OUT, assign_sample_folds
from finetune.data.multi_label.multi_hot import count_labels
from finetune.errors import DataError
from finetune.types import Sample
from tests.data.multi_label.test_iterative_split import make_samples


def count_per_fold(samples: list[Sample], folds: list[int], num_folds: int) -> list[Counter[str]]:
    return [
        count_labels(s for s, own in zip(samples, folds, strict=True) if own == fold)
        for fold in range(1, num_folds + 1)
    ]


@pytest.mark.parametrize("num_folds", [2, 5, 10])
def test_each_label_is_about_equally_frequent_in_each_fold(num_folds: int) -> None:
    for seed in range(3):
        samples = make_samples(1000, seed=seed)
        folds = assign_sample_folds(samples, num_folds, seed=seed).tolist()
        sizes = Counter(folds)
        assert set(sizes) == set(range(1, num_folds + 1))
        assert max(sizes.values()) - min(sizes.values()) <= 2
        counts = count_per_fold(samples, folds, num_folds)
        for name, total in count_labels(samples).items():
            for own in counts:
                assert abs(own[name] - total / num_folds) <= 1.5, (name, total)


def test_folds_are_more_even_than_random_ones() -> None:
    samples = make_samples(300)
    total = count_labels(samples)

    def compute_error(folds: list[int]) -> float:
        counts = count_per_fold(samples, folds, 5)
        return sum(abs(own[name] / total[name] - 0.2) for own in counts for name in total)

    own = compute_error(assign_sample_folds(samples, 5, seed=0).tolist())
    random = np.random.default_rng(0)
    equal = np.arange(300) % 5 + 1
    drawn = [compute_error(random.permutation(equal).tolist()) for _ in range(20)]
    assert own < min(drawn)


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_images() -> None:
    samples = [
        Sample(s.path, s.label, labels=s.labels, group=f"g{row % 40}" if row < 80 else "")
        for row, s in enumerate(make_samples(200))
    ]
    first = assign_sample_folds(samples, 5, seed=0)
    order = np.random.default_rng(1).permutation(len(samples))
    again = assign_sample_folds([samples[row] for row in order], 5, seed=0)
    assert (again == first[order]).all()
    assert (assign_sample_folds(samples, 5, seed=1) != first).any()


def test_groups_and_duplicates_are_not_divided() -> None:
    samples = [
        Sample(
            s.path, s.label, labels=s.labels, group=f"g{row // 4}" if row < 200 else "",
            duplicate_group=f"d{row // 2}" if row >= 300 else "",
        )
        for row, s in enumerate(make_samples(400))
    ]  # fmt: skip
    folds = assign_sample_folds(samples, 5, seed=0).tolist()
    folds_of: dict[str, set[int]] = {}
    for sample, fold in zip(samples, folds, strict=True):
        if key := sample.group or sample.duplicate_group:
            folds_of.setdefault(key, set()).add(fold)
    assert all(len(found) == 1 for found in folds_of.values())
    sizes = Counter(folds)
    assert max(sizes.values()) - min(sizes.values()) <= 8


@pytest.mark.parametrize("seed", range(5))
def test_every_label_trains_in_every_fold(seed: int) -> None:
    plain = [Sample(f"{row}.png", "x", labels=("x",)) for row in range(30)]
    rare = [
        Sample("once.png", "once|x", labels=("once", "x")),
        Sample("t1.png", "a|twice", labels=("a", "twice")),
        Sample("t2.png", "b|twice", labels=("b", "twice")),
    ]
    grouped = [Sample(f"g{i}.png", "z", group="g", labels=("x", "z")) for i in range(3)]
    samples = [*plain, *rare, *grouped]
    folds = assign_sample_folds(samples, 3, seed=seed)
    for fold in (1, 2, 3):
        trained = count_labels(s for s, own in zip(samples, folds, strict=True) if own != fold)
        assert set(trained) == {"x", "once", "twice", "a", "b", "z"}
    assert folds[30] == NEVER_HELD_OUT
    assert (folds[-3:] == NEVER_HELD_OUT).all()
    assert (folds[:30] > 0).all()


def test_large_groups_fill_the_folds_or_are_refused() -> None:
    samples = [Sample(f"{row}.png", "x", labels=("x",), group=f"g{row // 25}") for row in range(75)]
    assert sorted(Counter(assign_sample_folds(samples, 3, seed=0).tolist()).items()) == [
        (1, 25), (2, 25), (3, 25),
    ]  # fmt: skip
    with pytest.raises(DataError, match="3 groups that stay together cannot fill 5 folds"):
        assign_sample_folds(samples, 5, seed=0)
    uneven = [Sample(f"{row}.png", "x", labels=("x",), group=f"g{row > 2}") for row in range(60)]
    assert set(assign_sample_folds(uneven, 2, seed=0)) == {1, 2}


def test_rare_labels_that_leave_folds_empty_are_named_as_the_cause() -> None:
    def build(num_common: int, num_rare: int) -> list[Sample]:
        rare = [Sample(f"r{i}.png", f"r{i}", labels=(f"r{i}",)) for i in range(num_rare)]
        return [*(Sample(f"{i}.png", "x", labels=("x",)) for i in range(num_common)), *rare]

    cause = "7 images only train, so that each label is in the training images of every fold. "
    with pytest.raises(DataError) as error:
        assign_sample_folds(build(2, 7), 3, seed=0)
    assert str(error.value) == (
        f"{cause}The other 2 images cannot fill 3 folds. Add images of each label, or use fewer "
        f"folds (--folds)."
    )
    with pytest.raises(DataError) as error:
        assign_sample_folds(build(0, 7), 2, seed=0)
    assert str(error.value) == (
        f"{cause}The other 0 images cannot fill 2 folds. Add images of each label."
    )


def test_minimum_of_images_of_each_label_is_kept() -> None:
    with pytest.raises(DataError, match=r"min_images_per_class=5 images: 'd' \(\d\)"):
        assign_sample_folds(make_samples(50), 3, seed=0, min_images=5)

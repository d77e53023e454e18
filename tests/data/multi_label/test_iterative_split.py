"""Tests of splits of multi-label images."""

from collections import Counter

import numpy as np
import pytest

from finetune.data.multi_label.iterative_split import split_multi_label
from finetune.data.multi_label.multi_hot import count_labels, encode_multi_hot, find_rarest_labels
from finetune.errors import DataError
from finetune.types import Sample, Split

FREQUENCIES = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.03, "e": 0.01}


def make_samples(num_images: int, *, seed: int = 0) -> list[Sample]:
    random = np.random.default_rng(seed)
    samples = []
    for row in range(num_images):
        names = tuple(name for name, p in FREQUENCIES.items() if random.random() < p)
        samples.append(Sample(f"{row}.png", "|".join(names), labels=names))
    return samples


def count_in(samples: list[Sample], splits: list[Split], split: Split) -> Counter[str]:
    return count_labels(s for s, own in zip(samples, splits, strict=True) if own is split)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_multi_label_keeps_the_fraction_of_each_label(seed: int) -> None:
    samples = make_samples(1000, seed=seed)
    splits = split_multi_label(samples, val_fraction=0.2, test_fraction=0.1, seed=seed)
    total = count_labels(samples)
    for split, fraction in ((Split.TRAIN, 0.7), (Split.VAL, 0.2), (Split.TEST, 0.1)):
        assert abs(splits.count(split) - 1000 * fraction) <= 10
        counts = count_in(samples, splits, split)
        for name, count in total.items():
            assert abs(counts[name] - fraction * count) <= 1.5, name


def test_split_multi_label_is_better_than_chance() -> None:
    samples = make_samples(500)
    total = count_labels(samples)

    def compute_error(splits: list[Split]) -> float:
        counts = count_in(samples, splits, Split.VAL)
        return sum(abs(counts[name] / count - 0.2) for name, count in total.items())

    own = compute_error(split_multi_label(samples, val_fraction=0.2, seed=0))
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(20):
        is_val = random.permutation(500) < 100
        drawn.append(compute_error([Split.VAL if val else Split.TRAIN for val in is_val]))
    assert own < min(drawn)


def test_split_multi_label_is_a_function_of_the_seed() -> None:
    samples = make_samples(100)
    first, second, other = (split_multi_label(samples, val_fraction=0.3, seed=s) for s in (0, 0, 1))
    assert first == second
    assert first != other


def test_split_multi_label_keeps_groups_and_duplicates_together() -> None:
    samples = [
        Sample(
            sample.path, sample.label, group=f"g{row // 4}" if row < 200 else "",
            duplicate_group=f"d{row // 2}" if row >= 300 else "", labels=sample.labels,
        )
        for row, sample in enumerate(make_samples(400))
    ]  # fmt: skip
    splits = split_multi_label(samples, val_fraction=0.25, seed=0)
    of_group: dict[str, set[Split]] = {}
    labels_of: dict[str, set[str]] = {}
    for sample, split in zip(samples, splits, strict=True):
        if key := sample.group or sample.duplicate_group:
            of_group.setdefault(key, set()).add(split)
        if sample.duplicate_group:
            labels_of.setdefault(sample.duplicate_group, set()).add(sample.label)
    assert all(len(found) == 1 for found in of_group.values())
    conflicts = [group for group, labels in labels_of.items() if len(labels) > 1]
    assert conflicts
    assert all(of_group[group] == {Split.TRAIN} for group in conflicts)
    assert abs(splits.count(Split.VAL) - 100) < 25


def test_split_multi_label_rare_labels_train_and_are_held_out_if_they_can_be() -> None:
    plain = [Sample(f"{row}.png", "x", labels=("x",)) for row in range(30)]
    rare = [
        Sample("once.png", "once|x", labels=("once", "x")),
        Sample("t1.png", "twice", labels=("twice",)),
        Sample("t2.png", "twice|x", labels=("twice", "x")),
    ]
    for seed in range(5):
        samples = [*plain, *rare]
        splits = split_multi_label(samples, val_fraction=0.2, seed=seed)
        assert splits[30] is Split.TRAIN
        assert {splits[31], splits[32]} == {Split.TRAIN, Split.VAL}


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize(("num_labels", "count"), [(300, 3), (60, 8)])
@pytest.mark.parametrize("fraction", [0.1, 0.2])
def test_split_multi_label_many_rare_labels_do_not_enlarge_a_split(
    per_image: int, num_labels: int, count: int, fraction: float
) -> None:
    names = np.random.default_rng(0).permutation(np.repeat(np.arange(num_labels), count))
    num_images = len(names) // per_image
    rare = [
        Sample(f"{row}.png", "x", labels=tuple(sorted({str(n) for n in names[row::num_images]})))
        for row in range(num_images)
    ]
    frequent = [Sample(f"f{row}.png", "f", labels=("f",)) for row in range(200)]
    samples = [*rare, *frequent]
    splits = split_multi_label(samples, val_fraction=fraction, seed=0)
    expected = fraction * len(samples)
    assert 0.95 * expected <= splits.count(Split.VAL) <= 1.1 * expected + 1
    assert set(count_in(samples, splits, Split.TRAIN)) == set(count_labels(samples))
    held_out = count_in(samples, splits, Split.VAL)
    assert held_out["f"] == pytest.approx(fraction * 200, rel=0.5)
    assert len(held_out) > fraction * count * num_labels / 3  # of many labels, one image each


def test_split_multi_label_label_of_one_group_trains() -> None:
    # the group goes where its rarest label is missing, with all its other labels
    grouped = [Sample(f"{i}.png", "r|z", group="g", labels=("r", "z")) for i in range(3)]
    other = [Sample("r.png", "r", labels=("r",))]
    plain = [Sample(f"p{row}.png", "(no label)", labels=()) for row in range(20)]
    for seed in range(5):
        samples = [*grouped, *other, *plain]
        splits = split_multi_label(samples, val_fraction=0.3, seed=seed)
        assert "z" in count_in(samples, splits, Split.TRAIN)


def test_split_multi_label_too_rare_label_raises_if_a_minimum_is_set() -> None:
    samples = make_samples(50)
    with pytest.raises(DataError, match=r"min_images_per_class=5 images: 'd' \(\d\)"):
        split_multi_label(samples, val_fraction=0.2, seed=0, min_images=5)


def test_multi_hot_and_rarest_labels() -> None:
    names = [("a", "b"), (), ("b",), ("b", "c"), ("a", "b", "c"), ("a",)]
    samples = [Sample(f"{row}.png", "", labels=found) for row, found in enumerate(names)]
    targets = encode_multi_hot(samples, ("a", "b", "c"))
    assert targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]]
    # c has two images, a three, b four
    assert find_rarest_labels(targets).tolist() == [0, 1, 1, 2, 2, 0]

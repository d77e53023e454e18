"""Tests of the numbers of labels."""

from finetune.data.multi_label.label_statistics import LabelStatistics
from finetune.types import Sample, Split


def test_label_statistics_count_images_labels_and_pairs() -> None:
    names = [("a", "b"), ("a", "b", "c"), (), ("b", "c"), ("c",)]
    splits = [Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VAL, Split.VAL]
    samples = [
        Sample(f"{row}.png", "|".join(found), split, labels=found)
        for row, (found, split) in enumerate(zip(names, splits, strict=True))
    ]
    statistics = LabelStatistics.from_samples(samples, max_pairs=2)
    assert statistics is not None
    assert statistics.to_json() == {
        "num_images": {"train": 3, "val": 2},
        "num_unlabelled": 1,
        "labels_per_image": 1.6,
        "frequent_pairs": [
            {"labels": ["a", "b"], "num_images": 2},
            {"labels": ["b", "c"], "num_images": 2},
        ],
    }


def test_label_statistics_of_one_class_per_image_are_none() -> None:
    assert LabelStatistics.from_samples([Sample("a.png", "cat")]) is None

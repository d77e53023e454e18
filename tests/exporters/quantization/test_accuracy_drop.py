"""Tests of the points that a smaller file loses, and of the limit."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score

from finetune.bundle.model_card import ModelCard
from finetune.errors import ModelError
from finetune.exporters.quantization.accuracy_drop import (
    AccuracyDrop,
    check_drop,
    describe_resolution,
    measure_drop,
)
from finetune.types import PreprocessSpec

SPEC = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
CARD = ModelCard("test_resnet", {}, ("a", "b"), SPEC)
LABELS = ModelCard("test_resnet", {}, ("a", "b"), SPEC, thresholds=(0.5, 0.4))


def create_answers(rights: list[bool]) -> torch.Tensor:
    """Return probabilities whose top class is 0, or 1 where an answer is wrong."""
    return torch.tensor([[0.9, 0.1] if right else [0.3, 0.7] for right in rights])


def test_measure_drop_counts_points_of_accuracy_with_interval() -> None:
    targets = torch.zeros(200, dtype=torch.int64)
    before, after = create_answers([True] * 200), create_answers([False] * 4 + [True] * 196)
    drop = measure_drop(after, before, card=CARD, targets=targets, max_points=1)
    assert (drop.metric, drop.points, drop.num_images) == ("accuracy", 2.0, 200)
    assert drop.low is not None
    assert drop.high is not None
    assert drop.low < 2 < drop.high
    gain = measure_drop(before, after, card=CARD, targets=targets, max_points=1)
    assert (gain.points, gain.low, gain.high) == (-2.0, -drop.high, -drop.low)


def test_measure_drop_without_labels_counts_other_answers() -> None:
    before, after = create_answers([True, False] * 10), create_answers([False, False] * 10)
    drop = measure_drop(after, before, card=CARD, targets=None, max_points=1)
    assert (drop.metric, drop.points) == ("agreement", 50.0)


def test_measure_drop_of_labels_is_that_of_mean_average_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (40, 2), generator=generator)
    # every image has both labels at the thresholds, before and after
    before = 0.6 + 0.3 * targets + 0.05 * torch.rand(40, 2, generator=generator)
    after = 0.6 + 0.3 * torch.rand(40, 2, generator=generator)
    drop = measure_drop(after, before, card=LABELS, targets=targets, max_points=1)
    values = [average_precision_score(targets.numpy(), table.numpy()) for table in (before, after)]
    assert drop.metric == "mean_average_precision"
    assert drop.points == pytest.approx(100 * (values[0] - values[1]), abs=1e-3)
    unlabelled = measure_drop(before, before, card=LABELS, targets=None, max_points=1)
    assert (unlabelled.metric, unlabelled.points) == ("agreement", 0.0)


def test_measure_drop_of_labels_sees_answers_that_lie_below_the_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (200, 2), generator=generator)
    before = 0.1 + 0.6 * targets + 0.1 * torch.rand(200, 2, generator=generator)
    after = 0.45 * before  # the order of the images is the same, and no image has a label
    drop = measure_drop(after, before, card=LABELS, targets=targets, max_points=1)
    assert drop.metric == "macro_f1"
    assert drop.points == pytest.approx(100)
    assert describe_resolution(drop) is None
    with pytest.raises(ModelError, match=r"loses 100\.00 points of macro F1"):
        check_drop(drop, name="out", precision="int8")
    lost = measure_drop(before * torch.nan, before, card=LABELS, targets=targets, max_points=1)
    assert lost.points > 1 or lost.points != lost.points


def test_check_drop_refuses_more_than_allowed() -> None:
    check_drop(AccuracyDrop("accuracy", 1.0, 0.0, 2.0, 100, 1.0), name="out", precision="int8")
    for points in (1.2, float("nan")):
        drop = AccuracyDrop("accuracy", points, 0.4, 2.0, 1000, 1.0)
        with pytest.raises(ModelError, match=r"out was not written.*0\.4 to 2\.0.*--max-drop 1"):
            check_drop(drop, name="out", precision="int8")


def test_describe_resolution_names_one_image_of_few() -> None:
    few = AccuracyDrop("accuracy", 0.0, -1.8, 1.8, 153, 1.0)
    assert "one of them is 0.65 points of accuracy" in str(describe_resolution(few))
    assert describe_resolution(AccuracyDrop("accuracy", 0.0, -0.1, 0.1, 5000, 1.0)) is None

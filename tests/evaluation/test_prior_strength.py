"""Strength of an adjustment: metrics with soft labels against scikit-learn, and its choice."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import Tensor
from torch.nn.functional import one_hot

from finetune.evaluation.prior_strength import (
    STRENGTHS,
    adjust_logits,
    choose_strength,
    compute_soft_metric,
)

PRIOR = (0.8, 0.15, 0.05)
SHIFT = torch.tensor(PRIOR).log().neg()
MEANS = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.5, 1.5]])

REFERENCES: dict[str, Callable[..., float]] = {
    "accuracy": lambda target, p, w: accuracy_score(target, p.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda target, p, w: balanced_accuracy_score(
        target, p.argmax(1), sample_weight=w
    ),
    "macro_f1": lambda target, p, w: f1_score(
        target, p.argmax(1), average="macro", sample_weight=w
    ),
    "loss": lambda target, p, w: -log_loss(target, p, sample_weight=w),
}


def draw(num_images: int, seed: int, prior: tuple[float, ...] = PRIOR) -> tuple[Tensor, Tensor]:
    """Return the logits of the true posterior of normally distributed classes, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.multinomial(torch.tensor(prior), num_images, True, generator=generator)
    points = MEANS[target] + torch.randn(num_images, 2, generator=generator)
    distances = (points[:, None] - MEANS).square().sum(2)
    return torch.tensor(prior).log() - distances / 2, target


def compute_f1(logits: Tensor, target: Tensor, strength: float) -> float:
    predicted = adjust_logits(logits, SHIFT, strength=strength).argmax(1)
    return float(f1_score(target, predicted, average="macro"))


@pytest.mark.parametrize("metric", REFERENCES)
def test_soft_metric_of_hard_labels_is_that_of_scikit_learn(metric: str) -> None:
    logits, target = draw(60, 1)
    probabilities = logits.double().softmax(1)
    value, influence = compute_soft_metric(probabilities, one_hot(target, 3).double(), metric)
    weights, reference = (
        np.ones(60),
        partial(REFERENCES[metric], target.numpy(), probabilities.numpy()),
    )
    assert value == pytest.approx(reference(weights))
    for row in range(0, 60, 7):
        step = np.eye(60)[row] * 1e-5
        above, below = (reference(weights + sign * step) for sign in (1, -1))
        assert float(influence[row]) == pytest.approx((above - below) / 2e-5, abs=1e-6)


def test_choose_strength_raises_macro_f1_of_other_images() -> None:
    test_logits, test_target = draw(10_000, 9)
    gains = []
    for seed in range(6):
        logits, target = draw(200, seed)
        choice = choose_strength(logits, target, SHIFT, metric="macro_f1")
        before = compute_f1(test_logits, test_target, 0)
        gains.append(compute_f1(test_logits, test_target, choice.strength) - before)
    assert min(gains) > -0.01
    # the best single strength gains most, in full it gains less
    possible = max(compute_f1(test_logits, test_target, s) for s in STRENGTHS[::2]) - before
    assert np.mean(gains) > 0.6 * possible > 0.01


def test_choose_strength_reports_the_metrics_of_its_images() -> None:
    logits, target = draw(300, 3)
    choice = choose_strength(logits, target, SHIFT, metric="macro_f1")
    assert 0 < choice.strength < 1
    assert choice.num_images == 300
    for tree, strength in ((choice.before, 0), (choice.after, choice.strength), (choice.full, 1)):
        predicted = adjust_logits(logits, SHIFT, strength=strength).argmax(1)
        assert tree == pytest.approx(
            {
                "accuracy": accuracy_score(target, predicted),
                "balanced_accuracy": balanced_accuracy_score(target, predicted),
                "macro_f1": f1_score(target, predicted, average="macro"),
            }
        )


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_choose_strength_is_zero_where_the_posterior_is_best(metric: str) -> None:
    logits, target = draw(2000, 4)
    assert choose_strength(logits, target, SHIFT, metric=metric).strength == 0


def test_choose_strength_is_zero_without_effect() -> None:
    logits, target = draw(200, 5)
    for changed, shift in ((logits, torch.zeros(3)), (one_hot(target, 3) * 100.0, SHIFT)):
        choice = choose_strength(changed, target, shift, metric="macro_f1")
        assert (choice.strength, choice.gain) == (0, 0)


def test_choose_strength_for_balanced_accuracy_is_near_full() -> None:
    # with the true posterior, the uniform prior is best
    logits, target = draw(4000, 6)
    assert choose_strength(logits, target, SHIFT, metric="balanced_accuracy").strength >= 0.8


def test_choose_strength_never_predicts_excluded_classes() -> None:
    logits, target = draw(200, 7)
    shift = torch.tensor([SHIFT[0], SHIFT[1], -math.inf])
    keep = target < 2
    choice = choose_strength(logits[keep], target[keep], shift, metric="macro_f1")
    assert math.isfinite(choice.gain)
    assert math.isfinite(choice.standard_error)


def test_labels_have_a_veto() -> None:
    # probabilities that expect many images of the rarest class, of which there are none
    logits, target = draw(400, 11)
    assert choose_strength(logits, target, SHIFT, metric="macro_f1").strength > 0
    common = torch.zeros_like(target)
    assert choose_strength(logits, common, SHIFT, metric="macro_f1").strength == 0


def test_duplicates_in_groups_count_as_one_image() -> None:
    logits, target = draw(120, 8)
    alone = choose_strength(logits, target, SHIFT, metric="macro_f1")
    tiled: dict[str, Any] = {"metric": "macro_f1"}
    logits, target = logits.repeat_interleave(6, 0), target.repeat_interleave(6, 0)
    grouped = choose_strength(
        logits, target, SHIFT, **tiled, groups=np.repeat(np.arange(0, 720, 6), 6)
    )
    assert grouped.strength == alone.strength
    assert grouped.gain == pytest.approx(alone.gain)
    assert grouped.standard_error == pytest.approx(alone.standard_error)
    # as separate images they would be six times as certain
    separate = choose_strength(logits, target, SHIFT, **tiled)
    assert separate.strength >= grouped.strength


def test_label_shift_makes_soft_labels_those_of_the_images() -> None:
    # balanced images: logits of the training prior would call too many images common
    logits, target = draw(2000, 10)
    rows = torch.cat([torch.where(target == k)[0][:60] for k in range(3)])
    logits, target = logits[rows], target[rows]
    strengths = [
        choose_strength(logits, target, SHIFT, metric="macro_f1", label_shift=shift).strength
        for shift in (None, SHIFT)
    ]
    assert strengths[1] > strengths[0]
    assert strengths[1] > 0.6

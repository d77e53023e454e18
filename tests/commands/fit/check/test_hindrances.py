"""Tests of the rules of the check: each fires on made numbers, and not on clean ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finetune.commands.fit.check.check_evidence import (
    CheckEvidence,
    HeldOutResult,
    compare_with_chance,
)
from finetune.commands.fit.check.check_images import Contradiction
from finetune.commands.fit.check.hindrances import find_hindrances
from finetune.commands.fit.check.learning_trace import LearningTrace

LEARNED = LearningTrace(
    lr=1e-3, depth=2, num_images=32, start_loss=0.7, chance_loss=0.7, losses=(0.6, 0.2, 0.05),
    end_loss=0.02, start_errors=16, num_errors=0, gradient_norm=0.1, num_steps=12, seconds=5.0,
    is_timed_out=False,
)  # fmt: skip
STILL = replace(LEARNED, losses=(0.7,) * 30, end_loss=0.699, num_errors=16, num_steps=120)
SLOW = replace(LEARNED, losses=(0.6,), end_loss=0.5, num_errors=3, num_steps=4, is_timed_out=True)
NEAR = Contradiction((0, 5), ("a/0.png", "b/0.png"), ("a", "b"), is_exact=False)
BY_HEART = HeldOutResult(60, 60, 31, 30.0, 0.4)
CLEAN = CheckEvidence(
    num_images=32, num_distinct=32, pixel_std=0.2, input_mean=(0.1, -0.2, 0.0),
    input_std=(1.0, 0.9, 1.1), num_groups=4, is_pretrained=True, main=LEARNED,
    held_out=HeldOutResult(60, 60, 55, 30.0, 0.001), time_limit_seconds=60.0,
)  # fmt: skip


def find_problems(evidence: CheckEvidence) -> list[str]:
    return [one.rule for one in find_hindrances(evidence) if one.severity == "problem"]


def test_find_hindrances_of_clean_numbers_accuses_of_nothing() -> None:
    findings = find_hindrances(CLEAN)
    assert [(one.rule, one.severity) for one in findings] == [("learned", "good")]
    assert "55 of 60" in findings[0].sentence


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"num_distinct": 1, "main": None, "held_out": None}, ["equal_inputs"]),
        ({"contradictions": (replace(NEAR, is_exact=True),)}, ["contradicting_labels"]),
        ({"contradictions": (NEAR,)}, []),
        ({"contradictions": (NEAR,), "main": STILL}, ["contradicting_labels", "rate_too_low"]),
        ({"input_std": (0.004,) * 3}, ["normalization"]),
        ({"input_std": (60.0,) * 3}, ["normalization"]),
        ({"input_std": (0.1,) * 3, "input_mean": (-2.1, -2.0, -1.8)}, []),  # dark images
        ({"main": replace(STILL, gradient_norm=0.0)}, ["no_gradient"]),
        ({"main": replace(STILL, losses=(0.7, 40.0), end_loss=30.0)}, ["rate_too_high"]),
        ({"main": replace(STILL, losses=(float("nan"),))}, ["rate_too_high"]),
        ({"main": STILL, "other_rates": (replace(LEARNED, lr=1e-4),)}, ["rate_too_high"]),
        ({"main": STILL, "other_rates": (replace(LEARNED, lr=1e-2),)}, ["rate_too_low"]),
        ({"main": STILL, "deeper": replace(LEARNED, depth=4)}, ["frozen_too_deep"]),
        ({"main": STILL, "deeper": replace(STILL, depth=4)}, ["rate_too_low"]),
        ({"main": SLOW}, ["not_learned"]),
        ({"held_out": BY_HEART}, ["labels_not_followed"]),
        ({"held_out": BY_HEART, "is_pretrained": False}, []),
        ({"held_out": replace(BY_HEART, num_images=8)}, []),
    ],
)
def test_find_hindrances_fires_on_its_numbers_alone(
    changes: dict[str, Any], problems: list[str]
) -> None:
    if changes.get("main", LEARNED) is not LEARNED:
        changes = {"held_out": None, **changes}
    assert find_problems(replace(CLEAN, **changes)) == problems


@pytest.mark.parametrize(
    ("is_rate_chosen", "remedy", "option"),
    [
        (False, "Lower the rate, or leave it out to have it chosen:", "optim.lr=auto"),
        # advice to have it chosen would change nothing
        (True, "Lower the rate:", "optim.lr=0.0001"),
    ],
)
def test_advice_on_a_rate_differs_from_what_the_run_has(
    is_rate_chosen: bool, remedy: str, option: str
) -> None:
    exploded = replace(STILL, losses=(0.7, 40.0), end_loss=30.0)
    evidence = replace(CLEAN, main=exploded, held_out=None, is_rate_chosen=is_rate_chosen)
    (finding,) = (one for one in find_hindrances(evidence) if one.rule == "rate_too_high")
    assert (finding.remedy, finding.option) == (remedy, option)


def test_compare_with_chance_counts_what_exchanged_labels_would() -> None:
    targets = np.arange(60) % 3
    right = compare_with_chance(targets, targets, seed=0)
    assert (right.num_right, right.p_value) == (60, 0.001)
    assert right.chance == pytest.approx(20, abs=1)
    constant = compare_with_chance(np.zeros(60, np.int64), targets, seed=0)
    assert (constant.num_right, constant.p_value) == (20, 1.0)


def test_compare_with_chance_counts_each_label_of_an_image() -> None:
    targets = np.eye(4, dtype=np.int64)[np.arange(40) % 4]
    result = compare_with_chance(targets, targets, seed=0)
    assert (result.num_images, result.num_predictions, result.num_right) == (40, 160, 160)

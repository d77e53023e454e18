"""Data-parallel training: any number of ranks ends like one, and only trained layers are sent."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.models.layer_groups import LayerGroup
from tests.support.processes import (
    STOPPED_AND_RESUMED,
    count_bytes_on_rank,
    open_group,
    run_on_ranks,
    train_on_rank,
    train_with_stop_in_validation,
    validate_on_rank,
)
from tests.support.runs import compute_largest_difference, create_small_training

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {
        "optim__name": "sgd",
        "optim__lr": 0.2,
        "optim__backbone_lr_scale": 1.0,
        "optim__layer_decay": 1.0,
        "optim__weight_decay": 0.0,
    },
    "adamw": {"optim__name": "adamw", "optim__lr": 0.001},
}
TOLERANCES = {"sgd": 1e-6, "adamw": 1e-4}
"""Largest difference of a weight; AdamW amplifies rounding where a gradient is near zero."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "all": {},
    "linear_probe": {},
    "head_first": {"epochs": 1},
    "gradual": {"step": 0.5},
    "milestones": {"depths": {0: 1, 1: 3, 2: 1.0}},
}


def make_settings(place: Path, schedule: str, optimizer: str) -> dict[str, Any]:
    return {
        "model__weights": str(place / "weights.pth"),
        "model__batch_norm": "frozen",
        "probe__enabled": "off",
        "trainer__epochs": 3,
        "unfreeze__name": schedule,
        "unfreeze__params": SCHEDULES[schedule],
        "imbalance__strategy": "weighted",
        "augment__name": "medium",
        **OPTIMIZERS[optimizer],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "optimizer", "num_ranks"),
    [
        *((schedule, "sgd", 2) for schedule in SCHEDULES),
        ("gradual", "sgd", 4),
        ("milestones", "adamw", 4),
    ],
)
def test_training_on_several_ranks_ends_like_one_process(
    schedule: str, optimizer: str, num_ranks: int, place: Path, tmp_path: Path
) -> None:
    settings = make_settings(place, schedule, optimizer)
    tolerance = TOLERANCES[optimizer]
    (single,) = run_on_ranks(1, train_on_rank, place / "photos", tmp_path / "1", settings)
    initial = create_small_training(place / "photos", **settings).module.state_dict()
    assert compute_largest_difference(single[0], initial) > 10 * tolerance, (
        "the comparison is vacuous"
    )
    settings["trainer__devices"] = num_ranks
    ranks = run_on_ranks(num_ranks, train_on_rank, place / "photos", tmp_path / "n", settings)
    for rank in ranks:
        assert not isinstance(rank, str), rank
        assert compute_largest_difference(rank[0], ranks[0][0]) == 0
        assert rank[1] == ranks[0][1]
    assert compute_largest_difference(ranks[0][0], single[0]) <= tolerance
    assert ranks[0][1] == pytest.approx(single[1], abs=20 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("num_val", [1, 2, 3, 5, 15])
def test_validation_metrics_are_equal_on_any_number_of_ranks(num_val: int, place: Path) -> None:
    """With one image on a rank, with none, and with a number that the ranks do not divide."""
    (single,) = run_on_ranks(1, validate_on_rank, place / "photos", num_val, 1)
    assert set(single) >= {"val/loss", "val/accuracy", "val/macro_f1"}
    for count in (2, 4):
        for metrics in run_on_ranks(count, validate_on_rank, place / "photos", num_val, count):
            assert metrics == single


def count_group_parameters(photos: Path, groups: slice) -> int:
    """Return the number of parameters of some layer groups."""
    selected: tuple[LayerGroup, ...] = create_small_training(photos).module.classifier.groups[
        groups
    ]
    return sum(group.num_parameters for group in selected)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_ddp_sends_only_trained_gradients_and_changing_buffers(
    batch_norm: str, place: Path, tmp_path: Path
) -> None:
    settings = {
        **make_settings(place, "milestones", "sgd"),
        "model__batch_norm": batch_norm,
        "unfreeze__params": {"depths": {0: 1, 1: 2, 2: 1.0}},
        "trainer__devices": 2,
    }
    photos = place / "photos"
    module = create_small_training(photos).module
    # BatchNorm statistics of all layers are sent if training updates them
    buffer_bytes = (batch_norm == "train") * sum(buffer.nbytes for buffer in module.buffers())
    for sent in run_on_ranks(2, count_bytes_on_rank, photos, tmp_path, settings):
        for epoch, depth in enumerate((1, 2, None)):
            gradient_bytes = 4 * count_group_parameters(photos, slice(0, depth))  # float32
            first, *later = sent[epoch]  # three steps an epoch
            assert later == [gradient_bytes + buffer_bytes] * 2
            # a wrapper that has just been built sends no buffers in its first step
            assert first in (gradient_bytes, gradient_bytes + buffer_bytes)


@pytest.mark.runs
@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_stopped_in_validation_finish_epoch_after_resume(
    num_ranks: int, place: Path, tmp_path: Path
) -> None:
    arguments = (place / "photos", tmp_path / "run", "gloo", "cpu")
    for result in run_on_ranks(num_ranks, train_with_stop_in_validation, *arguments):
        assert result == STOPPED_AND_RESUMED


def test_open_group_outside_of_launch_opens_no_process_group() -> None:
    with open_group() as rendezvous:
        assert rendezvous is None
        assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hinge", "mse"])
def test_plateau_and_constraints_of_weights_on_two_ranks_end_like_one_process(
    loss: str, place: Path, tmp_path: Path
) -> None:
    settings = {
        **make_settings(place, "all", "sgd"),
        "lr_schedule__name": "plateau",
        # no epoch is better than the first by 90%, so that the rate is halved after each
        "lr_schedule__params": {"patience": 0, "factor": 0.5, "threshold": 0.9},
        "optim__max_norm": {"all": 1.0, "head": 0.2},
        "optim__head_l1": 0.01,
        "loss__name": loss,
    }
    (single,) = run_on_ranks(1, train_on_rank, place / "photos", tmp_path / "1", settings)
    assert single[1]["lr/head"] == pytest.approx(0.2 * 0.5, rel=1e-3)
    settings["trainer__devices"] = 2
    ranks = run_on_ranks(2, train_on_rank, place / "photos", tmp_path / "n", settings)
    assert compute_largest_difference(ranks[0][0], ranks[1][0]) == 0
    assert compute_largest_difference(ranks[0][0], single[0]) <= 1e-5
    weight = next(t for name, t in single[0].items() if name.endswith("fc.weight"))
    assert float(weight.norm(dim=1).max()) == pytest.approx(0.2, abs=0.05)

"""One, two and four processes end alike, through every schedule; only what trains is sent."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.models.groups import LayerGroup
from tests.support.processes import (
    FINISHED_AFTER_A_STOP,
    counted,
    grouped,
    on_ranks,
    stopped_in_validation,
    trained,
    validated,
)
from tests.support.runs import largest_difference, small_training, write_photos, write_weights

SGD: dict[str, Any] = {
    "optim__name": "sgd",
    "optim__lr": 0.2,
    "optim__backbone_lr_scale": 1.0,
    "optim__layer_decay": 1.0,
    "optim__weight_decay": 0.0,
}
ADAMW: dict[str, Any] = {"optim__name": "adamw", "optim__lr": 0.001}
SCHEDULES: dict[str, dict[str, Any]] = {
    "all": {},
    "linear_probe": {},
    "head_first": {"epochs": 1},
    "gradual": {"step": 0.5},
    "milestones": {"depths": {0: 1, 1: 3, 2: 1.0}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos and weights."""
    folder = tmp_path_factory.mktemp("ranks")
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    return folder


def settings_of(place: Path, schedule: str, optim: dict[str, Any]) -> dict[str, Any]:
    return {
        "model__weights": str(place / "weights.pth"),
        "model__batch_norm": "frozen",
        "probe__enabled": "off",
        "trainer__epochs": 3,
        "unfreeze__name": schedule,
        "unfreeze__params": SCHEDULES[schedule],
        "imbalance__strategy": "weighted",
        "augment__name": "medium",
        **optim,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("optim", "tolerance"), [(SGD, 1e-6), (ADAMW, 1e-4)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_number_of_processes_ends_as_one_does(
    schedule: str, optim: dict[str, Any], tolerance: float, place: Path, tmp_path: Path
) -> None:
    settings = settings_of(place, schedule, optim)
    (alone,) = on_ranks(1, trained, place / "photos", tmp_path / "1", settings)
    start = small_training(place / "photos", **settings).module.state_dict()
    assert largest_difference(alone[0], start) > 10 * tolerance, "equality would say nothing"
    for count in (2, 4):
        ranks = on_ranks(
            count,
            trained,
            place / "photos",
            tmp_path / str(count),
            {**settings, "trainer__devices": count},
        )
        for rank in ranks:
            assert not isinstance(rank, str), rank
            assert largest_difference(rank[0], ranks[0][0]) == 0
            assert rank[1] == ranks[0][1]
        assert largest_difference(ranks[0][0], alone[0]) <= tolerance
        assert ranks[0][1] == pytest.approx(alone[1], abs=20 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("num_val", [1, 2, 3, 5, 15])
def test_the_metrics_of_the_same_weights_are_the_same_to_the_last_digit(
    num_val: int, place: Path
) -> None:
    """With one image on a rank, with none, and with a rest that no number of ranks divides."""
    (alone,) = on_ranks(1, validated, place / "photos", num_val, 1)
    assert set(alone) >= {"val/loss", "val/accuracy", "val/macro_f1"}
    for count in (2, 4):
        for metrics in on_ranks(count, validated, place / "photos", num_val, count):
            assert metrics == alone


def parameters_of(place: Path, groups: slice) -> tuple[int, int]:
    """Return how many tensors and numbers some layer groups hold."""
    chosen: tuple[LayerGroup, ...] = small_training(place).module.classifier.groups[groups]
    return sum(len(g.parameter_names) for g in chosen), sum(g.num_parameters for g in chosen)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_a_frozen_backbone_is_not_sent(batch_norm: str, place: Path, tmp_path: Path) -> None:
    settings = {
        **settings_of(place, "milestones", SGD),
        "model__batch_norm": batch_norm,
        "unfreeze__params": {"depths": {0: 1, 1: 2, 2: 1.0}},
        "trainer__devices": 2,
    }
    photos = place / "photos"
    live = batch_norm == "train"  # statistics that move are sent, those of all layers
    module = small_training(photos).module
    statistics = live * sum(buffer.nbytes for buffer in module.buffers())
    for sent in on_ranks(2, counted, photos, tmp_path, settings):
        for epoch, depth in enumerate((1, 2, None)):
            _, numbers = parameters_of(photos, slice(0, depth))
            # float32; three steps an epoch
            gradients, (first, *later) = 4 * numbers, sent[epoch]
            assert later == [gradients + statistics] * 2
            # DDP sends none where it has just been made
            assert first in (gradients, gradients + statistics)


def test_a_group_that_is_stopped_in_its_validation_finishes_the_epoch_later(
    place: Path, tmp_path: Path
) -> None:
    (told,) = on_ranks(1, stopped_in_validation, place / "photos", tmp_path, "gloo", "cpu")
    assert told == FINISHED_AFTER_A_STOP


@pytest.mark.slow
def test_ranks_that_are_stopped_in_their_validation_finish_the_epoch_later(
    place: Path, tmp_path: Path
) -> None:
    for told in on_ranks(2, stopped_in_validation, place / "photos", tmp_path, "gloo", "cpu"):
        assert told == FINISHED_AFTER_A_STOP


def test_a_process_of_its_own_is_alone() -> None:
    with grouped() as launch:
        assert launch is None
        assert not torch.distributed.is_initialized()

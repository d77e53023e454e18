"""Freezing with the real trainer, on one rank and on two."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from finetune.builders import Training
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from tests.support.networks import copy_state, find_changed, randomise
from tests.support.processes import (
    StaleDdpRebuild,
    WithoutDdpRebuild,
    WithoutDdpRebuildOrCheck,
    run_on_ranks,
    train_on_rank,
)
from tests.support.runs import compute_largest_difference, create_small_training, write_weights
from tests.training.callbacks.reporting import train_with_callbacks

SETTINGS: dict[str, Any] = {
    "trainer__epochs": 3,
    "unfreeze__name": "gradual",
    "unfreeze__params": {"step": 0.5},
    "optim__name": "sgd",
    "optim__lr": 0.2,
    "optim__backbone_lr_scale": 1.0,
    "optim__layer_decay": 1.0,
    "optim__weight_decay": 0.0,
    "lr_schedule__name": "constant",
    "model__batch_norm": "frozen",
}


class StateRecorder(Callback):
    """Callback that takes a snapshot of the network at the start and after each epoch."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.snapshots.append(copy_state(pl_module.classifier.network))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.snapshots.append(copy_state(pl_module.classifier.network))


def get_state_names(training: Training, groups: slice) -> set[str]:
    """Return the names of the parameters and BatchNorm buffers of some layer groups."""
    classifier = training.module.classifier
    names = {name for group in classifier.groups[groups] for name in group.parameter_names}
    for name, module in classifier.network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.weight" in names:
            names |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    return names


@pytest.mark.parametrize(
    ("backbone", "optimizer", "batch_norm"),
    [
        ("test_resnet", "sgd", "frozen"),
        ("test_resnet", "adamw", "train"),
        pytest.param("resnet10t", "sgd", "train", marks=pytest.mark.slow),
        pytest.param("resnet10t", "adamw", "frozen", marks=pytest.mark.slow),
    ],
)
def test_unfreeze_scheduler_frozen_groups_keep_every_bit_and_others_change(
    backbone: str, optimizer: str, batch_norm: str, animals: Path, tmp_path: Path
) -> None:
    depths = {0: 1, 2: 3, 3: 99}
    training = create_small_training(
        animals,
        model__backbone=backbone,
        model__batch_norm=batch_norm,
        optim__name=optimizer,
        optim__lr=0.05,
        trainer__epochs=4,
        unfreeze__name="milestones",
        unfreeze__params={"depths": depths},
    )
    randomise(training.module.classifier.network)
    recorder = StateRecorder()
    train_with_callbacks(training, tmp_path, UnfreezeScheduler(), recorder)
    all_names = set(recorder.snapshots[0])
    for epoch, depth in enumerate([1, 1, 3, None]):
        before, after = recorder.snapshots[epoch], recorder.snapshots[epoch + 1]
        changed_names = {name for name in all_names if not torch.equal(before[name], after[name])}
        trained_names = get_state_names(training, slice(0, depth))
        parameters = {n for n, _ in training.module.classifier.network.named_parameters()}
        assert changed_names <= trained_names
        assert trained_names & parameters <= changed_names
        buffers = trained_names - parameters
        assert (
            (buffers <= changed_names) if batch_norm == "train" else not (buffers & changed_names)
        )
    assert get_state_names(training, slice(0, None)) == all_names


def test_unfreeze_scheduler_frozen_batch_norm_ends_in_eval_mode(
    animals: Path, tmp_path: Path
) -> None:
    training = create_small_training(animals, unfreeze__name="linear_probe", trainer__epochs=1)
    before = copy_state(training.module.classifier.network)
    train_with_callbacks(training, tmp_path, UnfreezeScheduler())
    network = training.module.classifier.network
    assert find_changed(before, network) == {"fc.weight", "fc.bias"}
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.runs
def test_unfreeze_scheduler_two_ranks_equal_one_process(animals: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    settings = {**SETTINGS, "model__weights": str(weights)}
    single = train_on_rank(0, animals, tmp_path / "one", settings)
    assert not isinstance(single, str)
    before = create_small_training(animals, **settings).module.state_dict()
    groups = create_small_training(animals, **settings).module.classifier.groups
    for group in groups:  # otherwise equality to 1e-6 would prove nothing
        names = [f"classifier.network.{name}" for name in group.parameter_names]
        old, new = ({name: state[name] for name in names} for state in (before, single[0]))
        assert compute_largest_difference(old, new) > 1e-4, group.name

    ranks = run_on_ranks(
        2, train_on_rank, animals, tmp_path / "two", {**settings, "trainer__devices": 2}
    )
    assert compute_largest_difference(ranks[0][0], ranks[1][0]) == 0
    assert compute_largest_difference(ranks[0][0], single[0]) <= 1e-6
    for rank in ranks:
        assert rank[1] == pytest.approx(single[1], abs=1e-6)


@pytest.mark.runs
def test_unfreeze_without_ddp_rebuild_or_check_ranks_diverge_silently(
    animals: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "trainer__devices": 2}
    ranks = run_on_ranks(2, train_on_rank, animals, tmp_path, settings, WithoutDdpRebuildOrCheck)
    assert compute_largest_difference(ranks[0][0], ranks[1][0]) > 1e-4


@pytest.mark.runs
def test_unfreeze_without_ddp_rebuild_raises_training_error_with_layer_name(
    animals: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "trainer__devices": 2}
    for message in run_on_ranks(2, train_on_rank, animals, tmp_path, settings, WithoutDdpRebuild):
        assert message.startswith("TrainingError: ")
        assert ": classifier." in message
        assert "differs between rank 0 and rank 1" in message


@pytest.mark.runs
def test_unfreeze_scheduler_stale_ddp_wrapper_raises_training_error(
    animals: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "trainer__devices": 2}
    for message in run_on_ranks(2, train_on_rank, animals, tmp_path, settings, StaleDdpRebuild):
        assert re.match(r"TrainingError: DDP\b.* 2 .* \d+ ", message)

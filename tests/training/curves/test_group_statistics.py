"""Gradient norms and changes of the weights by layer group, compared with a plain loop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor

from finetune.builders import Training, build_trainer_options
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.curves.group_statistics import GroupStatistics
from finetune.training.curves.train_clock import TrainClock
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.trainer import create_trainer, fit
from finetune.types import Reporter
from tests.support.networks import randomise
from tests.support.runs import create_small_training, read_rows

CLIP = 1e-3
"""Far below the norm of any gradient here."""


class PlainRecorder(Callback):
    """Callback that records the gradients of each step, unclipped, and weights of each epoch."""

    def __init__(self) -> None:
        self.norms: list[list[dict[str, float]]] = []
        self.starts: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.norms.append([])
        self.starts.append(copy_weights(pl_module))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = dict(pl_module.classifier.network.named_parameters())
        norms = {}
        for group in pl_module.classifier.groups:
            grads = [parameters[n].grad for n in group.parameter_names]
            if any(g is not None for g in grads):
                norms[group.name] = float(torch.cat([g.flatten() for g in grads]).norm())
        self.norms[-1].append(norms)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append(copy_weights(pl_module))


def copy_weights(module: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in module.classifier.network.named_parameters()}


def train(
    training: Training, folder: Path, *callbacks: Callback, checkpoint: Path | None = None
) -> list[dict[str, str]]:
    """Train all epochs, or those after a checkpoint, and return the rows of ``metrics.csv``."""
    randomise(training.module.classifier.network)
    csv = MetricsCsv(folder / "metrics.csv", reporter=Reporter())
    trainer = create_trainer(
        folder,
        build_trainer_options(training.config),
        callbacks=[UnfreezeScheduler(), *callbacks, csv],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=checkpoint)
    return read_rows(folder)


def select(row: dict[str, str], prefix: str) -> dict[str, float]:
    return {n.removeprefix(prefix): float(v) for n, v in row.items() if n.startswith(prefix) and v}


def concatenate(weights: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return torch.cat([weights[name].flatten().double() for name in names])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_statistics_of_epochs_equal_a_plain_loop(
    animals: Path, tmp_path: Path, accumulate: int
) -> None:
    training = create_small_training(
        animals, trainer__gradient_clip_val=CLIP, optim__lr=0.01, unfreeze__name="head_first",
        unfreeze__params={"epochs": 1}, trainer__accumulate_grad_batches=accumulate,
    )  # fmt: skip
    recorder = PlainRecorder()
    rows = train(training, tmp_path, recorder)
    groups = training.module.classifier.groups
    names = [group.name for group in groups]
    for epoch, row in enumerate(rows):
        steps = recorder.norms[epoch]
        assert len(steps) == 3
        expected = {name: sum(s[name] for s in steps) / len(steps) for name in steps[0]}
        assert min(expected.values()) > CLIP
        assert select(row, "grad_norm/") == pytest.approx(expected, rel=1e-5)
        changes = {}
        for group in groups:
            start = concatenate(recorder.starts[epoch], group.parameter_names)
            end = concatenate(recorder.ends[epoch], group.parameter_names)
            changes[group.name] = float((end - start).norm() / start.norm())
        assert select(row, "weight_change/") == pytest.approx(changes, rel=1e-5)
        assert float(row["images_per_second"]) > 0
    # a frozen group: no gradient, no change, no learning rate
    assert list(select(rows[0], "grad_norm/")) == ["head"]
    assert list(select(rows[1], "grad_norm/")) == names
    for prefix in ("weight_change/", "lr/"):
        values = [select(row, prefix) for row in rows]
        assert [name for name in names if values[0][name]] == ["head"]
        assert all(values[1][name] > 0 for name in names)


def test_group_that_is_frozen_later_has_no_gradient_norm(animals: Path, tmp_path: Path) -> None:
    """Lightning keeps what was logged in an earlier epoch."""
    training = create_small_training(animals)
    schedule: Callable[[int], int] = lambda epoch: 2 - epoch  # noqa: E731
    training.module.recipe = replace(training.module.recipe, depth_schedule=schedule)
    first, second = train(training, tmp_path)
    assert list(select(first, "grad_norm/")) == ["head", "layer4"]
    assert list(select(second, "grad_norm/")) == ["head"]
    assert select(second, "weight_change/")["layer4"] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damage_of_weights_that_were_zero_is_found(animals: Path, value: float) -> None:
    """As those of a head that starts at zero, whose relative change is not defined."""
    classifier = create_small_training(animals).module.classifier
    head = [classifier.network.get_parameter(n) for n in classifier.groups[0].parameter_names]
    with torch.no_grad():
        for parameter in head:
            parameter.zero_()
        statistics = GroupStatistics(classifier)
        statistics.start_epoch()
        assert statistics.compute_weight_changes().damaged is None
        head[0][0] = value
    changes = statistics.compute_weight_changes()
    assert changes.damaged == "head"
    assert "head" not in changes.relative


def test_add_gradients_returns_the_bits_of_clip_grad_norm(animals: Path) -> None:
    module = create_small_training(animals).module
    randomise(module.classifier.network)
    module(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)).square().sum().backward()
    total = GroupStatistics(module.classifier).add_gradients()
    assert torch.equal(total, torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0))


def test_steps_with_infinite_gradients_are_not_counted(animals: Path) -> None:
    """As those that the scaler of fp16 skips."""
    classifier = create_small_training(animals).module.classifier
    statistics = GroupStatistics(classifier)
    for scale in (1.0, float("inf"), 3.0):
        for parameter in classifier.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        statistics.add_gradients()
    for group in classifier.groups:
        expected = 2.0 * group.num_parameters**0.5
        assert statistics.compute_grad_norms()[group.name] == pytest.approx(expected, rel=1e-4)


def test_train_clock_counts_images_per_second() -> None:
    times = iter([10.0, 14.0])
    clock = TrainClock(lambda: next(times))
    clock.stop()
    assert clock.images_per_second is None, "no epoch has begun"
    clock.start()
    clock.add(30)
    clock.add(10)
    clock.stop()
    assert clock.images_per_second == 10.0


class CheckpointSaver(Callback):
    """Callback that saves after some steps of an epoch; after all of them, within the validation.

    Args:
        path: Path of the checkpoint.
        epoch: Epoch, counted from 0.
        steps: Steps of the epoch.
    """

    def __init__(self, path: Path, *, epoch: int, steps: int) -> None:
        self.path = path
        self.epoch = epoch
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if (trainer.current_epoch, args[-1] + 1) == (self.epoch, self.steps) and self.steps < 3:
            trainer.save_checkpoint(self.path)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.current_epoch == self.epoch and self.steps == 3:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("steps", [2, 3], ids=["within the epoch", "within the validation"])
def test_epoch_resumed_midway_has_the_same_statistics(
    animals: Path, tmp_path: Path, steps: int
) -> None:
    settings: dict[str, Any] = {"optim__lr": 0.01, "model__batch_norm": "frozen"}
    saver = CheckpointSaver(tmp_path / "mid.ckpt", epoch=1, steps=steps)
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    expected = train(create_small_training(animals, **settings), tmp_path / "whole", saver)[1]
    training = create_small_training(animals, **settings)
    (row,) = train(training, tmp_path / "resumed", checkpoint=saver.path)
    times = ("seconds", "images_per_second")
    assert {n: v for n, v in row.items() if n not in times} == {
        n: v for n, v in expected.items() if n not in times
    }
    assert ("images_per_second" in row) == (steps < 3), "no step was timed"

"""NaN in one step: all ranks stop there, and the weights on the disk stay good."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor

from finetune.builders import Training, build_trainer_options
from finetune.errors import TrainingError
from finetune.training.callbacks.preemption import PreemptionCheckpoint
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.checkpoint_io import save_probe
from finetune.training.trainer import create_trainer, fit
from tests.support.processes import run_on_ranks, train_on_rank
from tests.support.runs import create_small_training, load_checkpoint, load_weights
from tests.training.curves.faulty_losses import FaultyLoss

pytestmark = pytest.mark.runs


class NanInValidation(UnfreezeScheduler):
    """Callback after which the second validation has outputs of NaN, on the last rank alone.

    The weights and the training stay finite, as with statistics of BatchNorm that explode.
    """

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == trainer.world_size - 1:
            pl_module.classifier.register_forward_hook(lambda *parts: parts[2] * math.nan)


class StateRecorder(Callback):
    """Callback that records the weights before each step, and may defer the check as on a GPU."""

    def __init__(self, *, is_deferred: bool) -> None:
        self.is_deferred = is_deferred
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.divergence.is_deferred = self.is_deferred
        self.states.append({n: t.clone() for n, t in pl_module.state_dict().items()})


def train(
    training: Training,
    folder: Path,
    *callbacks: Callback,
    criterion: Any = None,
    baseline: float | None = None,
) -> str:
    """Train until the run diverges, and return the message."""
    if criterion is not None:
        training.module.recipe = replace(
            training.module.recipe, criterion_schedule=lambda _: criterion
        )
    trainer = create_trainer(
        folder,
        build_trainer_options(training.config),
        callbacks=[UnfreezeScheduler(), *callbacks],
        loggers=[],
        baseline=baseline,
    )
    with pytest.raises(TrainingError) as caught:
        fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    assert caught.value.exit_code == 7
    return str(caught.value)


@pytest.mark.parametrize("is_deferred", [False, True], ids=["cpu", "deferred as on a GPU"])
@pytest.mark.parametrize("call", [5, 6], ids=["within the epoch", "last step of the epoch"])
def test_nan_loss_is_caught_in_its_step(
    animals: Path, tmp_path: Path, call: int, *, is_deferred: bool
) -> None:
    training = create_small_training(animals, trainer__epochs=3, model__batch_norm="frozen")
    recorder = StateRecorder(is_deferred=is_deferred)
    message = train(training, tmp_path, recorder, criterion=FaultyLoss("loss", call=call))
    assert f"the training loss is nan in epoch 2, step {call - 3} of 3" in message
    assert "learning rates: head 0.0" in message
    assert "Lower optim.lr" in message
    # one step later, when it is deferred, but for the last step, after which weights are saved
    assert len(recorder.states) == (6 if is_deferred else call)
    if not is_deferred:
        after = training.module.state_dict()
        for name, tensor in recorder.states[-1].items():
            assert torch.equal(after[name], tensor), "the step has not changed the weights"
    for name in ("best", "last"):
        assert load_checkpoint(tmp_path, name)["epoch"] == 0
        assert all(t.isfinite().all() for t in load_weights(tmp_path, name).values())
        assert f"{tmp_path / 'checkpoints' / name}.ckpt" in message
    assert "The last good checkpoint is" in message
    assert f"finetune evaluate {tmp_path} and finetune export {tmp_path} use it" in message


def test_infinite_gradient_of_a_finite_loss_is_named(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals)
    message = train(training, tmp_path, criterion=FaultyLoss("gradient", call=2))
    assert "the gradients are not finite" in message
    assert "epoch 1, step 2 of 3" in message
    assert "No checkpoint was written before, and the run has no model to use." in message
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_first_step_is_not_blamed_on_the_learning_rate(animals: Path, tmp_path: Path) -> None:
    message = train(create_small_training(animals), tmp_path, criterion=FaultyLoss("loss", call=1))
    assert "epoch 1, step 1 of 3" in message
    assert "the learning rate is not the cause: check the loss" in message
    assert "Lower optim.lr" not in message


def test_huge_learning_rate_keeps_the_probe(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(
        animals, optim__name="sgd", optim__lr=100, trainer__gradient_clip_val=0,
        optim__backbone_lr_scale=10, lr_schedule__warmup_fraction=0.0, trainer__epochs=4,
    )  # fmt: skip
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    save_probe(training.module, training.module.card, {}, best)
    before = best.read_bytes()
    message = train(training, tmp_path, baseline=0.01)
    assert "Training diverged" in message
    assert f"The best model so far (the linear probe) is kept in {best}" in message
    assert best.read_bytes() == before


def test_checkpoint_is_not_written_between_a_deferred_step_and_its_check(
    animals: Path, tmp_path: Path
) -> None:
    """As at a stop by a signal right after the step."""
    saver = PreemptionCheckpoint(tmp_path / "mid.ckpt", every_minutes=1e-9, timeout=None)  # type: ignore[arg-type]
    recorder = StateRecorder(is_deferred=True)
    training = create_small_training(animals)
    message = train(training, tmp_path, recorder, saver, criterion=FaultyLoss("loss", call=2))
    assert "epoch 1, step 2 of 3" in message
    assert len(recorder.states) == 2
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert saved["position"]["steps"] == 1, "the step before it was saved"
    assert all(t.isfinite().all() for t in saved["state_dict"].values())


def test_nan_in_the_validation_ends_the_run(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals, trainer__epochs=3)
    message = train(training, tmp_path, NanInValidation())
    assert re.match(r"Training diverged: the outputs of (\d+) of \1 images", message)
    assert "measured after epoch 2 are not finite (learning rates: head 0.0" in message
    assert "Lower optim.lr" in message
    assert f"The last good checkpoint is {tmp_path / 'checkpoints' / 'last.ckpt'} (epoch 1)" in (
        message
    )
    for name in ("best", "last"):
        assert load_checkpoint(tmp_path, name)["epoch"] == 0


def test_nan_in_the_validation_of_one_rank_stops_all(animals: Path, tmp_path: Path) -> None:
    settings = {"trainer__devices": 2, "trainer__epochs": 3}
    messages = run_on_ranks(2, train_on_rank, animals, tmp_path, settings, NanInValidation)
    assert messages[0] == messages[1]
    assert messages[0].startswith("DivergenceError: Training diverged: the outputs of ")
    assert "after epoch 2 are not finite" in messages[0]


@pytest.mark.parametrize("name", ["nan_on_rank_1", "nan_value_on_rank_1"])
def test_all_ranks_stop_in_the_same_step(animals: Path, tmp_path: Path, name: str) -> None:
    """Also where the gradients stay finite, by which the others would not notice."""
    settings = {
        "trainer__devices": 2, "trainer__epochs": 3, "model__batch_norm": "frozen",
        "loss__name": f"tests.training.curves.faulty_losses:{name}", "loss__label_smoothing": 0.0,
    }  # fmt: skip
    messages = run_on_ranks(2, train_on_rank, animals, tmp_path, settings)
    for message in messages:
        assert message.startswith("DivergenceError: Training diverged: the ")
        assert "epoch 2, step 2 of 3" in message
    assert "the training loss is nan" in messages[1]
    assert "but the loss is" not in messages[0], "this rank does not know the loss of the other"
    assert load_checkpoint(tmp_path)["epoch"] == 0

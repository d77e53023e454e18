"""Weight average: its steps, validation and bundle by averaged weights, resume."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from finetune.builders import build_trainer_options
from finetune.bundle.bundle import load_model
from finetune.bundle.checkpoint_file import AVERAGE_KEY
from finetune.commands.fit.fit import fit as run_fit
from finetune.commands.fit.fit import resume
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.optimization.weight_average import WeightAverage
from finetune.training.trainer import create_trainer, fit
from tests.support.runs import (
    create_small_config,
    create_small_training,
    load_checkpoint,
    read_rows,
)


class Network(nn.Module):
    """Network with a parameter, a float buffer and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("batches", torch.tensor(0))

    def fill(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.mean.fill_(-value)  # type: ignore[operator]


def test_weight_average_is_mean_of_steps_after_start_step() -> None:
    network = Network()
    average = WeightAverage(network, start_step=2)
    for step, value in enumerate((5.0, 7.0, 1.0, 2.0, 6.0), start=1):
        network.fill(value)
        average.update(step)
    assert average.count == 3
    assert set(average.tensors) == {"weight", "mean"}
    torch.testing.assert_close(average.tensors["weight"], torch.full((3,), 3.0))
    torch.testing.assert_close(average.tensors["mean"], torch.full((2,), -3.0))


def test_weight_average_of_constant_weights_is_bit_identical() -> None:
    network = Network()
    network.fill(0.1)
    average = WeightAverage(network, start_step=0)
    for step in range(1, 8):
        average.update(step)
    assert torch.equal(average.tensors["weight"], network.weight)


def test_weight_average_resumed_from_state_is_bit_identical() -> None:
    network, values = Network(), (0.3, 0.7, 0.9, 0.2)
    uninterrupted, first = (
        WeightAverage(network, start_step=0),
        WeightAverage(network, start_step=0),
    )
    for step, value in enumerate(values, start=1):
        network.fill(value)
        uninterrupted.update(step)
        if step <= 2:
            first.update(step)
        if step == 2:
            second = WeightAverage(network, start_step=0)
            second.load_state_dict(
                {**first.state_dict(), "tensors": {**first.state_dict()["tensors"]}}
            )
            second.move_to_module()
        elif step > 2:
            second.update(step)
    assert torch.equal(second.tensors["weight"], uninterrupted.tensors["weight"])


class WeightRecorder(Callback):
    """Callback that records a weight after each batch."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *rest: object
    ) -> None:
        self.weights.append(next(iter(pl_module.parameters())).detach().clone())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fit_averages_last_steps_and_trains_from_current_weights(
    accumulate: int, animals: Path, tmp_path: Path
) -> None:
    settings = {
        "unfreeze__name": "all",
        "optim__lr": 0.01,
        "trainer__accumulate_grad_batches": accumulate,
    }
    training = create_small_training(animals, optim__swa_fraction=0.5, **settings)
    recorder = WeightRecorder()
    trainer = create_trainer(
        tmp_path,
        build_trainer_options(training.config),
        callbacks=[UnfreezeScheduler(), recorder],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    steps = recorder.weights[accumulate - 1 :: accumulate]
    assert len(steps) == 6
    state = load_checkpoint(tmp_path)
    name = next(name for name, _ in training.module.named_parameters())
    torch.testing.assert_close(
        state[AVERAGE_KEY]["tensors"][name], torch.stack(steps[3:]).mean(dim=0)
    )
    assert torch.equal(state["state_dict"][name], steps[-1])
    loaded = dict(load_model(tmp_path / "checkpoints" / "last.ckpt").network.named_parameters())
    averaged = state[AVERAGE_KEY]["tensors"][name]
    assert torch.equal(loaded[name.removeprefix("classifier.network.")], averaged)
    assert not torch.equal(averaged, steps[-1])


@pytest.mark.runs
def test_fit_validates_the_averaged_weights_of_the_bundle(animals: Path, tmp_path: Path) -> None:
    for fraction in (0.0, 0.5):
        run = tmp_path / f"{fraction:g}"
        config = create_small_config(
            data__path=str(animals),
            output=str(run),
            unfreeze__name="all",
            optim__lr=0.01,
            optim__swa_fraction=fraction,
            trainer__monitor="loss",
        )
        metrics = run_fit(config).metrics["val"]
        best = min(float(row["val/loss"]) for row in read_rows(run))
        assert metrics["loss"] == pytest.approx(best, rel=1e-5)
    assert read_rows(tmp_path / "0")[0]["val/loss"] == read_rows(tmp_path / "0.5")[0]["val/loss"]
    assert read_rows(tmp_path / "0")[1]["val/loss"] != read_rows(tmp_path / "0.5")[1]["val/loss"]


def test_weight_average_state_of_other_start_step_is_ignored() -> None:
    network = Network()
    first = WeightAverage(network, start_step=1)
    for step in (1, 2, 3):
        first.update(step)
    longer = WeightAverage(network, start_step=4)
    longer.load_state_dict(first.state_dict())
    assert not longer.tensors
    network.fill(2.0)
    longer.update(5)
    assert longer.count == 1
    assert torch.equal(longer.tensors["weight"], network.weight)


def test_swa_fraction_below_two_steps_raises_config_error(animals: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.swa_fraction=0\.1\b.*trainer\.epochs"):
        create_small_training(animals, optim__swa_fraction=0.1)


def test_swa_fraction_with_unsynchronized_batch_norm_raises_config_error(animals: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.swa_fraction=0\.5 .*model\.batch_norm=train"):
        create_small_training(animals, optim__swa_fraction=0.5, trainer__devices=2)


@pytest.mark.runs
def test_resume_longer_run_continues_average_bit_identically(animals: Path, tmp_path: Path) -> None:
    def build_config(name: str, epochs: int) -> Config:
        return create_small_config(
            data__path=str(animals),
            output=str(tmp_path / name),
            unfreeze__name="all",
            optim__swa_fraction=1.0,
            trainer__epochs=epochs,
            lr_schedule__name="constant",
            lr_schedule__warmup_fraction=0.0,
        )

    run_fit(build_config("uninterrupted", 2))
    run_fit(build_config("resumed", 1))
    resume(tmp_path / "resumed", assignments={"trainer.epochs": 2})
    uninterrupted, resumed = (
        load_checkpoint(tmp_path / name)[AVERAGE_KEY] for name in ("uninterrupted", "resumed")
    )
    assert resumed["count"] == uninterrupted["count"] == 6
    for name, tensor in uninterrupted["tensors"].items():
        assert torch.equal(tensor, resumed["tensors"][name]), name

"""Freezing on the real trainer, with one rank and with two; progress adds up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from finetune.builders import Training, build_trainer_options
from finetune.data.images.source import FileSource
from finetune.models.classifier import ImageClassifier
from finetune.training.callbacks.freeze_layers import NetworkCompiler, Progress, UnfreezeScheduler
from finetune.training.trainer import create_trainer, fit
from finetune.types import Reporter
from tests.support.networks import changed, randomise, snapshot
from tests.support.processes import (
    RebuildForgotten,
    WithoutRebuild,
    WithoutRebuildOrCheck,
    on_two_ranks,
    trained,
)
from tests.support.runs import largest_difference, small_training, write_weights

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


HEAD_FIRST: dict[str, Any] = {
    "unfreeze__name": "head_first",
    "unfreeze__params": {"epochs": 1},
}


def run_epochs(training: Training, folder: Path, *callbacks: Callback) -> None:
    trainer = create_trainer(
        folder,
        build_trainer_options(training.config),
        callbacks=callbacks,
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)


class States(Callback):
    """Takes a snapshot of the network at the start and after each epoch."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.taken.append(snapshot(pl_module.classifier.network))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.taken.append(snapshot(pl_module.classifier.network))


def names_of(training: Training, groups: slice) -> set[str]:
    """Return parameters of some layer groups, and the buffers of their BatchNorm layers."""
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
def test_what_is_frozen_keeps_every_bit_and_the_rest_moves(
    backbone: str, optimizer: str, batch_norm: str, animals: Path, tmp_path: Path
) -> None:
    depths = {0: 1, 2: 3, 3: 99}
    training = small_training(
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
    states = States()
    run_epochs(training, tmp_path, UnfreezeScheduler(), states)
    everything = set(states.taken[0])
    for epoch, depth in enumerate([1, 1, 3, None]):
        before, after = states.taken[epoch], states.taken[epoch + 1]
        moved = {name for name in everything if not torch.equal(before[name], after[name])}
        trained_names = names_of(training, slice(0, depth))
        parameters = {n for n, _ in training.module.classifier.network.named_parameters()}
        assert moved <= trained_names
        assert trained_names & parameters <= moved
        buffers = trained_names - parameters
        assert (buffers <= moved) if batch_norm == "train" else not (buffers & moved)
    assert names_of(training, slice(0, None)) == everything


def test_the_run_ends_in_eval_mode_for_what_is_frozen(animals: Path, tmp_path: Path) -> None:
    training = small_training(animals, unfreeze__name="linear_probe", trainer__epochs=1)
    before = snapshot(training.module.classifier.network)
    run_epochs(training, tmp_path, UnfreezeScheduler())
    network = training.module.classifier.network
    assert changed(before, network) == {"fc.weight", "fc.bias"}
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_two_ranks_end_alike_and_as_one_process_does(animals: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    settings = {**SETTINGS, "model__weights": str(weights)}
    single = trained(0, animals, tmp_path / "one", settings)
    assert not isinstance(single, str)
    before = small_training(animals, **settings).module.state_dict()
    groups = small_training(animals, **settings).module.classifier.groups
    for group in groups:  # or equality to 1e-6 would say nothing
        names = [f"classifier.network.{name}" for name in group.parameter_names]
        old, new = ({name: state[name] for name in names} for state in (before, single[0]))
        assert largest_difference(old, new) > 1e-4, group.name

    ranks = on_two_ranks(trained, animals, tmp_path / "two", {**settings, "trainer__devices": 2})
    assert largest_difference(ranks[0][0], ranks[1][0]) == 0
    assert largest_difference(ranks[0][0], single[0]) <= 1e-6
    for rank in ranks:
        assert rank[1] == pytest.approx(single[1], abs=1e-6)


def test_without_the_rebuild_ranks_drift_apart_in_silence(animals: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "trainer__devices": 2}
    ranks = on_two_ranks(trained, animals, tmp_path, settings, WithoutRebuildOrCheck)
    assert largest_difference(ranks[0][0], ranks[1][0]) > 1e-4


def test_ranks_that_drift_apart_are_found_with_the_layers_name(
    animals: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "trainer__devices": 2}
    for message in on_two_ranks(trained, animals, tmp_path, settings, WithoutRebuild):
        assert message.startswith("TrainingError: The processes have drifted apart: classifier.")
        assert "differs between rank 0 and rank 1" in message


def test_a_wrapper_that_misses_what_trains_is_an_error(animals: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "trainer__devices": 2}
    for message in on_two_ranks(trained, animals, tmp_path, settings, RebuildForgotten):
        assert message.startswith("TrainingError: DDP reduces 2 tensors, but ")
        assert "would drift apart" in message


class Heard(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def note(self, message: str) -> None:
        self.told.append(("note", message))

    def start(self, task: str, total: int) -> None:
        self.told.append(("start", (task, total)))

    def advance(self, steps: int = 1) -> None:
        self.told.append(("advance", steps))

    def finish(self) -> None:
        self.told.append(("finish", None))

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        self.told.append(("epoch", row))


@pytest.mark.parametrize("reason", [None, "RuntimeError: no compiler"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_network_is_compiled_for_batches_of_training_as_they_will_be(
    precision: str,
    reason: str | None,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []
    seen: list[tuple[Any, ...]] = []

    def facts(model: ImageClassifier, images: Tensor) -> tuple[Any, ...]:
        half = torch.is_autocast_enabled("cpu")
        return images.shape, images.stride(), images.dtype, model.training, model.depth, half

    def compile_for_training(self: ImageClassifier, example: Tensor) -> str | None:
        asked.append(facts(self, example))
        return reason

    forward = ImageClassifier.forward

    def watched(self: ImageClassifier, images: Tensor) -> Tensor:
        seen.append(facts(self, images))
        return forward(self, images)

    monkeypatch.setattr("torch.compiler.reset", lambda: None)  # it would import the compiler
    monkeypatch.setattr(ImageClassifier, "compile_for_training", compile_for_training)
    monkeypatch.setattr(ImageClassifier, "forward", watched)
    training = small_training(animals, trainer__precision=precision, **HEAD_FIRST)
    heard = Heard()
    run_epochs(
        training,
        tmp_path,
        UnfreezeScheduler(),
        NetworkCompiler(heard, batch_size=8, size_schedule=lambda _: (32, 32)),
    )
    told: list[tuple[str, Any]] = [("start", ("compiling the network", 1)), ("finish", None)]
    of_training = [facts_ for facts_ in seen if facts_[3]]
    assert len(of_training) == 2 * 3
    if reason is None:
        assert asked == [of_training[0], of_training[3]], "before the first batch of each depth"
        assert heard.told == 2 * told
    else:
        assert asked == [of_training[0]], "what fails once is not tried again"
        words = "trainer.compile fails, and training goes on without it: RuntimeError: no compiler"
        assert heard.told == [*told, ("note", words)]


def test_each_epoch_advances_by_as_much_as_was_announced(animals: Path, tmp_path: Path) -> None:
    heard = Heard()
    run_epochs(small_training(animals), tmp_path, UnfreezeScheduler(), Progress(heard))
    starts = [place for place, (kind, _) in enumerate(heard.told) if kind == "start"]
    assert [heard.told[place][1][0] for place in starts] == ["epoch 1/2", "epoch 2/2"]
    for first, last in zip(starts, [*starts[1:], len(heard.told)], strict=True):
        advanced = sum(value for kind, value in heard.told[first:last] if kind == "advance")
        # 24 and 15 images in batches of 8
        assert advanced == heard.told[first][1][1] == 3 + 2
    assert heard.told[-1] == ("finish", None)


def test_the_bar_ends_when_training_breaks_off(animals: Path, tmp_path: Path) -> None:
    training = small_training(animals)
    training.datamodule.train_dataset.source = FileSource(
        [tmp_path / "gone.png"] * len(training.datamodule.train_dataset)
    )
    heard = Heard()
    with pytest.raises(ValueError, match=r"gone\.png.*restore it, then resume"):
        run_epochs(training, tmp_path, UnfreezeScheduler(), Progress(heard))
    assert heard.told[-1] == ("finish", None)

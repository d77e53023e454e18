"""One step is what plain PyTorch does; a diverged epoch leaves the checkpoint before it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pytorch_lightning import Callback
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import normalize

from finetune.build import Training
from finetune.errors import TrainingError
from finetune.training.callbacks import Unfreeze
from finetune.training.module import CARD_KEY
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from tests.networks import randomise
from tests.runs import checkpoint, small_training

Criterion = Callable[[Tensor, Tensor], Tensor]


def run(training: Training, folder: Path, *callbacks: Callback, epochs: int = 2) -> Any:
    trainer = create_trainer(
        folder,
        TrainerOptions(epochs=epochs, monitor="val/accuracy", gradient_clip=0.0),
        callbacks=[Unfreeze(), *callbacks],
        loggers=[],
    )
    fit(trainer, training.module, training.data, checkpoint=None)
    return trainer


def with_criterion(training: Training, criterion: Criterion) -> Training:
    training.module.recipe = replace(training.module.recipe, criterion=criterion)
    return training


def test_the_forward_pass_is_timms_on_normalised_pixels(animals: Path) -> None:
    module = small_training(animals).module.eval()
    randomise(module.classifier.network)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    pixels = normalize(images.permute(0, 3, 1, 2) / 255, list(module.spec.mean), [*module.spec.std])
    torch.testing.assert_close(module(images), module.classifier.network(pixels))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(images).dtype == torch.float32


def test_an_epoch_is_what_a_plain_loop_of_pytorch_does(animals: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "optim__name": "sgd",
        "optim__lr": 0.1,
        "optim__backbone_lr_scale": 0.5,
        "optim__layer_decay": 0.5,
        "optim__weight_decay": 0.01,
        "lr_schedule__name": "linear",
        "lr_schedule__warmup_fraction": 0.5,
        "lr_schedule__final_factor": 0.0,
        "loss__label_smoothing": 0.1,
        "model__batch_norm": "frozen",
        "trainer__epochs": 1,
    }
    training = small_training(animals, **settings)
    randomise(training.module.classifier.network)
    reference = small_training(animals, **settings)
    randomise(reference.module.classifier.network)
    trainer = run(training, tmp_path, epochs=1)

    network = reference.module.classifier.network.eval()
    groups = reference.module.classifier.groups
    parameters = dict(network.named_parameters())
    velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
    rates = [0.1, *(0.1 * 0.5 * 0.5**distance for distance in range(len(groups) - 1))]
    reference.data.trainer = trainer
    trainer.fit_loop.epoch_progress.current.processed = 0
    losses = []
    # three steps; the rise takes round(0.5 * 3) = 2 of them
    for step, batch in enumerate(reference.data.train_dataloader()):
        factor = (1 - step / 3) * min(1.0, (step + 1) / 2)
        loss = cross_entropy(reference.module(batch["image"]), batch["label"], label_smoothing=0.1)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        gradient_of = dict(zip(parameters, gradients, strict=True))
        with torch.no_grad():
            for group, rate in zip(groups, rates, strict=True):
                for name in group.parameters:
                    value = parameters[name]
                    decay = 0.01 if value.ndim > 1 else 0.0
                    gradient = gradient_of[name] + decay * value
                    velocity[name].mul_(0.9).add_(gradient)
                    value.sub_(rate * factor * (gradient + 0.9 * velocity[name]))
    trained = dict(training.module.classifier.network.named_parameters())
    for name, value in parameters.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-6)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(sum(losses) / 3, abs=1e-6)
    # the rates of the last step, at which the factor is 1/3
    logged = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("lr/")}
    assert logged == pytest.approx(
        {f"lr/{group.name}": rate / 3 for group, rate in zip(groups, rates, strict=True)}
    )


def test_validation_metrics_are_scikit_learns_on_all_images(animals: Path, tmp_path: Path) -> None:
    training = small_training(animals, optim__lr=0.05)
    randomise(training.module.classifier.network)
    trainer = run(training, tmp_path)
    network = training.module.eval()
    batch = torch.utils.data.default_collate([training.data.val[row] for row in range(15)])
    with torch.no_grad():
        probabilities = network(batch["image"]).softmax(dim=1).double().numpy()
    predicted, labels = probabilities.argmax(1), batch["label"].numpy()
    expected = {
        "val/loss": log_loss(labels, probabilities / probabilities.sum(1, keepdims=True)),
        "val/accuracy": accuracy_score(labels, predicted),
        "val/balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "val/macro_f1": f1_score(labels, predicted, average="macro"),
    }
    found = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
    assert found == pytest.approx(expected, abs=1e-5)


class BadFrom(Callback):
    """Spoils a weight at the start of an epoch, and keeps the digest of the checkpoint before."""

    def __init__(self, epoch: int, last: Path) -> None:
        self.epoch = epoch
        self.last = last
        self.digest = ""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.digest = hashlib.sha256(self.last.read_bytes()).hexdigest()
            with torch.no_grad():
                pl_module.classifier.network.get_classifier().bias.fill_(float("inf"))


def test_a_loss_that_is_no_number_ends_the_run_before_its_checkpoint(
    animals: Path, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    bad = BadFrom(1, last)
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 2: .*Lower optim\.lr"):
        run(small_training(animals), tmp_path, bad, epochs=3)
    assert checkpoint(tmp_path)["epoch"] == 0
    assert hashlib.sha256(last.read_bytes()).hexdigest() == bad.digest


def test_a_checkpoint_holds_the_card_in_plain_values(animals: Path, tmp_path: Path) -> None:
    training = small_training(animals, trainer__epochs=1)
    run(training, tmp_path, epochs=1)
    for name in ("best", "last"):
        card = checkpoint(tmp_path, name)[CARD_KEY]
        assert card["classes"] == ["ant", "bee", "cow"]
        assert card["backbone"] == "test_resnet"
        assert card["spec"]["input_size"] == [3, 32, 32]
        assert card["facts"]["train_images"] == {"ant": 8, "bee": 8, "cow": 8}


def test_all_parameters_are_in_the_optimizer_while_the_head_trains_alone(animals: Path) -> None:
    module = small_training(animals, unfreeze__name="linear_probe").module
    module.classifier.set_depth(1)
    made = cast(dict[str, Any], module.configure_optimizers())
    listed = [id(p) for group in made["optimizer"].param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.parameters())
    assert made["lr_scheduler"]["interval"] == "step"


def dropout_of(training: Training, *, epoch: int, rank: int) -> Tensor:
    """Return the first dropout mask of an epoch on a rank."""
    module = training.module
    module.trainer = cast(Any, SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=2))
    module.on_train_batch_start(None, 0)
    return nn.functional.dropout(torch.ones(64))


def test_dropout_follows_seed_epoch_and_rank(animals: Path) -> None:
    training = small_training(animals, seed=3)
    other = small_training(animals, seed=4)
    with torch.random.fork_rng():
        first = dropout_of(training, epoch=1, rank=0)
        torch.rand(7)
        assert torch.equal(first, dropout_of(training, epoch=1, rank=0))
        for training_, epoch, rank in ((training, 2, 0), (training, 1, 1), (other, 1, 0)):
            assert not torch.equal(first, dropout_of(training_, epoch=epoch, rank=rank))

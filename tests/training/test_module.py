"""One step is what plain PyTorch does; a diverged epoch leaves the checkpoint before it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    recall_score,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import normalize

from finetune.builders import Training, build_trainer_options
from finetune.bundle.model_card import CARD_KEY
from finetune.data.dataset import Batch
from finetune.errors import TrainingError
from finetune.models.classifier import normalise
from finetune.training.callbacks.freeze_layers import UnfreezeScheduler
from finetune.training.loggers.experiment import MetricsCsv
from finetune.training.module import ClassificationModule, EpochSums
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from finetune.types import Reporter
from tests.support.networks import randomise
from tests.support.processes import on_two_ranks, trained
from tests.support.runs import checkpoint, largest_difference, rows, small_training, write_weights

Criterion = Callable[[Tensor, Tensor], Tensor]


def run(training: Training, folder: Path, *callbacks: Callback, epochs: int = 2) -> Any:
    trainer = create_trainer(
        folder,
        TrainerOptions(max_epochs=epochs, monitor="val/accuracy", gradient_clip=0.0),
        callbacks=[UnfreezeScheduler(), *callbacks],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    return trainer


def with_criterion(training: Training, criterion: Criterion) -> Training:
    training.module.recipe = replace(training.module.recipe, criterion_schedule=lambda _: criterion)
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
    reference.datamodule.trainer = trainer
    epochs = trainer.fit_loop.epoch_progress.current
    epochs.processed = epochs.ready = 0
    losses = []
    # three steps; the rise takes round(0.5 * 3) = 2 of them
    for step, batch in enumerate(reference.datamodule.train_dataloader()):
        factor = (1 - step / 3) * min(1.0, (step + 1) / 2)
        loss = cross_entropy(reference.module(batch["image"]), batch["label"], label_smoothing=0.1)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        gradient_of = dict(zip(parameters, gradients, strict=True))
        with torch.no_grad():
            for group, rate in zip(groups, rates, strict=True):
                for name in group.parameter_names:
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
    batch = torch.utils.data.default_collate(
        [training.datamodule.val_dataset[row] for row in range(15)]
    )
    with torch.no_grad():
        probabilities = network(batch["image"]).softmax(dim=1).double().numpy()
    predicted, labels = probabilities.argmax(1), batch["label"].numpy()
    expected = {
        "val/loss": log_loss(labels, probabilities / probabilities.sum(1, keepdims=True)),
        "val/accuracy": accuracy_score(labels, predicted),
        "val/balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "val/macro_f1": f1_score(labels, predicted, average="macro"),
        # of three classes with as many training images each, the first
        "val/rarest_third_recall": recall_score(labels, predicted, labels=[0], average="macro"),
    }
    found = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_rates_of_an_epoch_are_those_of_its_last_step(animals: Path, tmp_path: Path) -> None:
    training = small_training(
        animals,
        trainer__epochs=4,
        trainer__accumulate_grad_batches=2,
        unfreeze__name="head_first",
        unfreeze__params={"epochs": 2},
        optim__backbone_lr_scale=0.5,
        lr_schedule__name="linear",
        lr_schedule__final_factor=0.0,
        lr_schedule__warmup_fraction=0.0,
    )
    file = tmp_path / "metrics.csv"
    trainer = create_trainer(
        tmp_path,
        build_trainer_options(training.config),
        callbacks=[UnfreezeScheduler(), MetricsCsv(file, reporter=Reporter())],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    groups = training.module.classifier.groups
    found = rows(tmp_path)
    assert len(found) == 4
    for epoch, row in enumerate(found):
        assert int(row["step"]) == 3 * (epoch + 1)
        factor = 1 - (3 * epoch + 2) / 12  # of 12 steps
        for group, rate in zip(groups, training.peak_learning_rates, strict=True):
            assert float(row[f"lr/{group.name}"]) == pytest.approx(rate * factor), (epoch, group)


def mixing(animals: Path, **settings: Any) -> ClassificationModule:
    """Return a module that mixes, outside of any trainer."""
    settings = {"augment__mixup": 0.4, "model__batch_norm": "frozen", **settings}
    training = small_training(animals, **settings)
    randomise(training.module.classifier.network)
    return training.module.train()


@dataclass
class Mixed:
    """What a network was given for a batch, and what came of it."""

    pixels: Tensor
    logits: Tensor
    loss: Tensor
    share: float


def mixed(module: ClassificationModule, batch: Batch, *, epoch: int = 0, step: int = 0) -> Mixed:
    """Return the loss of a batch, and an image's share in its mixture as the network saw it."""
    module.trainer = cast(Any, SimpleNamespace(current_epoch=epoch))
    seen: list[tuple[Tensor, Tensor]] = []
    hook = module.classifier.register_forward_hook(
        lambda _, given, logits: seen.append((given[0], logits))
    )
    with torch.no_grad():
        loss = module._compute_loss(batch, step)
    hook.remove()
    ((pixels, logits),) = seen
    own = normalise(batch["image"], mean=module.spec.mean, std=module.spec.std)
    other = own.roll(len(own) // 2, 0)
    share = float(((pixels - other) * (own - other)).sum() / (own - other).square().sum())
    return Mixed(pixels, logits, loss, share)


def batch_of(size: int) -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator)
    rows_ = torch.arange(size)
    return Batch(image=image, label=(rows_ * rows_) % 3, index=rows_)


@pytest.mark.parametrize("size", [8, 7, 1])
def test_images_and_losses_are_mixed_in_the_same_shares(size: int, animals: Path) -> None:
    module = mixing(animals, loss__label_smoothing=0.0)
    batch = batch_of(size)
    found = mixed(module, batch, epoch=1, step=2)
    share = found.share if size > 1 else 0.5
    assert 0 < share < 1
    total = 0.0
    for place in range(size):
        partner = (place - size // 2) % size
        mean, std = (torch.tensor(values) for values in (module.spec.mean, module.spec.std))
        own, other = ((batch["image"][p] / 255 - mean) / std for p in (place, partner))
        mixture = (share * own + (1 - share) * other).permute(2, 0, 1)
        torch.testing.assert_close(found.pixels[place], mixture, rtol=0, atol=1e-5)
        chances = found.logits[place].softmax(0)
        labels = [int(batch["label"][p]) for p in (place, partner)]
        total -= float(share * chances[labels[0]].log() + (1 - share) * chances[labels[1]].log())
    assert float(found.loss) == pytest.approx(total / size, rel=1e-5)


def test_the_share_follows_seed_epoch_and_step(animals: Path) -> None:
    batch = batch_of(4)
    module = mixing(animals, seed=3)
    first = mixed(module, batch, epoch=1, step=2).share
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert mixed(module, batch, epoch=1, step=2).share == first
    others = [
        mixed(module, batch, epoch=2, step=2).share,
        mixed(module, batch, epoch=1, step=3).share,
        mixed(module, batch, epoch=2, step=1).share,
        mixed(mixing(animals, seed=4), batch, epoch=1, step=2).share,
    ]
    assert len({round(share, 4) for share in [first, *others]}) == 5


def test_shares_are_drawn_from_the_beta_distribution(animals: Path) -> None:
    alpha = 0.2
    module = mixing(animals, augment__mixup=alpha)
    batch = batch_of(2)
    shares = np.array([mixed(module, batch, step=step).share for step in range(400)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=4 * (variance / 400) ** 0.5)
    assert shares.var() == pytest.approx(variance, rel=0.15)


def test_without_mixup_nothing_is_mixed_to_the_bit(animals: Path) -> None:
    module = mixing(animals, augment__mixup=0.0)
    batch = batch_of(6)
    found = mixed(module, batch)
    assert torch.equal(
        found.pixels, normalise(batch["image"], mean=module.spec.mean, std=module.spec.std)
    )
    assert torch.equal(
        found.loss, module.recipe.criterion_schedule(0)(found.logits, batch["label"])
    )


def test_colours_change_before_images_are_mixed(animals: Path) -> None:
    module = mixing(animals)
    batch = batch_of(4)
    grey = torch.full((4, 3, 4), 1 / 3)
    grey[..., 3] = 0
    pixels = mixed(module, {**batch, "color_matrix": grey}).pixels
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.spec.mean, module.spec.std))
    channels = pixels * std + mean
    torch.testing.assert_close(channels[:, 0], channels[:, 2])


def test_one_share_serves_all_accumulated_batches_of_a_step(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    loss = ClassificationModule._compute_loss

    def watched(self: ClassificationModule, batch: Batch, step: int) -> Tensor:
        asked.append((self.current_epoch, step))
        return loss(self, batch, step)

    monkeypatch.setattr(ClassificationModule, "_loss", watched)
    training = small_training(animals, trainer__accumulate_grad_batches=2, augment__mixup=0.2)
    trainer = create_trainer(
        tmp_path,
        build_trainer_options(training.config),
        callbacks=[UnfreezeScheduler()],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    assert asked == [(epoch, step) for epoch in (0, 1) for step in (0, 0, 1, 1, 2, 2)]


@pytest.mark.slow
def test_two_ranks_mix_the_same_pairs_as_one_process(animals: Path, tmp_path: Path) -> None:
    settings = {
        "augment__mixup": 0.4,
        "model__weights": str(write_weights(tmp_path / "weights.pth")),
        "model__batch_norm": "frozen",
        "unfreeze__name": "all",
        "optim__name": "sgd",
        "optim__lr": 0.2,
        "optim__backbone_lr_scale": 1.0,
        "optim__layer_decay": 1.0,
    }
    single = trained(0, animals, tmp_path / "one", settings)
    plain = trained(0, animals, tmp_path / "plain", {**settings, "augment__mixup": 0.0})
    ranks = on_two_ranks(trained, animals, tmp_path / "two", {**settings, "trainer__devices": 2})
    assert not isinstance(single, str)
    assert not isinstance(plain, str)
    assert largest_difference(single[0], plain[0]) > 1e-3
    for rank in ranks:
        assert largest_difference(rank[0], single[0]) <= 1e-6
        assert rank[1] == pytest.approx(single[1], abs=1e-6)


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
    on_cpu = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=2, strategy=on_cpu)
    module.trainer = cast(Any, trainer)
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


def test_the_sums_of_an_epoch_go_on_where_the_network_will_be(animals: Path) -> None:
    """Callbacks are restored before the network is moved, and nothing may follow the last step."""
    module = small_training(animals).module
    device = torch.device("meta")
    module._trainer = cast(Any, SimpleNamespace(strategy=SimpleNamespace(root_device=device)))
    module.resume_epoch(EpochSums(1.5, 3, {}))
    assert module._loss_sum is not None
    assert module._loss_sum.device == device

"""Training and validation compared with plain PyTorch and scikit-learn; mixup; divergence."""

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
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import normalize

from finetune.builders import Training, build_trainer_options
from finetune.bundle.model_card import CARD_KEY
from finetune.data.dataset import Batch
from finetune.errors import TrainingError
from finetune.models.classifier import normalise
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.curves.epoch_sums import EpochSums
from finetune.training.loggers.metrics_csv import MetricsCsv
from finetune.training.module import ClassificationModule
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from finetune.types import Reporter
from tests.support.networks import randomise
from tests.support.processes import run_on_ranks, train_on_rank
from tests.support.runs import (
    compute_largest_difference,
    create_small_training,
    load_checkpoint,
    read_rows,
    write_weights,
)

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


def replace_criterion(training: Training, criterion: Criterion) -> Training:
    training.module.recipe = replace(training.module.recipe, criterion_schedule=lambda _: criterion)
    return training


def test_forward_equals_timm_on_normalised_pixels(animals: Path) -> None:
    module = create_small_training(animals).module.eval()
    randomise(module.classifier.network)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    pixels = normalize(images.permute(0, 3, 1, 2) / 255, list(module.spec.mean), [*module.spec.std])
    torch.testing.assert_close(module(images), module.classifier.network(pixels))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(images).dtype == torch.float32


def test_training_epoch_equals_plain_pytorch_loop(animals: Path, tmp_path: Path) -> None:
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
    training = create_small_training(animals, **settings)
    randomise(training.module.classifier.network)
    reference = create_small_training(animals, **settings)
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
    # three steps, of which warmup takes round(0.5 * 3) = 2
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
    # the learning rates of the last step, whose factor is 1/3
    logged = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("lr/")}
    assert logged == pytest.approx(
        {f"lr/{group.name}": rate / 3 for group, rate in zip(groups, rates, strict=True)}
    )


def test_validation_metrics_equal_scikit_learn(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals, optim__lr=0.05)
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
    }
    metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
    calibrated = metrics.pop("val/calibrated_loss")
    assert metrics == pytest.approx(expected, abs=1e-5)
    assert calibrated <= metrics["val/loss"] + 1e-3


def test_validation_adjusts_logits_by_the_class_prior_of_the_epoch(
    animals: Path, tmp_path: Path
) -> None:
    training = create_small_training(animals, optim__lr=0.001)
    module = training.module
    priors = [(0.6, 0.3, 0.1), (0.2, 0.3, 0.5)]
    module.recipe = replace(module.recipe, model_prior_schedule=priors.__getitem__)
    module.card["priors"] = {"train": priors[0], "model": priors[1], "target": (1 / 3,) * 3}
    dataset = training.datamodule.val_dataset
    batch = torch.utils.data.default_collate([dataset[row] for row in range(15)])

    class Recorder(Callback):
        def __init__(self) -> None:
            self.logits: list[Tensor] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                self.logits.append(pl_module.eval()(batch["image"]))

    recorder = Recorder()
    metrics = MetricsCsv(tmp_path / "metrics.csv", reporter=Reporter())
    run(training, tmp_path, recorder, metrics)
    rows = metrics.get_rows(after=0, up_to=2)
    assert len(rows) == len(recorder.logits) == 2
    for row, logits, prior in zip(rows, recorder.logits, priors, strict=True):
        expected = cross_entropy(logits - torch.tensor(prior).log(), batch["label"])
        assert row["val/loss"] == pytest.approx(float(expected), abs=1e-5)


def test_logged_learning_rates_are_those_of_the_last_step(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(
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
    metrics = read_rows(tmp_path)
    assert len(metrics) == 4
    for epoch, row in enumerate(metrics):
        assert int(row["step"]) == 3 * (epoch + 1)
        factor = 1 - (3 * epoch + 2) / 12  # of 12 steps
        for number, (group, rate) in enumerate(
            zip(groups, training.peak_learning_rates, strict=True)
        ):
            expected = rate * factor if number == 0 or epoch >= 2 else 0.0  # 0 while frozen
            assert float(row[f"lr/{group.name}"]) == pytest.approx(expected), (epoch, group)


def build_mixup_module(animals: Path, **settings: Any) -> ClassificationModule:
    """Return a module with mixup in training mode, without a trainer."""
    settings = {"augment__mixup": 0.4, "model__batch_norm": "frozen", **settings}
    training = create_small_training(animals, **settings)
    randomise(training.module.classifier.network)
    return training.module.train()


@dataclass
class MixupResult:
    """Input and output of the network for a batch, the loss, and the weight of each own image."""

    pixels: Tensor
    logits: Tensor
    loss: Tensor
    lam: float


def compute_mixup(
    module: ClassificationModule, batch: Batch, *, epoch: int = 0, step: int = 0
) -> MixupResult:
    """Compute the loss of a batch, and recover the mixing weight from the network's input."""
    module.trainer = cast(Any, SimpleNamespace(current_epoch=epoch))
    calls: list[tuple[Tensor, Tensor]] = []
    hook = module.classifier.register_forward_hook(
        lambda _, args, logits: calls.append((args[0], logits))
    )
    with torch.no_grad():
        loss = module.compute_loss(batch, step)
    hook.remove()
    ((pixels, logits),) = calls
    own = normalise(batch["image"], mean=module.spec.mean, std=module.spec.std)
    partner = own.roll(len(own) // 2, 0)
    lam = float(((pixels - partner) * (own - partner)).sum() / (own - partner).square().sum())
    return MixupResult(pixels, logits, loss, lam)


def make_batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator)
    rows_ = torch.arange(size)
    return Batch(image=image, label=(rows_ * rows_) % 3, index=rows_)


@pytest.mark.parametrize("size", [8, 7, 1])
def test_mixup_weights_images_and_losses_equally(size: int, animals: Path) -> None:
    module = build_mixup_module(animals, loss__label_smoothing=0.0)
    batch = make_batch(size)
    result = compute_mixup(module, batch, epoch=1, step=2)
    lam = result.lam if size > 1 else 0.5
    assert 0 < lam < 1
    total = 0.0
    for position in range(size):
        partner = (position - size // 2) % size
        mean, std = (torch.tensor(values) for values in (module.spec.mean, module.spec.std))
        image, partner_image = ((batch["image"][p] / 255 - mean) / std for p in (position, partner))
        mixture = (lam * image + (1 - lam) * partner_image).permute(2, 0, 1)
        torch.testing.assert_close(result.pixels[position], mixture, rtol=0, atol=1e-5)
        probabilities = result.logits[position].softmax(0)
        labels = [int(batch["label"][p]) for p in (position, partner)]
        total -= float(
            lam * probabilities[labels[0]].log() + (1 - lam) * probabilities[labels[1]].log()
        )
    assert float(result.loss) == pytest.approx(total / size, rel=1e-5)


def test_mixup_weight_depends_on_seed_epoch_and_step_only(animals: Path) -> None:
    batch = make_batch(4)
    module = build_mixup_module(animals, seed=3)
    first = compute_mixup(module, batch, epoch=1, step=2).lam
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert compute_mixup(module, batch, epoch=1, step=2).lam == first
    others = [
        compute_mixup(module, batch, epoch=2, step=2).lam,
        compute_mixup(module, batch, epoch=1, step=3).lam,
        compute_mixup(module, batch, epoch=2, step=1).lam,
        compute_mixup(build_mixup_module(animals, seed=4), batch, epoch=1, step=2).lam,
    ]
    assert len({round(lam, 4) for lam in [first, *others]}) == 5


def test_mixup_weights_follow_beta_distribution(animals: Path) -> None:
    alpha = 0.2
    module = build_mixup_module(animals, augment__mixup=alpha)
    batch = make_batch(2)
    weights = np.array([compute_mixup(module, batch, step=step).lam for step in range(400)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert weights.mean() == pytest.approx(0.5, abs=4 * (variance / 400) ** 0.5)
    assert weights.var() == pytest.approx(variance, rel=0.15)


def test_mixup_disabled_is_bit_identical(animals: Path) -> None:
    module = build_mixup_module(animals, augment__mixup=0.0)
    batch = make_batch(6)
    result = compute_mixup(module, batch)
    assert torch.equal(
        result.pixels, normalise(batch["image"], mean=module.spec.mean, std=module.spec.std)
    )
    assert torch.equal(
        result.loss, module.recipe.criterion_schedule(0)(result.logits, batch["label"])
    )


def test_mixup_applies_color_matrix_before_mixing(animals: Path) -> None:
    module = build_mixup_module(animals)
    batch = make_batch(4)
    grey = torch.full((4, 3, 4), 1 / 3)
    grey[..., 3] = 0
    pixels = compute_mixup(module, {**batch, "color_matrix": grey}).pixels
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.spec.mean, module.spec.std))
    channels = pixels * std + mean
    torch.testing.assert_close(channels[:, 0], channels[:, 2])


def test_mixup_accumulated_batches_share_the_step(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    compute_loss = ClassificationModule.compute_loss

    def record_call(self: ClassificationModule, batch: Batch, step: int) -> Tensor:
        calls.append((self.current_epoch, step))
        return compute_loss(self, batch, step)

    monkeypatch.setattr(ClassificationModule, "compute_loss", record_call)
    training = create_small_training(
        animals, trainer__accumulate_grad_batches=2, augment__mixup=0.2
    )
    trainer = create_trainer(
        tmp_path,
        build_trainer_options(training.config),
        callbacks=[UnfreezeScheduler()],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    assert calls == [(epoch, step) for epoch in (0, 1) for step in (0, 0, 1, 1, 2, 2)]


@pytest.mark.slow
def test_mixup_two_ranks_equal_one_process(animals: Path, tmp_path: Path) -> None:
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
    single = train_on_rank(0, animals, tmp_path / "one", settings)
    plain = train_on_rank(0, animals, tmp_path / "plain", {**settings, "augment__mixup": 0.0})
    ranks = run_on_ranks(
        2, train_on_rank, animals, tmp_path / "two", {**settings, "trainer__devices": 2}
    )
    assert not isinstance(single, str)
    assert not isinstance(plain, str)
    assert compute_largest_difference(single[0], plain[0]) > 1e-3
    for rank in ranks:
        assert compute_largest_difference(rank[0], single[0]) <= 1e-6
        assert rank[1] == pytest.approx(single[1], abs=1e-6)


class WeightCorrupter(Callback):
    """Callback that corrupts a weight at the start of an epoch and records the last checkpoint."""

    def __init__(self, epoch: int, last: Path) -> None:
        self.epoch = epoch
        self.last = last
        self.digest = ""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.digest = hashlib.sha256(self.last.read_bytes()).hexdigest()
            with torch.no_grad():
                pl_module.classifier.network.get_classifier().bias.fill_(float("inf"))


def test_fit_nan_loss_raises_training_error_and_keeps_checkpoint(
    animals: Path, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    corrupter = WeightCorrupter(1, last)
    with pytest.raises(TrainingError, match=r"\bnan\b.*epoch 2\b.*optim\.lr"):
        run(create_small_training(animals), tmp_path, corrupter, epochs=3)
    assert load_checkpoint(tmp_path)["epoch"] == 0
    assert hashlib.sha256(last.read_bytes()).hexdigest() == corrupter.digest


def test_checkpoint_holds_card_as_plain_values(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals, trainer__epochs=1)
    run(training, tmp_path, epochs=1)
    for name in ("best", "last"):
        card = load_checkpoint(tmp_path, name)[CARD_KEY]
        assert card["classes"] == ["ant", "bee", "cow"]
        assert card["backbone"] == "test_resnet"
        assert card["spec"]["input_size"] == [3, 32, 32]
        assert card["facts"]["train_images"] == {"ant": 8, "bee": 8, "cow": 8}


def test_configure_optimizers_includes_frozen_parameters(animals: Path) -> None:
    module = create_small_training(animals, unfreeze__name="linear_probe").module
    module.classifier.set_depth(1)
    configuration = cast(dict[str, Any], module.configure_optimizers())
    parameter_ids = [
        id(p) for group in configuration["optimizer"].param_groups for p in group["params"]
    ]
    assert sorted(parameter_ids) == sorted(id(p) for p in module.parameters())
    assert configuration["lr_scheduler"]["interval"] == "step"


def sample_dropout_mask(training: Training, *, epoch: int, rank: int) -> Tensor:
    """Return the first dropout mask of an epoch on a rank."""
    module = training.module
    on_cpu = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=2, strategy=on_cpu)
    module.trainer = cast(Any, trainer)
    module.on_train_batch_start(None, 0)
    return nn.functional.dropout(torch.ones(64))


def test_dropout_depends_on_seed_epoch_and_rank_only(animals: Path) -> None:
    training = create_small_training(animals, seed=3)
    other = create_small_training(animals, seed=4)
    with torch.random.fork_rng():
        first = sample_dropout_mask(training, epoch=1, rank=0)
        torch.rand(7)
        assert torch.equal(first, sample_dropout_mask(training, epoch=1, rank=0))
        for training_, epoch, rank in ((training, 2, 0), (training, 1, 1), (other, 1, 0)):
            assert not torch.equal(first, sample_dropout_mask(training_, epoch=epoch, rank=rank))


def test_resume_epoch_places_loss_sum_on_root_device(animals: Path) -> None:
    """Callbacks are restored before the network is moved, and the last step may already be done."""
    module = create_small_training(animals).module
    device = torch.device("meta")
    module._trainer = cast(Any, SimpleNamespace(strategy=SimpleNamespace(root_device=device)))
    module.resume_epoch(EpochSums(1.5, 3, {}))
    assert module._loss_sum is not None
    assert module._loss_sum.device == device

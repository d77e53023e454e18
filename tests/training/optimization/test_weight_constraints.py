"""Max-norm and L1 compared with plain torch, also with accumulated batches and averaging."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune.builders import Training
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.optimization.weight_constraints import (
    UnitLimit,
    apply_max_norm,
    find_unit_limits,
)
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from tests.support.networks import randomise
from tests.support.runs import create_small_training, load_checkpoint

PLAIN: dict[str, Any] = {
    "unfreeze__name": "all",
    "lr_schedule__name": "constant",
    "lr_schedule__warmup_fraction": 0.0,
    "loss__label_smoothing": 0.0,
    "model__batch_norm": "frozen",
    "optim__name": "sgd",
    "optim__momentum": 0.0,
    "optim__lr": 0.1,
    "optim__backbone_lr_scale": 1.0,
    "optim__layer_decay": 1.0,
    "optim__weight_decay": 0.0,
    "trainer__epochs": 1,
}


def train(training: Training, folder: Path, **options: Any) -> Any:
    settings = TrainerOptions(max_epochs=1, monitor="val/accuracy", gradient_clip=0.0)
    trainer = create_trainer(
        folder, replace(settings, **options), callbacks=[UnfreezeScheduler()], loggers=[]
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    return trainer


def build_pair(animals: Path, **settings: Any) -> tuple[Training, Training]:
    pair = [create_small_training(animals, **{**PLAIN, **settings}) for _ in range(2)]
    for training in pair:
        randomise(training.module.classifier.network)
    return pair[0], pair[1]


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (6, 1, 3, 3)])
def test_max_norm_equals_torch_renorm(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[0] *= 0.01
    limit = float(weight.flatten(1).norm(dim=1).median())
    expected = torch.renorm(weight, p=2, dim=0, maxnorm=limit)
    result = weight.clone()
    apply_max_norm(UnitLimit(result, limit))
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)
    assert torch.equal(result[0], weight[0])
    assert (result.flatten(1).norm(dim=1) <= limit * (1 + 1e-12)).all()


def test_max_norm_of_zero_weights_keeps_them() -> None:
    weight = torch.zeros(2, 3)
    apply_max_norm(UnitLimit(weight, 1.0))
    assert torch.equal(weight, torch.zeros(2, 3))


@pytest.mark.parametrize("groups", [1, 2])
def test_unit_of_transposed_convolution_is_an_output_channel(groups: int) -> None:
    layer = torch.nn.ConvTranspose2d(4, 6, 3, groups=groups)
    expected = layer.weight.detach().clone()
    for channel in range(6):
        group, column = divmod(channel, 6 // groups)
        rows = slice(group * 4 // groups, (group + 1) * 4 // groups)
        expected[rows, column] *= min(1.0, 0.2 / float(expected[rows, column].norm()))
    (limit,) = find_unit_limits(torch.nn.Sequential(layer), {"0.weight": 0.2, "0.bias": 0.2})
    apply_max_norm(limit)
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_start_fulfils_max_norm_in_linear_layers_and_convolutions_only(animals: Path) -> None:
    training, free = (
        create_small_training(
            animals, model__backbone="test_vit", unfreeze__name="all", optim__max_norm=max_norm
        )
        for max_norm in ({"all": 0.01}, {})
    )
    start = dict(training.module.classifier.network.named_parameters())
    for name, module in free.module.classifier.network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            assert (start[f"{name}.weight"].flatten(1).norm(dim=1) <= 0.01 + 1e-6).all(), name
    for name, parameter in free.module.classifier.network.named_parameters():
        if name in ("pos_embed", "cls_token", "reg_token"):
            assert torch.equal(start[name], parameter), name
    assert float(start["pos_embed"].detach().norm()) > 0.01


def test_training_with_max_norm_equals_plain_loop_that_renorms_each_step(
    animals: Path, tmp_path: Path
) -> None:
    limits = {"head": 0.3, "all": 0.8}
    training, reference = build_pair(animals, optim__max_norm=limits)
    trainer = train(training, tmp_path)
    network = reference.module.classifier.network.eval()
    head = set(reference.module.classifier.groups[0].parameter_names)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    reference.datamodule.trainer = trainer
    epochs = trainer.fit_loop.epoch_progress.current
    epochs.processed = epochs.ready = 0
    num_scaled = 0
    for batch in reference.datamodule.train_dataloader():
        optimizer.zero_grad()
        cross_entropy(reference.module(batch["image"]), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1:
                    limit = limits["head"] if name in head else limits["all"]
                    num_scaled += int((parameter.flatten(1).norm(dim=1) > limit).sum())
                    parameter.copy_(torch.renorm(parameter, 2, 0, limit))
    assert num_scaled
    expected = dict(network.named_parameters())
    for name, parameter in training.module.classifier.network.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)


def test_max_norm_leaves_frozen_groups_and_holds_for_averaged_weights(
    animals: Path, tmp_path: Path
) -> None:
    frozen, _ = build_pair(animals, optim__max_norm={"all": 0.1}, unfreeze__name="linear_probe",
                           probe__enabled="off")  # fmt: skip
    before = {n: p.clone() for n, p in frozen.module.classifier.network.named_parameters()}
    train(frozen, tmp_path / "frozen")
    head = frozen.module.classifier.groups[0].parameter_names
    for name, parameter in frozen.module.classifier.network.named_parameters():
        if name not in head:
            assert torch.equal(parameter, before[name]), name
    averaged, _ = build_pair(animals, optim__max_norm={"head": 0.1}, optim__swa_fraction=1.0)
    train(averaged, tmp_path / "averaged")
    tensors = load_checkpoint(tmp_path / "averaged")["average"]["tensors"]
    weight = next(t for n, t in tensors.items() if n.endswith(head[0]) and t.ndim == 2)
    assert (weight.norm(dim=1) <= 0.1 + 1e-6).all()
    assert (weight.norm(dim=1) > 0.05).any()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_with_head_l1_equals_plain_loop(
    accumulate: int, animals: Path, tmp_path: Path
) -> None:
    training, reference = build_pair(
        animals, optim__head_l1=0.05, trainer__accumulate_grad_batches=accumulate
    )
    trainer = train(training, tmp_path, accumulate_grad_batches=accumulate)
    network = reference.module.classifier.network.eval()
    head = {
        name: parameter
        for name, parameter in network.named_parameters()
        if name in reference.module.classifier.groups[0].parameter_names and parameter.ndim > 1
    }
    assert len(head) == 1
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    reference.datamodule.trainer = trainer
    epochs = trainer.fit_loop.epoch_progress.current
    epochs.processed = epochs.ready = 0
    for number, batch in enumerate(reference.datamodule.train_dataloader()):
        loss = cross_entropy(reference.module(batch["image"]), batch["label"])
        penalty = 0.05 * sum(weight.abs().sum() for weight in head.values())
        ((loss + penalty) / accumulate).backward()  # type: ignore[no-untyped-call]
        if (number + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    expected = dict(network.named_parameters())
    for name, parameter in training.module.classifier.network.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_head_weight_decay_applies_to_the_head_alone(animals: Path) -> None:
    training = create_small_training(
        animals, optim__name="adamw", optim__weight_decay=0.02, optim__head_weight_decay=0.3
    )
    optimizer = training.module.recipe.make_optimizer(training.module.classifier)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays.pop("head") == 0.3
    assert {decay for name, decay in decays.items() if name.endswith("/no_decay")} == {0.0}
    assert {decay for name, decay in decays.items() if "/" not in name} == {0.02}

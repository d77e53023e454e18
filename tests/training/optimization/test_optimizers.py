"""Optimizers of a run compared with plain torch loops; their state on resume; their parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

from finetune.builders import Training
from finetune.commands.fit.fit import fit as run_fit
from finetune.commands.fit.fit import resume
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.models.backbone import create_network
from finetune.models.layer_groups import find_layer_groups
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.optimization.optimizers import OPTIMIZERS, create_optimizer
from finetune.training.optimization.param_groups import build_param_groups
from finetune.training.trainer import TrainerOptions, create_trainer, fit
from tests.support.networks import copy_state, find_changed, randomise
from tests.support.runs import (
    assert_same_bits,
    compute_largest_difference,
    create_small_config,
    create_small_training,
    load_checkpoint,
    load_weights,
)

PLAIN: dict[str, Any] = {
    "unfreeze__name": "all",
    "lr_schedule__name": "constant",
    "lr_schedule__warmup_fraction": 0.0,
    "loss__label_smoothing": 0.0,
    "model__batch_norm": "frozen",
    "optim__lr": 0.01,
    "optim__backbone_lr_scale": 0.5,
    "optim__layer_decay": 1.0,
    "trainer__epochs": 1,
}

CASES: dict[str, tuple[dict[str, Any], type[Optimizer], dict[str, Any]]] = {
    "adamw": ({"name": "adamw"}, AdamW, {"weight_decay": 0.05}),
    "adamw-params": (
        {"name": "adamw", "params": {"betas": [0.8, 0.99], "amsgrad": True}, "weight_decay": 0.5},
        AdamW,
        {"betas": (0.8, 0.99), "amsgrad": True, "weight_decay": 0.5},
    ),
    "sgd": ({"name": "sgd"}, SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "sgd-heavy-ball": (
        {"name": "sgd", "nesterov": "off", "momentum": 0.7, "params": {"dampening": 0.1}},
        SGD,
        {"momentum": 0.7, "dampening": 0.1, "weight_decay": 1e-4},
    ),
    "sgd-plain": (
        {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1},
        SGD,
        {"weight_decay": 0.1},
    ),
    "adam": ({"name": "adam", "weight_decay": 0.2}, Adam, {"weight_decay": 0.2}),
    "rmsprop": ({"name": "rmsprop"}, RMSprop, {"weight_decay": 4e-5}),
    "rmsprop-momentum": (
        {"name": "rmsprop", "momentum": 0.9, "params": {"alpha": 0.9, "centered": True}},
        RMSprop,
        {"momentum": 0.9, "alpha": 0.9, "centered": True, "weight_decay": 4e-5},
    ),
    "adadelta": ({"name": "adadelta", "params": {"rho": 0.95}}, Adadelta, {"rho": 0.95}),
    "adagrad": ({"name": "adagrad", "params": {"lr_decay": 0.1}}, Adagrad, {"lr_decay": 0.1}),
}


def train_one_epoch(training: Training, folder: Path, *callbacks: Callback) -> Any:
    trainer = create_trainer(
        folder,
        TrainerOptions(max_epochs=1, monitor="val/accuracy", gradient_clip=0.0),
        callbacks=[UnfreezeScheduler(), *callbacks],
        loggers=[],
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    return trainer


def train_plainly(
    training: Training, trainer: Any, create: type[Optimizer], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the parameters after an epoch of a plain loop, biases and norms without decay."""
    network = training.module.classifier.network.eval()
    head = set(training.module.classifier.groups[0].parameter_names)
    groups = []
    for name, parameter in network.named_parameters():
        no_decay = {"weight_decay": 0.0} if parameter.ndim < 2 else {}
        rate = 0.01 if name in head else 0.005
        groups.append({"params": [parameter], "lr": rate, **no_decay})
    optimizer: Any = create(groups, **{"lr": 0.01, **kwargs})
    training.datamodule.trainer = trainer
    epochs = trainer.fit_loop.epoch_progress.current
    epochs.processed = epochs.ready = 0
    for batch in training.datamodule.train_dataloader():
        optimizer.zero_grad()
        cross_entropy(training.module(batch["image"]), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return dict(network.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_epoch_of_optimizer_equals_plain_torch_loop(
    case: str, animals: Path, tmp_path: Path
) -> None:
    settings, create, kwargs = CASES[case]
    given = {**PLAIN, **{f"optim__{key}": value for key, value in settings.items()}}
    training, reference = (create_small_training(animals, **given) for _ in range(2))
    for one in (training, reference):
        randomise(one.module.classifier.network)
    before = copy_state(reference.module.classifier.network)
    trainer = train_one_epoch(training, tmp_path)
    expected = train_plainly(reference, trainer, create, kwargs)
    assert find_changed(before, reference.module.classifier.network) >= expected.keys()
    for name, parameter in training.module.classifier.network.named_parameters():
        # a step is 5e-3, and adaptive ones amplify the rounding of gradients near 0
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=2e-5)


def test_optimizer_cases_cover_the_table() -> None:
    assert {settings["name"] for settings, _, _ in CASES.values()} == OPTIMIZERS.keys()


QUICKLY_RESUMED = ("adamw", "sgd", "adagrad")
"""The default, one whose state appears with the first step, and one whose state does before it."""


@pytest.mark.runs
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICKLY_RESUMED else pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_resumed_run_ends_bit_identical_with_each_optimizer(
    name: str, animals: Path, tmp_path: Path
) -> None:
    def configure(folder: str, epochs: int) -> Config:
        given = {**PLAIN, "optim__name": name, "probe__enabled": "off", "trainer__epochs": epochs}
        return create_small_config(data__path=str(animals), output=str(tmp_path / folder), **given)

    run_fit(configure("uninterrupted", 2))
    run_fit(configure("resumed", 1))
    resume(tmp_path / "resumed", assignments={"trainer.epochs": 2})
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    assert_same_bits(load_weights(uninterrupted), load_weights(resumed))
    states = [
        load_checkpoint(run)["optimizer_states"][0]["state"] for run in (uninterrupted, resumed)
    ]
    for number, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][number][key]))


def test_create_optimizer_returns_torch_optimizers_with_their_momentum() -> None:
    def groups() -> list[dict[str, object]]:
        return [{"params": [torch.zeros(2, requires_grad=True)], "name": "head", "lr": 0.1}]

    sgd = create_optimizer("sgd", groups(), momentum=0.8, nesterov=True)
    assert type(sgd) is SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    plain = create_optimizer("sgd", groups())
    assert (plain.defaults["momentum"], plain.defaults["nesterov"]) == (0.0, False)
    for name, entry in OPTIMIZERS.items():
        assert type(create_optimizer(name, groups())) is entry.create
    with pytest.raises(KeyError, match="lion"):
        create_optimizer("lion", groups())


@pytest.mark.parametrize(
    ("name", "momentum"), [("adamw", 0.0), ("adam", 0.0), ("sgd", 0.9), ("sgd", 0.0)]
)
def test_create_optimizer_fused_equals_unfused(name: str, momentum: float) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    final_states = []
    for fused in (True, False):
        network = create_network(
            "test_resnet", num_classes=3, weights="random", image_size=64
        ).module
        randomise(network)
        before = copy_state(network)
        groups = find_layer_groups(network)
        param_groups = build_param_groups(
            network, groups, learning_rates=[1e-3] * len(groups), weight_decay=0.05
        )
        optimizer = create_optimizer(
            name, param_groups, momentum=momentum, nesterov=momentum > 0, fused=fused
        )
        assert all(group["fused"] is fused for group in optimizer.param_groups)
        # the same gradients for both, so that their own rounding does not differ
        generator = torch.Generator().manual_seed(4)
        for _ in range(3):
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        assert find_changed(before, network) >= {n for n, _ in network.named_parameters()}
        final_states.append(copy_state(network))
        assert network(images).isfinite().all()
    assert compute_largest_difference(*final_states) <= 1e-7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adagrad", "momentum": 0.9}, r"momentum .*optim\.name=adagrad"),
        ({"name": "adadelta", "momentum": 0.5}, r"momentum .*optim\.name=adadelta"),
        ({"name": "adam", "momentum": 0.5}, r"momentum .*optim\.name=adam\. .*betas"),
        ({"name": "rmsprop", "nesterov": "on"}, r"nesterov .*optim\.name=rmsprop"),
        ({"name": "sgd", "nesterov": "on", "momentum": 0}, r"nesterov=on .*optim\.momentum=0"),
    ],
)
def test_momentum_of_an_optimizer_without_it_raises_config_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"optim": settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam", "params": {"rho": 0.9}}, r"optim\.params: unknown parameter 'rho'"),
        ({"name": "sgd", "params": {"lr": 0.9}}, r"optim\.params: 'lr' comes from optim\.lr"),
        ({"name": "adam", "params": {"betas": [2, 0.9]}}, r"optim\.params=.*beta"),
        ({"name": "adam", "params": {"betas": 0.9}}, r"betas=0\.9, expected a list"),
        ({"name": "adagrad", "params": {"lr_decay": -1}}, r"lr_decay"),
        ({"name": "sgd", "params": {"dampening": 0.5}}, r"[Nn]esterov"),
        ({"max_norm": {"layer9": 3}}, r"optim\.max_norm: unknown layer group 'layer9'.*head"),
    ],
)
def test_parameters_that_torch_rejects_raise_config_error_before_any_work(
    settings: dict[str, Any], message: str, animals: Path
) -> None:
    given = {f"optim__{key}": value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        create_small_training(animals, **given)

"""Tests of the scaled head and the measured learning rate that fine-tuning starts from."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune.builders import Training
from finetune.commands.fit.fit import fit as run_fit
from finetune.commands.measurement.initialization import fit_loss_temperature, measure_learning_rate
from finetune.commands.stored_run import read_stored_config
from finetune.config.optimizer_defaults import HEAD_LR
from finetune.errors import ConfigError
from finetune.models.head import find_linear_head
from finetune.system.run_folder import RunFolder
from tests.support.helpers import RecordingReporter
from tests.support.runs import (
    create_small_config,
    create_small_training,
    load_weights,
    write_photos,
    write_weights,
)
from tests.support.wandb_file import read_offline_runs

pytestmark = pytest.mark.runs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def build_training(data: Path, weights: Path, **more: Any) -> Training:
    """Return a training whose head is not zero, as a fitted one."""
    training = create_small_training(data, model__weights=str(weights), **more)
    head = find_linear_head(training.module.classifier.network)
    assert head is not None
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return training


@pytest.fixture
def training(data: Path, weights: Path) -> Training:
    return build_training(data, weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fit_loss_temperature_minimises_the_loss(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    logits = 6 * torch.randn(200, 3, generator=generator)
    logits[torch.arange(200), labels] += 8

    def compute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels, label_smoothing=smoothing)

    found = fit_loss_temperature(logits, labels, compute_loss)
    grid = np.geomspace(0.02, 20, 2000)
    best = min(grid, key=lambda value: float(compute_loss(logits / value, labels)))
    assert found == pytest.approx(best, rel=0.01)


def test_measure_learning_rate_gives_the_requested_feature_change(training: Training) -> None:
    assert training.config.optim.lr == "auto"
    ((key, choice),) = measure_learning_rate(training, CPU).items()
    assert key == "optim.lr"
    assert 1e-6 <= choice.value <= 1e-2
    percent = re.search(r"by (\d+)% of their spread", choice.reason)
    assert percent is not None
    # the rate is rounded to two digits
    assert int(percent[1]) / 100 == pytest.approx(training.config.optim.feature_change, abs=0.06)
    assert measure_learning_rate(training, CPU) == {key: choice}, "the same each time"


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adadelta", "adagrad"])
def test_measure_learning_rate_suits_the_optimizer(data: Path, weights: Path, name: str) -> None:
    training = build_training(data, weights, optim__name=name)
    (choice,) = measure_learning_rate(training, CPU).values()
    percent = re.search(r"by (\d+)% of their spread", choice.reason)
    assert percent is not None
    assert int(percent[1]) / 100 == pytest.approx(1, abs=0.06)
    least, largest = 1e-3 * HEAD_LR[name], 10 * HEAD_LR[name]
    assert least < choice.value < largest


def test_measure_learning_rate_of_plain_sgd_is_that_of_a_tenth_of_the_momentum(
    data: Path, weights: Path
) -> None:
    rates = [
        measure_learning_rate(build_training(data, weights, optim__name="sgd", **more), CPU)
        for more in ({"optim__nesterov": "off"}, {"optim__momentum": 0.0})
    ]
    momentum, plain = (rate["optim.lr"].value for rate in rates)
    # the gradients of the four batches differ, and the later ones have added up less
    assert plain / momentum == pytest.approx(10, rel=0.3)


def test_measure_learning_rate_is_that_of_the_last_backbone_group(
    data: Path, weights: Path, training: Training
) -> None:
    scaled = build_training(data, weights, optim__backbone_lr_scale=0.1)
    (plain,) = measure_learning_rate(training, CPU).values()
    (choice,) = measure_learning_rate(scaled, CPU).values()
    assert choice.value == pytest.approx(10 * plain.value, rel=0.06)


def test_measure_learning_rate_is_proportional_to_feature_change(
    data: Path, weights: Path, training: Training
) -> None:
    half = build_training(data, weights, optim__feature_change=0.5)
    (plain,) = measure_learning_rate(training, CPU).values()
    (choice,) = measure_learning_rate(half, CPU).values()
    assert choice.value == pytest.approx(plain.value / 2, rel=0.06)


def test_feature_change_beside_a_given_rate_raises_config_error(data: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.feature_change=0\.5 .* optim\.lr=0\.001"):
        build_training(data, weights, optim__feature_change=0.5, optim__lr=1e-3)


def test_learning_rate_of_the_user_leaves_nothing_to_measure(data: Path, weights: Path) -> None:
    for given in ({"optim__lr": 1e-3}, {"probe__enabled": "off"}):
        training = create_small_training(data, model__weights=str(weights), **given)
        assert training.config.optim.lr != "auto"


def fit(data: Path, weights: Path, output: Path, reporter: Any = None, **more: Any) -> Path:
    settings = {"data__path": str(data), "model__weights": str(weights), "output": str(output)}
    config = create_small_config(**{**settings, **more})
    return run_fit(config, reporter=reporter or RecordingReporter()).run_dir


def test_settle_learning_rate_stores_the_rate_and_trains_with_it(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run = fit(data, weights, tmp_path / "run")
    stored = read_stored_config(RunFolder(run)).optim.lr
    measured = json.loads((run / "measured.json").read_text())["settings"]["optim.lr"]
    assert stored == measured["value"]
    given = fit(data, weights, tmp_path / "given", optim__lr=stored)
    one, other = load_weights(run), load_weights(given)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_scale_head_divides_the_head_of_the_probe(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run = fit(data, weights, tmp_path / "run", loss__label_smoothing=0.2)
    probe = fit(
        data, weights, tmp_path / "probe", unfreeze__name="linear_probe", trainer__epochs="auto"
    )
    start, fitted = load_weights(run, "start"), load_weights(probe, "best")
    changed = {name for name in start if not torch.equal(start[name], fitted[name])}
    assert changed == {"classifier.network.fc.weight", "classifier.network.fc.bias"}
    weights_of_head = "classifier.network.fc.weight"
    ratios = (fitted[weights_of_head] / start[weights_of_head]).nan_to_num(4.2)
    assert float(ratios.std() / ratios.mean()) < 1e-3
    assert float(ratios.mean()) > 1, "smoothed labels call for smaller logits"


def test_settle_learning_rate_is_in_the_config_of_wandb(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run = fit(data, weights, tmp_path / "run", tracking__wandb="offline", trainer__epochs=1)
    (part,) = read_offline_runs(run)
    assert part.config["optim.lr"] == read_stored_config(RunFolder(run)).optim.lr

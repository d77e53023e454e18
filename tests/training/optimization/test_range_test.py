"""Tests of the range test: against a plain loop, its suggestions, and without side effects."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.builders import Training
from finetune.builders.optimization.optimizer_factory import build_optimizer_factory
from finetune.builders.schedules import build_learning_rates
from finetune.data.dataset import Batch
from finetune.errors import OutOfMemoryError
from finetune.models.classifier import ImageClassifier
from finetune.training.optimization.range_test import (
    RangeTest,
    analyse_losses,
    compute_loss_limits,
    run_range_test,
)
from tests.support.runs import create_small_training

RATES = np.geomspace(1e-7, 1.0, 100).tolist()


@pytest.fixture
def training(animals: Path) -> Training:
    return create_small_training(animals, optim__layer_decay=0.5, model__batch_norm="train")


def load_batches(training: Training) -> Iterator[Batch]:
    dataset = training.datamodule.train_dataset
    while True:
        for first in (0, 8, 16):
            yield dataset.__getitems__(list(range(first, first + 8)))


def build_optimizer(training: Training, classifier: ImageClassifier) -> torch.optim.Optimizer:
    rates = build_learning_rates(training.config.optim, len(classifier.groups), lr=1.0)
    return build_optimizer_factory(
        training.config.optim, peak_learning_rates=rates, is_fused=False
    )(classifier)


def run_test(
    training: Training, rates: list[float], *, depth: int = 6, micro_batch_size: int = 8
) -> RangeTest:
    return run_range_test(
        training.module,
        load_batches(training),
        make_optimizer=lambda classifier: build_optimizer(training, classifier),
        rates=rates,
        depth=depth,
        micro_batch_size=micro_batch_size,
        max_grad_norm=1.0,
    )


def test_run_range_test_equals_a_plain_loop(training: Training) -> None:
    rates = [1e-4, 1e-3, 1e-2, 2e-2]
    module = copy.deepcopy(training.module)
    criterion = module.recipe.criterion_schedule(0)
    module.train()
    expected = []
    for rate, batch in zip(rates, load_batches(training), strict=False):
        expected_loss = criterion(module(batch["image"]), batch["label"])
        expected.append(expected_loss.item())
        if len(expected) == 1:
            optimizer = build_optimizer(training, module.classifier)
            factors = [group["lr"] for group in optimizer.param_groups]
            assert len(set(factors)) > 2
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = factor * rate
        optimizer.zero_grad()
        expected_loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    assert run_test(training, rates).losses == pytest.approx(expected, rel=1e-5)


def test_run_range_test_leaves_the_network_unchanged(training: Training) -> None:
    classifier = training.module.classifier
    classifier.set_depth(2)
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    modes = [layer.training for layer in classifier.modules()]
    generator_state = torch.get_rng_state()
    run_test(training, [0.1] * 5)
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert classifier.depth == 2
    assert [layer.training for layer in classifier.modules()] == modes
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert torch.equal(torch.get_rng_state(), generator_state)


def test_run_range_test_with_micro_batches_has_the_same_losses(animals: Path) -> None:
    training = create_small_training(animals, model__batch_norm="frozen")
    whole = run_test(training, [1e-3] * 4)
    parts = run_test(training, [1e-3] * 4, micro_batch_size=3)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_run_range_test_stops_where_the_loss_diverges(training: Training) -> None:
    test = run_test(training, np.geomspace(1e-3, 1e6, 60).tolist())
    assert test.is_diverged
    assert 2 < len(test.losses) < 60
    assert len(test.rates) == len(test.losses) == len(test.smoothed_losses)
    assert all(map(math.isfinite, test.losses))


def test_run_range_test_trains_the_groups_of_the_depth_only(training: Training) -> None:
    frozen: list[bool] = []

    def make_optimizer(classifier: ImageClassifier) -> torch.optim.Optimizer:
        frozen.extend(not parameter.requires_grad for parameter in classifier.parameters())
        return build_optimizer(training, classifier)

    run_range_test(
        training.module,
        load_batches(training),
        make_optimizer=make_optimizer,
        rates=[1e-3],
        depth=1,
        micro_batch_size=8,
    )
    head = training.module.classifier.groups[0].parameter_names
    assert frozen.count(False) == len(head) < len(frozen)


def test_run_range_test_out_of_memory_raises_and_restores(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training.module, "compute_loss", fail)
    training.module.classifier.set_depth(1)
    with pytest.raises(OutOfMemoryError):
        run_test(training, [1e-3])
    assert training.module.classifier.depth == 1


def simulate_losses(*, noise: float, fall: float = 0.8, seed: int = 0) -> list[float]:
    """Return losses that fall around 1e-4, are least near 1e-2 and rise from there."""
    logs = np.log10(RATES)
    curve = 1.2 - fall / (1 + np.exp(-4 * (logs + 4))) + np.exp(4 * (logs + 1.5))
    losses: list[float] = (
        curve * (1 + noise * np.random.default_rng(seed).normal(size=len(RATES)))
    ).tolist()
    return losses


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_analyse_losses_finds_the_steepest_descent_and_the_minimum(noise: float) -> None:
    test = analyse_losses(RATES, simulate_losses(noise=noise))
    assert test.steepest_lr is not None
    assert test.minimum_lr is not None
    assert 3e-5 < test.steepest_lr < 3e-4
    assert 6e-4 < test.minimum_lr < 2e-2


@pytest.mark.parametrize(("fall", "num_falling"), [(0.0, range(5)), (0.6, range(20, 21))])
def test_analyse_losses_suggests_rates_only_where_the_loss_falls(
    fall: float, num_falling: range
) -> None:
    tests = [
        analyse_losses(RATES, simulate_losses(noise=0.2, fall=fall, seed=seed))
        for seed in range(20)
    ]
    assert sum(test.minimum_lr is not None for test in tests) in num_falling
    assert all((test.minimum_lr is None) == (test.steepest_lr is None) for test in tests)


def test_analyse_losses_smooths_noise() -> None:
    smooth = np.asarray(simulate_losses(noise=0.0))[:80]
    test = analyse_losses(RATES[:80], simulate_losses(noise=0.1)[:80])
    error = np.abs(np.asarray(test.smoothed_losses) - smooth)
    raw_error = np.abs(np.asarray(test.losses) - smooth)
    assert error.mean() < 0.6 * raw_error.mean()


def test_analyse_losses_without_points_is_empty() -> None:
    test = analyse_losses([], [], is_diverged=True)
    assert (test.rates, test.minimum_lr, test.is_diverged) == ((), None, True)


def test_compute_loss_limits_show_the_fall_and_cut_the_divergence() -> None:
    test = analyse_losses(RATES, simulate_losses(noise=0.0))
    low, high = compute_loss_limits(test.losses, test.smoothed_losses)
    assert low <= min(test.losses) < 1.2 < high < max(test.losses)

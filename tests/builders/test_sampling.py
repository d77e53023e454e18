"""Tests of the sampling schedule of a run."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.builders import build_training
from finetune.builders.sampling import build_sampling_schedule, compute_images_per_epoch
from finetune.data.samplers.sampling_weights import (
    GroupDraws,
    SamplingSchedule,
    compute_expected_draws,
    weighted,
)
from finetune.data.training_data import TrainingData
from finetune.errors import ConfigError
from tests.support.runs import build_listed_manifest, create_small_config

COUNTS = {"a": 12, "b": 6, "c": 3}
LABELS = np.repeat([0, 1, 2], list(COUNTS.values()))


DATA = TrainingData.from_manifest(build_listed_manifest(COUNTS))


def build(**settings: Any) -> SamplingSchedule:
    config = create_small_config(**settings)
    assert config.trainer.epochs != "auto"
    return build_sampling_schedule(config.imbalance, DATA, num_epochs=config.trainer.epochs)


def test_sampling_schedule_passes_parameters_to_sampler() -> None:
    schedule = build(imbalance__sampler="weighted", imbalance__sampler_params={"power": 0.3})
    np.testing.assert_allclose(
        compute_expected_draws(schedule(1), 21), weighted(LABELS, 3, power=0.3)
    )


def test_sampling_schedule_passes_epoch_to_sampler_and_caches_its_output() -> None:
    settings = {
        "imbalance__sampler": "deferred",
        "imbalance__sampler_params": {"start_fraction": 0.5},
    }
    schedule = build(trainer__epochs=4, **settings)
    assert [schedule(epoch) is None for epoch in range(4)] == [True, True, False, False]
    assert schedule(3) is schedule(3)


@pytest.mark.parametrize(
    ("sampler", "params", "message"),
    [
        ("uniform", {"power": 1}, r"^imbalance\.sampler_params: unknown parameter 'power'"),
        (
            "effective_number",
            {"bta": 0.9},
            r"^imbalance\.sampler_params: unknown parameter 'bta'\. Did you mean 'beta'\?",
        ),
        ("deferred", {"epoch": 3}, r"^imbalance\.sampler_params: 'epoch'"),
        (
            "effective_number",
            {"beta": 1.0},
            r"^imbalance\.sampler=effective_number with imbalance\.sampler_params=.*beta.* fails "
            r"in epoch 0 .*: beta must be in",
        ),
        ("weighted", {"power": -400}, r"power.* fails .*: .*finite"),
        (
            "weighted",
            {"power": float("nan")},
            r"fails .*: .*0 or more, not nan",
        ),
        ("deferred", {"start_fraction": "late"}, r"found start_fraction=late, expected a number"),
    ],
)
def test_sampling_schedule_invalid_parameters_raise_config_error(
    sampler: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(imbalance__sampler=sampler, imbalance__sampler_params=params)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[1.0]", r"imbalance\.sampler=mine:own .*\(21,\)"),
        ("[0.0] * len(labels)", r"mine:own .*: ValueError"),
        ("GroupDraws(labels, np.array([1, 2]))", r"ValueError: GroupDraws.groups .*21"),
        ("1 / 0", r"fails in epoch 0 .*ZeroDivisionError"),
        (
            "GroupDraws(labels, np.array([1, 2, 1 + epoch]))",
            r"mine:own draws 4 images in epoch 0 and 5 in epoch 1",
        ),
    ],
)
def test_custom_sampler_invalid_output_raises_config_error(
    body: str, message: str, code: Path
) -> None:
    code.write_text(
        "import numpy as np\nfrom finetune.data.samplers.sampling_weights import GroupDraws\n"
        f"def own(labels, num_classes, *, epoch):\n    return {body}\n"
    )
    with pytest.raises(ConfigError, match=message):
        build(imbalance__sampler="mine:own")


def test_custom_sampler_is_called_once_per_epoch(code: Path) -> None:
    code.write_text(
        "calls = []\n"
        "def own(labels, num_classes, *, epoch):\n"
        "    calls.append(epoch)\n    return [1.0 + epoch] * len(labels)\n"
    )
    config = create_small_config(imbalance__sampler="mine:own", trainer__epochs=6)
    build_training(config, build_listed_manifest(COUNTS))
    calls = importlib.import_module("mine").calls
    # the first and the last epoch are also computed for the epoch's length and for the priors
    assert [calls.count(epoch) for epoch in range(1, 5)] == [1] * 4


def test_custom_sampler_weights_are_used(code: Path) -> None:
    code.write_text(
        "def own(labels, num_classes, *, offset):\n"
        "    return [offset + label for label in labels]\n"
    )
    schedule = build(imbalance__sampler="mine:own", imbalance__sampler_params={"offset": 2})
    np.testing.assert_allclose(compute_expected_draws(schedule(0), 21), LABELS + 2)
    with pytest.raises(ConfigError, match="parameter 'offset' is required"):
        build(imbalance__sampler="mine:own")


@pytest.mark.parametrize(
    ("strategy", "num_images", "batch_size", "steps"),
    [
        ("none", 21, 8, 2),
        ("weighted", 21, 8, 2),
        ("oversample", 36, 8, 4),
        ("undersample", 9, 8, 1),
    ],
)
def test_training_strategy_sets_images_and_steps_per_epoch(
    strategy: str, num_images: int, batch_size: int, steps: int
) -> None:
    config = create_small_config(imbalance__strategy=strategy)
    training = build_training(config, build_listed_manifest(COUNTS))
    num_drawn = compute_images_per_epoch(training.config.imbalance, DATA, num_epochs=2)
    assert training.images_per_epoch == num_drawn
    assert training.images_per_epoch == num_images
    assert training.batch_size == training.datamodule.loader_options.batch_size == batch_size
    assert training.steps_per_epoch == training.datamodule.steps_per_epoch == steps
    # two epochs of cosine end low, however long they are
    assert training.module.recipe.lr_lambda(2 * steps - 1) < 0.6
    assert training.module.recipe.lr_lambda(2 * steps) == pytest.approx(0.01)


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 9), (2, 8), (4, 8)])
def test_training_undersampled_epoch_reduces_batch_size(shards: int, batch_size: int) -> None:
    config = create_small_config(
        imbalance__strategy="undersample", trainer__batch_size=16, trainer__devices=shards
    )
    training = build_training(config, build_listed_manifest(COUNTS))
    assert (training.batch_size, training.steps_per_epoch) == (batch_size, 1)
    assert isinstance(training.datamodule.sampling_schedule(0), GroupDraws)

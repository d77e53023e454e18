"""A sampler of a name, with its parameters, becomes what each epoch draws."""

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
from finetune.errors import ConfigError
from tests.support.runs import listed, small_config

COUNTS = {"a": 12, "b": 6, "c": 3}
LABELS = np.repeat([0, 1, 2], list(COUNTS.values()))


def made(**settings: Any) -> SamplingSchedule:
    return build_sampling_schedule(small_config(**settings), listed(COUNTS))


def test_parameters_reach_the_sampler() -> None:
    at = made(imbalance__sampler="weighted", imbalance__sampler_params={"power": 0.3})
    np.testing.assert_allclose(compute_expected_draws(at(1), 21), weighted(LABELS, 3, power=0.3))


def test_the_epoch_reaches_a_sampler_that_asks_for_it() -> None:
    settings = {
        "imbalance__sampler": "deferred",
        "imbalance__sampler_params": {"start_fraction": 0.5},
    }
    at = made(trainer__epochs=4, **settings)
    assert [at(epoch) is None for epoch in range(4)] == [True, True, False, False]
    assert at(3) is at(3), "computed once an epoch"


@pytest.mark.parametrize(
    ("sampler", "params", "message"),
    [
        ("uniform", {"power": 1}, r"^imbalance\.sampler_params: unknown parameter 'power'.*none"),
        (
            "effective_number",
            {"bta": 0.9},
            r"^imbalance\.sampler_params: unknown parameter 'bta'\. Did you mean 'beta'\?",
        ),
        ("deferred", {"epoch": 3}, r"^imbalance\.sampler_params: 'epoch' follows from"),
        (
            "effective_number",
            {"beta": 1.0},
            r"^imbalance\.sampler=effective_number with imbalance\.sampler_params=.*beta.* fails "
            r"in epoch 0 .*: ValueError: beta lies in",
        ),
        ("weighted", {"power": -400}, r"power.* fails .*: weights with a finite sum are needed"),
        (
            "weighted",
            {"power": float("nan")},
            r"fails .*: weights of 0 or more are needed, not nan",
        ),
        ("deferred", {"start_fraction": "late"}, r"fails in epoch 0 .*: TypeError"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    sampler: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(imbalance__sampler=sampler, imbalance__sampler_params=params)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[1.0]", r"imbalance\.sampler=mine:own .*: 21 weights of 0 or more are needed"),
        ("[0.0] * len(labels)", r"must not all be 0"),
        ("Draws(labels, np.array([1, 2]))", r"ValueError: draws need a group"),
        ("1 / 0", r"fails in epoch 0 .*ZeroDivisionError"),
        (
            "Draws(labels, np.array([1, 2, 1 + epoch]))",
            r"draws 4 images in epoch 0 and 5 in epoch 1; it must be equally many",
        ),
    ],
)
def test_a_sampler_of_the_users_own_must_give_what_can_be_drawn(
    body: str, message: str, code: Path
) -> None:
    code.write_text(
        "import numpy as np\nfrom finetune.data.samplers.sampling_weights import GroupDraws\n"
        f"def own(labels, num_classes, *, epoch):\n    return {body}\n"
    )
    with pytest.raises(ConfigError, match=message):
        made(imbalance__sampler="mine:own")


def test_all_epochs_of_a_sampler_are_asked_for_once_a_start(code: Path) -> None:
    code.write_text(
        "asked = []\n"
        "def own(labels, num_classes, *, epoch):\n"
        "    asked.append(epoch)\n    return [1.0 + epoch] * len(labels)\n"
    )
    config = small_config(imbalance__sampler="mine:own", trainer__epochs=6)
    build_training(config, listed(COUNTS))
    asked = importlib.import_module("mine").asked
    # the first and the last one also for an epoch's length and for the priors
    assert [asked.count(epoch) for epoch in range(1, 5)] == [1] * 4


def test_a_sampler_of_the_users_own_is_drawn_by(code: Path) -> None:
    code.write_text(
        "def own(labels, num_classes, *, more):\n    return [more + label for label in labels]\n"
    )
    at = made(imbalance__sampler="mine:own", imbalance__sampler_params={"more": 2})
    np.testing.assert_allclose(compute_expected_draws(at(0), 21), LABELS + 2)
    with pytest.raises(ConfigError, match="parameter 'more' is required"):
        made(imbalance__sampler="mine:own")


@pytest.mark.parametrize(
    ("strategy", "num_images", "batch_size", "steps"),
    [
        ("none", 21, 8, 2),
        ("weighted", 21, 8, 2),
        ("oversample", 36, 8, 4),
        ("undersample", 9, 8, 1),
    ],
)
def test_all_of_a_training_knows_how_long_an_epoch_is(
    strategy: str, num_images: int, batch_size: int, steps: int
) -> None:
    config = small_config(imbalance__strategy=strategy)
    training = build_training(config, listed(COUNTS))
    assert training.images_per_epoch == compute_images_per_epoch(training.config, listed(COUNTS))
    assert training.images_per_epoch == num_images
    assert training.batch_size == training.datamodule.loader_options.batch_size == batch_size
    assert training.steps_per_epoch == training.datamodule.steps_per_epoch == steps
    # two epochs of cosine end low, however long they are
    assert training.module.recipe.lr_lambda(2 * steps - 1) < 0.6
    assert training.module.recipe.lr_lambda(2 * steps) == pytest.approx(0.01)


@pytest.mark.parametrize(("shards", "batch_size"), [(1, 9), (2, 8), (4, 8)])
def test_a_batch_shrinks_to_an_undersampled_epoch(shards: int, batch_size: int) -> None:
    config = small_config(
        imbalance__strategy="undersample", trainer__batch_size=16, trainer__devices=shards
    )
    training = build_training(config, listed(COUNTS))
    assert (training.batch_size, training.steps_per_epoch) == (batch_size, 1)
    assert isinstance(training.datamodule.sampling_schedule(0), GroupDraws)

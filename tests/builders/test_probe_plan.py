"""Tests of the plan of the linear probe: image weights, flips and settings that it excludes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.builders import Training, build_training
from finetune.builders.probe_plan import resolve_probe_flips
from finetune.config.imbalance import IMBALANCE_STRATEGIES
from finetune.config.load import replace_values
from finetune.data.transforms.presets import create_train_transform
from finetune.errors import ConfigError
from finetune.types import PreprocessSpec
from tests.support.runs import (
    build_listed_manifest,
    create_resolved_config,
    create_small_config,
    write_weights,
)

COUNTS = {"a": 12, "b": 6, "c": 3}
SIZES = np.array([12.0, 6.0, 3.0])
LABELS = np.repeat([0, 1, 2], list(COUNTS.values()))
BETA = 0.999
EFFECTIVE = (1 - BETA**SIZES) / (1 - BETA)

CLASS_MASS = {
    "none": SIZES,
    "sqrt": SIZES**0.5,
    "effective_number": SIZES / EFFECTIVE,
    "drw": SIZES / EFFECTIVE,
    "ldam_drw": SIZES / EFFECTIVE,
    "focal": SIZES,
    "ldam": SIZES,
    "logit_adjusted": SIZES,
    **dict.fromkeys(("crt", "tau_norm", "post_hoc"), SIZES),  # they apply after training
}
"""Weight of all images of a class, up to a factor; uniform for every other strategy."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def build_probed(pretrained: Path, **settings: Any) -> Training:
    config = create_small_config(model__weights=str(pretrained), trainer__epochs=5, **settings)
    return build_training(config, build_listed_manifest(COUNTS))


def test_probe_groups_are_those_of_the_user_and_of_duplicates(pretrained: Path) -> None:
    manifest = build_listed_manifest(COUNTS)
    samples = list(manifest.samples)
    samples[1] = replace(samples[1], group="patient")
    samples[4] = replace(samples[4], group="patient", duplicate_group="7")
    samples[5] = replace(samples[5], duplicate_group="7")
    config = create_small_config(model__weights=str(pretrained))
    probe = build_training(config, replace(manifest, samples=tuple(samples))).probe
    assert probe is not None and probe.train.groups is not None  # noqa: PT018
    np.testing.assert_array_equal(np.flatnonzero(probe.train.groups == 1), [1, 4, 5])
    assert len(np.unique(probe.train.groups)) == 21 - 2


@pytest.mark.parametrize("strategy", IMBALANCE_STRATEGIES)
def test_probe_weights_images_as_in_the_last_epoch(strategy: str, pretrained: Path) -> None:
    probe = build_probed(pretrained, imbalance__strategy=strategy).probe
    assert probe is not None
    class_mass = np.bincount(LABELS, weights=probe.train.weights)
    expected = CLASS_MASS.get(strategy, np.ones(3))
    np.testing.assert_allclose(class_mass / class_mass.sum(), expected / expected.sum(), rtol=1e-5)
    if strategy == "logit_adjusted":
        assert probe.logit_offset is not None
        torch.testing.assert_close(probe.logit_offset, torch.tensor(SIZES / 21).log().float())
    else:
        assert probe.logit_offset is None


@pytest.mark.parametrize("strategy", ["none", "weighted", "progressive", "drw", "logit_adjusted"])
def test_probe_only_weights_images_as_in_the_last_epoch(strategy: str, pretrained: Path) -> None:
    config = create_small_config(
        model__weights=str(pretrained),
        trainer__epochs="auto",
        unfreeze__name="linear_probe",
        imbalance__strategy=strategy,
    )
    training = build_training(config, build_listed_manifest(COUNTS))
    assert training.is_probe_only
    assert training.config.loss.label_smoothing == 0
    assert training.probe is not None
    class_mass = np.bincount(LABELS, weights=training.probe.train.weights)
    expected = CLASS_MASS.get(strategy, np.ones(3))
    np.testing.assert_allclose(class_mass / class_mass.sum(), expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["focal", "ldam", "ldam_drw"])
def test_probe_only_with_unsupported_loss_raises_config_error(
    strategy: str, pretrained: Path
) -> None:
    config = create_small_config(
        model__weights=str(pretrained),
        trainer__epochs="auto",
        unfreeze__name="linear_probe",
        imbalance__strategy=strategy,
    )
    with pytest.raises(ConfigError, match=r"^loss\.name=.*unfreeze\.name=linear_probe"):
        build_training(config, build_listed_manifest(COUNTS))


def test_probe_only_with_label_smoothing_is_accepted_only_for_runs_of_older_releases(
    pretrained: Path,
) -> None:
    config = create_small_config(
        model__weights=str(pretrained),
        trainer__epochs="auto",
        unfreeze__name="linear_probe",
        loss__label_smoothing=0.1,  # the former default, in config.yaml of such runs
    )
    with pytest.raises(ConfigError, match=r"^loss\.label_smoothing=0\.1 .*unfreeze\.name"):
        build_training(config, build_listed_manifest(COUNTS))
    assert (
        build_training(
            config, build_listed_manifest(COUNTS), is_resumed=True
        ).config.loss.label_smoothing
        == 0
    )
    fine_tuned = replace_values(config, {"unfreeze.name": "all", "trainer.epochs": 2})
    resumed = build_training(fine_tuned, build_listed_manifest(COUNTS), is_resumed=True)
    assert resumed.config.loss.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("settings", "flip_image_limit", "expected"),
    [
        ({}, 24, False),
        ({}, 25, True),
        ({"probe__hflip": "on"}, 24, True),
        ({"probe__hflip": "off"}, 25, False),
        ({"unfreeze__name": "linear_probe", "probe__enabled": "on"}, 25, False),
        (
            {"unfreeze__name": "linear_probe", "probe__enabled": "on", "probe__depth": 2},
            24,
            True,
        ),
        ({"augment__name": "none"}, 25, False),
    ],
)
def test_resolve_probe_flips_depends_on_number_of_images(
    settings: dict[str, Any], flip_image_limit: int, expected: bool
) -> None:
    config = create_resolved_config(**{"augment__name": "light", **settings})
    transform = create_train_transform(
        config.augment.name, spec=PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3), seed=0
    )
    is_flipped = resolve_probe_flips(
        config, transform, num_images=24, flip_image_limit=flip_image_limit
    )
    assert is_flipped is expected


@pytest.mark.parametrize(("hflip", "expected"), [("on", True), ("off", False), ("auto", True)])
def test_probe_flips_are_in_the_plan_and_in_the_config(
    hflip: str, expected: bool, pretrained: Path
) -> None:
    training = build_probed(
        pretrained, augment__name="light", unfreeze__name="all", probe__hflip=hflip
    )
    assert training.probe is not None
    assert training.probe.views.flipped is expected
    assert training.config.probe.hflip == hflip  # auto until flips are measured


def test_probe_flips_follow_the_flips_of_the_augmentation(pretrained: Path) -> None:
    for hflip, expected in (("on", True), ("off", False)):
        training = build_probed(
            pretrained, augment__name="light", unfreeze__name="all", augment__hflip=hflip
        )
        assert training.probe is not None
        assert training.probe.views.flipped is expected
        assert training.config.probe.hflip == hflip
        facts = training.module.card["facts"]
        assert facts["flipped"] is expected

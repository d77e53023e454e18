"""Tests of ``finetune.commands.tune.hold_out``."""

from collections import Counter
from pathlib import Path

import pytest

from finetune.commands.tune.hold_out import (
    choose_hold_out,
    describe_hold_out,
    halve_validation,
    remove_hold_out,
)
from finetune.config.load import build_config
from finetune.data.manifest import Manifest
from finetune.errors import ConfigError
from finetune.types import Sample, Split

TRAIN, VAL, TEST = Split


def build_manifest(counts: dict[str, int], *, group_size: int = 1) -> Manifest:
    """Return a manifest of validation images, in groups, and one training image a class."""
    samples = [Sample(f"train/{name}.png", name, TRAIN) for name in counts]
    samples += [
        Sample(f"val/{name}/{i}.png", name, VAL, group=f"{name}{i // group_size}")
        if group_size > 1
        else Sample(f"val/{name}/{i}.png", name, VAL)
        for name, count in counts.items()
        for i in range(count)
    ]
    return Manifest(Path("photos"), tuple(counts), tuple(samples))


@pytest.mark.parametrize(
    ("given", "origin", "fraction"),
    [
        ({TRAIN, VAL, TEST}, "given", 0.0),
        ({TRAIN, TEST}, "given", 0.0),
        ({TRAIN, VAL}, "half", 0.0),
        ({None}, "drawn", 0.2),
        ({TRAIN}, "drawn", 0.2),
    ],
)
def test_choose_hold_out_by_the_splits_of_the_data(
    given: set[Split | None], origin: str, fraction: float
) -> None:
    config, found = choose_hold_out(build_config({}), given)
    assert found == origin
    assert config.data.test_fraction == fraction


def test_choose_hold_out_keeps_the_fraction_of_the_user() -> None:
    config = build_config({}, assignments={"data.test_fraction": 0.3})
    assert choose_hold_out(config, {None}) == (config, "drawn")
    large = build_config({}, assignments={"data.val_fraction": 0.85})
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0\.85"):
        choose_hold_out(large, {None})


def test_choose_hold_out_refuses_an_explicit_fraction_of_none() -> None:
    config = build_config({}, assignments={"data.test_fraction": 0})
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0 leaves no images"):
        choose_hold_out(config, {None})
    assert choose_hold_out(config, {TRAIN, VAL}) == (config, "half"), "nothing is drawn"


def test_halve_validation_stratifies_and_leaves_training_images_alone() -> None:
    manifest = build_manifest({"ant": 20, "bee": 8, "cow": 1})
    halved = halve_validation(manifest, seed=0)
    assert halved.get_samples(TRAIN) == manifest.get_samples(TRAIN)
    assert [s.path for s in halved.samples] == [s.path for s in manifest.samples]
    counts = Counter((sample.label, sample.split) for sample in halved.samples)
    assert [counts["ant", VAL], counts["ant", TEST]] == [10, 10]
    assert [counts["bee", VAL], counts["bee", TEST]] == [4, 4]
    assert [counts["cow", VAL], counts["cow", TEST]] == [1, 0], "a single image validates"
    assert halve_validation(manifest, seed=0) == halved
    assert halve_validation(manifest, seed=1) != halved


def test_halve_validation_keeps_groups_together() -> None:
    halved = halve_validation(build_manifest({"ant": 24, "bee": 24}, group_size=4), seed=0)
    splits: dict[str, set[Split | None]] = {}
    for sample in halved.samples:
        if sample.group:
            splits.setdefault(sample.group, set()).add(sample.split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {VAL, TEST}


def test_remove_hold_out_leaves_no_test_image() -> None:
    halved = halve_validation(build_manifest({"ant": 20, "bee": 8}), seed=0)
    kept = remove_hold_out(halved)
    assert len(kept.samples) == len(halved.samples) - 14
    assert kept.get_samples(TEST) == []
    assert "14 images, half of the validation split" in describe_hold_out("half", halved)

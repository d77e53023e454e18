"""Images that a search never sees, on which its gain over the default settings is reported."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from finetune.config.load import get_explicit_values, replace_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.multi_label.iterative_split import split_multi_label
from finetune.data.split import find_drawn_splits, stratified_split
from finetune.data.training_data import group_samples
from finetune.errors import ConfigError
from finetune.types import Sample, Split
from finetune.units import format_count, format_percent

DEFAULT_TEST_FRACTION = 0.2
"""Fraction of the images that is set aside where the data have no test split."""

HoldOut = Literal["given", "drawn", "half"]
"""Origin of the hold-out: the test split of the data, drawn, or half of the validation split."""


def choose_hold_out(config: Config, given: Collection[Split | None]) -> tuple[Config, HoldOut]:
    """Return the config with which the images are split, and the origin of the hold-out.

    Args:
        config: Config as given.
        given: Splits of the data; None for images without one.

    Raises:
        ConfigError: The fractions leave no images for training, or none for the hold-out.
    """
    if Split.TEST in given:
        return config, "given"
    if Split.TEST not in find_drawn_splits(given):
        return config, "half"
    fraction = config.data.test_fraction
    if fraction == 0 and "data.test_fraction" in get_explicit_values(config):
        raise ConfigError(
            "data.test_fraction=0 leaves no images to measure what the search gains. Leave it out "
            f"to set aside {DEFAULT_TEST_FRACTION:.0%} of the images, with which the found "
            f"settings train afterwards, or give a fraction."
        )
    fraction = fraction or DEFAULT_TEST_FRACTION
    if config.data.val_fraction + fraction >= 1:
        raise ConfigError(
            f"data.val_fraction={config.data.val_fraction:g} leaves no training images once "
            f"{fraction:.0%} of the images are set aside to measure what the search gains. Lower "
            f"it, or set data.test_fraction."
        )
    return replace_values(config, {"data.test_fraction": fraction}), "drawn"


def halve_validation(manifest: Manifest, *, seed: int) -> Manifest:
    """Return the manifest with half of its validation images as test images.

    The halves have every class in the same proportion, groups and duplicates stay together, and a
    class with a single image stays in the validation split. Those of multi-label images are drawn
    by iterative stratification.

    Args:
        manifest: Images with training and validation splits only.
        seed: Seed of the draw.
    """
    samples = manifest.get_samples(Split.VAL)
    parts = (
        split_multi_label(samples, val_fraction=0.5, seed=seed)
        if manifest.is_multi_label
        else _halve_classes(samples, seed)
    )
    held_out = {
        sample.path for sample, part in zip(samples, parts, strict=True) if part is Split.VAL
    }
    return replace(
        manifest,
        samples=tuple(
            replace(sample, split=Split.TEST) if sample.path in held_out else sample
            for sample in manifest.samples
        ),
    )


def _halve_classes(samples: Sequence[Sample], seed: int) -> list[Split]:
    """Return a split for each image of one class, validation for the half that is set aside."""
    groups = group_samples(samples)
    return stratified_split(
        [sample.label for sample in samples],
        val_fraction=0.5,
        seed=seed,
        duplicate_groups=[
            str(group) if sum(groups == group) > 1 else "" for group in groups.tolist()
        ],
        min_images=1,
    )


def remove_hold_out(manifest: Manifest) -> Manifest:
    """Return the manifest without test images, as the trials get it."""
    kept = tuple(sample for sample in manifest.samples if sample.split is not Split.TEST)
    return replace(manifest, samples=kept)


def describe_hold_out(origin: HoldOut, manifest: Manifest) -> str:
    """Return a clause on the images on which the gain is reported."""
    images = format_count(len(manifest.get_samples(Split.TEST)), "image")
    if origin == "given":
        return f"{images}, the test split"
    if origin == "half":
        return f"{images}, half of the validation split, set aside before the search"
    fraction = len(manifest.get_samples(Split.TEST)) / max(1, len(manifest.samples))
    return f"{images}, {format_percent(fraction, decimals=0)} of all, set aside before the search"

"""Validation of a search space: keys in which trials may differ, and their values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.commands.tune.space.conditional_keys import find_companions
from finetune.commands.tune.space.search_space import SearchDimension
from finetune.config.auto import get_config_value
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError

_IMAGES, _FILES, _HARDWARE, _JUDGED = (
    "the images and their labels",
    "where files are kept",
    "the hardware",
    "how trials are judged",
)

FIXED_KEYS = {
    **{
        f"data.{name}": _IMAGES
        for name in (
            "path", "task", "label_columns", "label_separator", "image_column", "label_column",
            "group_column", "group_by", "splits", "val_fraction", "test_fraction", "split_seed",
            "min_images_per_class", "leakage", "max_megapixels", "pixel_range", "channels",
            "bit_depth",
        )
    },
    "data.cache": _FILES,
    "data.num_workers": "how fast a trial is",
    "cache": _FILES,
    "tracking": "what is recorded",
    "report": "what is written at the end of a run",
    "output": _FILES,
    "resume": "what a new run is",
    "seed": "the split and the order of the images, of which none is better than another",
    "cross_validation": "the images that a run trains and validates on",
    "trainer.monitor": _JUDGED,
    "checkpoint.monitor": _JUDGED,
    "trainer.accelerator": _HARDWARE,
    "trainer.devices": _HARDWARE,
    "trainer.num_nodes": _HARDWARE,
    "trainer.strategy": _HARDWARE,
    "trainer.collective_timeout_seconds": _HARDWARE,
}  # fmt: skip
"""Keys and sections that all trials must share, with what they determine."""


def validate_space(space: Sequence[SearchDimension], config: Config) -> list[SearchDimension]:
    """Return the dimensions with their choices as the config has them, each of them valid.

    Args:
        space: Dimensions of the study.
        config: Config with the settings that all trials share.

    Raises:
        ConfigError: A key is unknown or must be the same in all trials, or a value is invalid.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    return [
        _validate_dimension(dimension, tree, companions=find_companions(dimension, space))
        for dimension in space
    ]


def _validate_dimension(
    dimension: SearchDimension, tree: dict[str, Any], *, companions: Mapping[str, Any]
) -> SearchDimension:
    key = dimension.key
    for fixed, meaning in FIXED_KEYS.items():
        if f"{key}.".startswith(f"{fixed}."):
            raise ConfigError(
                f"{dimension.label}: it determines {meaning}, which must be the same in all "
                f"trials. Set it with KEY=VALUE, or leave it out."
            )
    if key == "unfreeze.name" and "linear_probe" in dimension.choices:
        raise ConfigError(
            f"{dimension.label}: linear_probe cannot be searched: it trains no epochs, and its "
            f"only setting, the penalty, is chosen by cross-validation already. Leave it out; the "
            f"first lines of each run have the accuracy of the probe."
        )
    configs = [
        build_config(tree, assignments=companions, flags={key: (dimension.source, value)})
        for value in dimension.test_values
    ]
    is_parameter = key.count(".") > 1
    if dimension.choices and not is_parameter:
        choices = tuple(get_config_value(built, key) for built in configs)
        return replace(dimension, choices=choices)
    return dimension

"""A stronger preset goes to rare classes, where there are some."""

from typing import Any

import pytest

from finetune.builders import build_training, find_rare_classes
from finetune.config.load import build_config
from finetune.data.transforms.per_class import RareClassTransform
from finetune.errors import ConfigError
from tests.support.runs import listed, small_config

COUNTS = {"a": 20, "b": 10, "c": 3}


def test_rare_classes_are_those_under_a_share_of_the_largest() -> None:
    config = small_config(augment__name="light", augment__rare_class_preset="strong")
    transform = build_training(config, listed(COUNTS)).datamodule.train_dataset.transform
    assert isinstance(transform, RareClassTransform)
    assert transform.is_rare.tolist() == [False] * 30 + [True] * 3
    assert find_rare_classes(config, listed(COUNTS)) == ("c",)
    more = small_config(
        augment__name="light", augment__rare_class_preset="strong", augment__rare_class_fraction=0.6
    )
    assert find_rare_classes(more, listed(COUNTS)) == ("b", "c")
    assert find_rare_classes(small_config(augment__name="light"), listed(COUNTS)) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"augment__name": "none"},
            r"^augment\.rare_class_preset=medium cannot apply to augment\.name=none",
        ),
        (
            {"augment__name": "strong"},
            r"^augment\.rare_class_preset=medium cannot apply to augment\.name=str",
        ),
        (
            {"augment__name": "light", "augment__rare_class_fraction": 0.1},
            r"^augment\.rare_class_preset=medium applies to no class: none has under 10% of",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_training(
            small_config(augment__rare_class_preset="medium", **settings), listed(COUNTS)
        )


def test_a_share_without_a_preset_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="rare_class_fraction cannot apply to rare_class_preset=off"
    ):
        build_config({}, assignments={"augment.rare_class_fraction": 0.5})
    assert (
        build_config({}, assignments={"augment.rare_class_preset": False}).augment.rare_class_preset
        == "off"
    )

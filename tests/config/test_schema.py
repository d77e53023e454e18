"""The tree: what it takes, what it refuses and with which words."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key that holds a value."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_every_key_has_one_line_on_what_it_does() -> None:
    described = dict(fields())
    assert len(described) > 40
    for key, field in described.items():
        assert field.description, key
        assert "\n" not in field.description, key


def test_values_cannot_be_changed_after_checking() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().optim.lr = 1.0  # type: ignore[misc]  # that it is read-only is the point


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("augment.name", "my/own.JSON"),
        ("augment.name", "strong"),
        ("unfreeze.name", "my_package.module:schedule"),
        ("imbalance.sampler", "pkg:f"),
        ("loss.name", "pkg:f"),
        ("data.num_workers", 0),
        ("data.min_images_per_class", 1),
        ("trainer.early_stopping_patience", None),
        ("trainer.gradient_clip_val", 0),
        ("tracking.wandb", "offline"),
        ("seed", 0),
        ("optim.momentum", 0.9),
    ],
)
def test_a_value_that_can_be_is_kept(key: str, value: object) -> None:
    config: Any = build_config({}, assignments={key: value})
    for name in key.split("."):
        config = getattr(config, name)
    assert config == value


def test_a_bare_off_of_yaml_is_the_word() -> None:
    assert build_config({"tracking": {"wandb": False}}).tracking.wandb == "off"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("augment.name", "medum", "unknown preset 'medum'. Did you mean 'medium'?"),
        ("augment.name", "mine.txt", "named by its .json or .yaml file"),
        ("unfreeze.name", "gradul", "unknown name 'gradul'. Did you mean 'gradual'?"),
        ("imbalance.strategy", "pkg:f", "unknown name 'pkg:f'"),
        ("optim.name", "adam", "unknown name 'adam'. Did you mean 'adamw'?"),
        ("optim.lr", 0, "found 0, expected greater than 0 or 'auto'"),
        ("optim.lr", "fast", "found 'fast', expected number"),
        ("optim.lr", float("nan"), "found nan"),
        ("data.val_fraction", 1.0, "found 1.0, expected less than 1"),
        ("data.image_size", 7, "found 7, expected greater than or equal to 8 or 'auto'"),
        ("trainer.epochs", 0, "found 0, expected greater than or equal to 1"),
        ("trainer.precision", "fp8", "found 'fp8', expected 'auto', '32-true'"),
        ("seed", -1, "found -1, expected greater than or equal to 0"),
        ("seed", 2**31, "expected less than 2147483648"),
    ],
)
def test_a_value_that_cannot_be_is_shown_with_what_can(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({}, assignments={key: value})
    lines = str(caught.value).splitlines()
    assert lines[0] == "A mistake in the configuration:"
    assert lines[1].startswith(f"  {key}: ")
    assert message in lines[1]
    assert lines[1].endswith("(command line)")


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    tree = {"data": {"val_fraction": 0.6, "test_fraction": 0.4}}
    with pytest.raises(ConfigError, match=r"data: val_fraction 0\.6 and test_fraction 0\.4 leave"):
        build_config(tree)


def test_a_momentum_without_sgd_names_both_settings() -> None:
    with pytest.raises(ConfigError, match=r"momentum .* optim\.name=sgd .* optim\.name=adamw"):
        build_config({"optim": {"momentum": 0.5}})
    assert build_config({"optim": {"momentum": 0.5, "name": "sgd"}}).optim.momentum == 0.5

"""Tests of the config sections: accepted and rejected values."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune.config.load import build_config, parse_assignments
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.types import Split


def iterate_fields(
    model: type[BaseModel] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key with a value, and its field."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from iterate_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_every_key_has_a_description_of_one_line() -> None:
    fields = dict(iterate_fields())
    assert len(fields) > 40
    for key, field in fields.items():
        assert field.description, key
        assert "\n" not in field.description, key


def test_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().optim.lr = 1.0  # type: ignore[misc]  # read-only


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("augment.name", "my/own.JSON"),
        ("augment.name", "strong"),
        ("data.splits", "none"),
        ("data.splits", "Training=train,seg_pred/a=val,Testing=test"),
        ("data.splits", "night, rainy=train,x=y=test"),
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
def test_config_valid_value_is_kept(key: str, value: object) -> None:
    config: Any = build_config({}, assignments={key: value})
    for name in key.split("."):
        config = getattr(config, name)
    assert config == value


def test_config_yaml_false_is_read_as_off() -> None:
    assert build_config({"tracking": {"wandb": False}}).tracking.wandb == "off"


@pytest.mark.parametrize(
    "value", [{"Training": "train", "Testing": "test"}, " Training = train, Testing=TEST "]
)
def test_config_splits_of_a_mapping_or_with_blanks_are_read_alike(value: object) -> None:
    data = build_config({}, assignments={"data.splits": value}).data
    assert data.splits == "Training=train,Testing=test"
    assert data.split_setting == {"Training": Split.TRAIN, "Testing": Split.TEST}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("augment.name", "medum", "unknown preset 'medum'. Did you mean 'medium'?"),
        ("augment.name", "mine.txt", ".json or .yaml"),
        ("unfreeze.name", "gradul", "unknown name 'gradul'. Did you mean 'gradual'?"),
        ("imbalance.strategy", "pkg:f", "unknown name 'pkg:f'"),
        ("optim.name", "adamx", "unknown name 'adamx'. Did you mean 'adam"),
        ("optim.max_norm", 3, "found 3, expected layer groups and their norms, as {head: 3}"),
        ("optim.params", 3, "found 3, expected names and values, as {name: value}"),
        ("data.channels", "many", "found 'many', expected an integer (command"),
        ("data.channels", None, "found null, expected an integer"),
        ("tracking.tags", "a", "found 'a', expected a list, as [a]"),
        ("model.weights", "", "found '', expected at least 1 character"),
        ("data.train_image_size", [64], "found [64], expected a side in pixels, as 128, the first"),
        ("data.splits", "Training", "'Training' has a part that is not NAME=SPLIT; expected auto"),
        ("data.splits", "a=train,b=tets", "has a part that is not NAME=SPLIT"),
        ("data.splits", "a=train,b", "has a part that is not NAME=SPLIT"),
        ("data.splits", "a=train,A=test", "names a folder twice"),
        ("data.splits", "", "found '', expected auto, none or NAME=SPLIT,NAME=SPLIT"),
        ("data.splits", 3, "found 3, expected auto, none or NAME=SPLIT,NAME=SPLIT"),
        ("data.splits", {"a": "dog"}, "'a=dog' has a part"),
        ("optim.lr", 0, "found 0, expected greater than 0 or 'auto'"),
        ("optim.lr", "fast", "found 'fast', expected a number"),
        ("optim.lr", float("nan"), "found nan"),
        ("data.val_fraction", 1.0, "found 1.0, expected less than 1"),
        ("data.image_size", 7, "found 7, expected greater than or equal to 8 or 'auto'"),
        ("trainer.epochs", 0, "found 0, expected greater than or equal to 1"),
        ("trainer.precision", "fp8", "found 'fp8', expected 'auto', '32-true'"),
        ("seed", -1, "found -1, expected greater than or equal to 0"),
        ("seed", 2**31, "expected less than 2147483648"),
    ],
)
def test_config_invalid_value_raises_config_error_with_expected_values(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({}, assignments={key: value})
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  {key}: ")
    assert message in lines[1]
    assert lines[1].endswith("(command line)")


def test_config_message_of_a_wrong_type_never_speaks_of_python() -> None:
    wrong: tuple[Any, ...] = ("text", 512, True, None, [None, True], {"a": None}, {1: 2}, 10**30)
    keys = [*(key for key, _ in iterate_fields()), *Config.model_fields]
    words = re.compile(r"None|True|False|Input|Keys|should|string|tuple|dict|instance|parse")
    messages = []
    for key in keys:
        for value in wrong:
            try:
                build_config({}, assignments={key: value})
            except ConfigError as error:
                messages.append(str(error))
    assert len(messages) > 4 * len(keys), "most values are of a wrong type for most keys"
    assert [message for message in messages if words.search(message)] == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tracking.name", 2026, "found 2026, expected text, as in '2026'"),
        ("tracking.tags", [1, None], "found 1, expected text, as in '1' ("),
        ("trainer.monitor", [True], "found [true], expected 'auto', 'accuracy', 'balanced_"),
        ("model", {1: 2}, "found 1, expected text as the name of a key"),
        ("data.pixel_range", None, "null is neither auto, full nor LOW:HIGH"),
    ],
)
def test_values_in_messages_are_those_of_yaml(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_config({}, assignments={key: value})


def test_colon_without_a_blank_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"found no value\. Write a blank after the colon"):
        build_config({}, assignments=parse_assignments(["optim.max_norm={head:3}"]))


def test_error_of_a_layer_group_names_it_once_for_each() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({}, assignments={"optim.max_norm": {"head": 0, "all": "x"}})
    assert str(caught.value).splitlines()[1:3] == [
        "  optim.max_norm.head: found 0, expected greater than 0 (command line)",
        "  optim.max_norm.all: found 'x', expected a number (command line)",
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"hidden": 512}, "head_params.hidden: found 512, expected a list, as [512]"),
        ({"hidden": []}, "head_params.hidden: found [], expected a list of at least 1 item"),
    ],
)
def test_wrong_hidden_layers_name_the_form(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_config({}, assignments={"model.head": "mlp", "model.head_params": params})


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"model": {"head": "mlp", "head_params": {"hidden": [0]}}}, "model.head_params.hidden"),
        ({"model": {"head": "mlp", "head_params": {"width": 3}}}, "model.head_params: unknown"),
        ({"model": {"head_params": {"hidden": [4]}}}, "model.head_params cannot apply to model"),
        ({"tracking": {"registry": "a/b"}}, "tracking.registry=a/b cannot apply to tracking"),
        ({"tracking": {"registry": ""}}, "tracking.registry: found '', expected text"),
        ({"tracking": {"group": ""}}, "tracking.group: found '', expected text"),
    ],
)
def test_messages_of_a_section_name_the_whole_key(tree: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    assert str(caught.value).splitlines()[1].strip().startswith(line)


def test_config_split_fractions_of_one_raise_config_error() -> None:
    tree = {"data": {"val_fraction": 0.6, "test_fraction": 0.4}}
    with pytest.raises(ConfigError, match=r"data\.val_fraction 0\.6 and test_fraction 0\.4"):
        build_config(tree)


def test_config_momentum_without_sgd_raises_config_error() -> None:
    with pytest.raises(ConfigError, match=r"optim\.name=sgd and rmsprop .*=adamw"):
        build_config({"optim": {"momentum": 0.5}})
    assert build_config({"optim": {"momentum": 0.5, "name": "sgd"}}).optim.momentum == 0.5

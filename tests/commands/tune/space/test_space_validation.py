"""Tests of ``finetune.commands.tune.space.space_validation``."""

from pathlib import Path

import pytest

from finetune.commands.tune.space.search_space import (
    SearchDimension,
    parse_search_options,
    read_space_file,
)
from finetune.commands.tune.space.space_validation import FIXED_KEYS, validate_space
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError


def parse(option: str) -> SearchDimension:
    """Return the only dimension of an option."""
    ((dimension,), _) = parse_search_options([option])
    return dimension


def test_fixed_keys_are_keys_or_sections_of_the_config() -> None:
    for key in FIXED_KEYS:
        value = Config()
        for name in key.split("."):
            assert name in type(value).model_fields, key
            value = getattr(value, name)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("optim.weight_decayy=0:1", ["Did you mean 'optim.weight_decay'?", "--search"]),
        ("augment.name=light,stron", ["augment.name", "strong"]),
        ("optim.weight_decay=0:99", ["optim.weight_decay", "99"]),
        ("optim.name=0:1", ["optim.name"]),
        ("seed=0:9", ["seed", "same in all trials"]),
        ("data.val_fraction=0.1:0.3", ["data.val_fraction", "images"]),
        ("checkpoint.monitor=loss,accuracy", ["checkpoint.monitor", "judged"]),
        ("trainer.devices=1,2", ["trainer.devices", "hardware"]),
        ("cross_validation.num_folds=3:5", ["cross_validation.num_folds", "validates"]),
        ("data.task=single_label,multi_label", ["data.task", "labels"]),
        ("data.label_separator=a,b", ["data.label_separator", "labels"]),
        ("data.group_column=a,b", ["data.group_column", "images"]),
        ("unfreeze.name=all,linear_probe", ["linear_probe", "no epochs"]),
    ],
)
def test_validate_space_rejects_what_cannot_be_searched(option: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_space([parse(option)], build_config({}))
    assert [part for part in parts if part not in str(caught.value)] == []


def test_validate_space_checks_values_with_the_settings_that_trials_share() -> None:
    momentum = parse("optim.momentum=0.5:0.99")
    validate_space([momentum], build_config({}, assignments={"optim.name": "sgd"}))
    with pytest.raises(ConfigError, match="momentum"):
        validate_space([momentum], build_config({}))


def test_validate_space_names_the_file_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    for text in ("seed: 1:9", "optim.weight_decay: 0:99"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"space\.yaml") as caught:
            validate_space(read_space_file(file), build_config({}))
        assert "--search" not in str(caught.value)


def test_validate_space_reads_lists_as_the_config_does() -> None:
    dimension = SearchDimension("data.train_image_size", ([64, 96], [96, 96]))
    (validated,) = validate_space([dimension], build_config({}))
    assert validated.choices == ((64, 96), (96, 96))


def test_validate_space_reads_words_of_a_switch_as_the_config_does() -> None:
    (dimension,) = validate_space([parse("augment.hflip=on,off")], build_config({}))
    assert dimension.choices == ("on", "off")

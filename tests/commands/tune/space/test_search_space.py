"""Tests of ``finetune.commands.tune.space.search_space``."""

from pathlib import Path

import pytest
import yaml

from finetune.commands.tune.space.search_space import (
    SearchDimension,
    parse_search_options,
    read_space_file,
)
from finetune.errors import ConfigError


def parse(option: str) -> SearchDimension:
    """Return the only dimension of an option."""
    ((dimension,), _) = parse_search_options([option])
    return dimension


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("optim.lr=1e-5:1e-2:log", SearchDimension("optim.lr", (), 1e-5, 1e-2, is_log=True)),
        ("optim.weight_decay=0:1", SearchDimension("optim.weight_decay", (), 0.0, 1.0)),
        ("trainer.epochs=3:9", SearchDimension("trainer.epochs", (), 3, 9, is_integer=True)),
        ("augment.name=light,strong", SearchDimension("augment.name", ("light", "strong"))),
        ("model.drop_rate=null,0.2", SearchDimension("model.drop_rate", (None, 0.2))),
        ("trainer.deterministic=true,false", SearchDimension("trainer.deterministic", (True, False))),  # noqa: E501
        ("model.head_params.hidden=[64],[128, 32]", SearchDimension("model.head_params.hidden", ([64], [128, 32]))),  # noqa: E501
        ("optim.params={eps: 1e-8, amsgrad: true},{}", SearchDimension("optim.params", ({"eps": 1e-8, "amsgrad": True}, {}))),  # noqa: E501
        ("data.train_image_size=[64,64],[64,96]", SearchDimension("data.train_image_size", ([64, 64], [64, 96]))),  # noqa: E501
        ("loss.params.gamma=0.5:4", SearchDimension("loss.params.gamma", (), 0.5, 4.0)),
        ("loss.name=focal,my.module:loss", SearchDimension("loss.name", ("focal", "my.module:loss"))),  # noqa: E501
    ],
)  # fmt: skip
def test_parse_search_options_reads_ranges_and_choices(
    option: str, expected: SearchDimension
) -> None:
    dimension = parse(option)
    assert dimension == expected
    if expected.is_integer:
        assert isinstance(dimension.low, int)


def test_choices_that_are_lists_are_told_apart() -> None:
    dimension = parse("model.head_params.hidden=[64],[128, 32]")
    assert dimension.describe() == "[64], [128,32]"


def test_parse_search_options_default_word_adds_the_default_space() -> None:
    dimensions, extends = parse_search_options(["default", "optim.lr=1e-5:1"])
    assert extends
    assert [dimension.key for dimension in dimensions] == ["optim.lr"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["optim.lr"], ["KEY=LOW:HIGH"]),
        (["optim.lr=0.1"], ["optim.lr", "one value"]),
        (["augment.name=light,light"], ["augment.name", "twice"]),
        (["optim.lr=1:0.1"], ["optim.lr", "1:0.1", "lower"]),
        (["optim.weight_decay=0:1:log"], ["optim.weight_decay", "above 0"]),
        (["optim.lr=1:2", "optim.lr=2:3"], ["optim.lr", "twice"]),
    ],
)
def test_parse_search_options_invalid_raises(options: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_search_options(options)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_read_space_file_equals_options_and_its_own_output(tmp_path: Path) -> None:
    options = [
        "optim.lr=1e-5:1e-2:log",
        "trainer.epochs=3:9",
        "model.drop_rate=null,0.2",
    ]
    expected, _ = parse_search_options(options)
    file = tmp_path / "space.yaml"
    file.write_text(
        "optim.lr: {low: 1e-5, high: 1e-2, log: true}\n"
        "trainer.epochs: 3:9\n"
        "model.drop_rate: [null, 0.2]\n"
    )
    assert read_space_file(file) == expected
    file.write_text(yaml.safe_dump({dim.key: dim.to_json() for dim in expected}, sort_keys=False))
    assert read_space_file(file) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no keys"),
        ("optim: {lr: '1:2'}", "optim.lr"),
        ("optim.lr: 0.1", "low and high"),
        ("optim.lr: {low: 1, hihg: 2}", "low and high"),
        ("optim.lr: {low: 1, high: two}", "low and high"),
        ("optim.lr: 1:0.1", r"space\.yaml: optim\.lr: .* no range"),
        ("optim.lr: [0.1]", r"space\.yaml: optim\.lr: there is one value"),
    ],
)
def test_read_space_file_invalid_raises(text: str, part: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=part) as caught:
        read_space_file(file)
    assert "--search" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        "data.train_image_size=64,96",
        "optim.lr=1e-5:1e-2:log",
        "trainer.epochs=3:9",
        "model.drop_rate=null,0.2",
    ],
)
def test_dimension_contains_and_restores_its_values(option: str) -> None:
    dimension = parse(option)
    for value in dimension.test_values:
        assert dimension.contains(value)
        assert dimension.decode(dimension.encode(value)) == value
    assert not dimension.contains("other")
    dimension.build_distribution()


def test_dimension_of_lists_restores_lists(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("data.train_image_size: [[64, 96], [96, 96]]\n")
    (dimension,) = read_space_file(file)
    assert dimension.contains((64, 96))
    assert dimension.decode(dimension.encode([64, 96])) == [64, 96]


def test_decode_rounds_to_three_digits_within_the_range() -> None:
    dimension = SearchDimension("optim.lr", (), 0.12349, 0.98761, is_log=True)
    assert dimension.decode(0.543219) == 0.543
    assert dimension.decode(0.98761) == 0.98761
    assert dimension.decode(0.12349) == 0.12349

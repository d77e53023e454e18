"""Files, words and flags become one tree; mistakes come all at once."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config.load import (
    build_config,
    diff_from_defaults,
    dump_commented_defaults,
    dump_config,
    is_assignment,
    parse_assignments,
    read_config_file,
    replace_values,
)
from finetune.config.schema import Config
from finetune.errors import ConfigError


def file_with(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


NUMBERS = {
    "3e-4": 3e-4,
    "1E+2": 100.0,
    "-2.5e3": -2500.0,
    ".5e1": 5.0,
    "1.e-2": 0.01,
    "0.1": 0.1,
    "7": 7,
    "1e": "1e",
    "e4": "e4",
    '"3e-4"': "3e-4",
    "2026-01-31": "2026-01-31",
    "2026-13-45": "2026-13-45",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_alike_in_files_and_words(tmp_path: Path, text: str) -> None:
    expected = NUMBERS[text]
    from_file = read_config_file(file_with(tmp_path, f"a: {text}\n"))["a"]
    from_word = parse_assignments([f"a={text}"])["a"]
    assert (from_file, from_word) == (expected, expected)
    assert type(from_file) is type(from_word) is type(expected)


def test_words_are_yaml_and_keep_what_follows_the_first_equals_sign() -> None:
    words = ["a.b=[1, x]", "c=", "d={e: 3e-4}", "f=k=v", "g=true", "h=ü, ö"]
    assert parse_assignments(words) == {
        "a.b": [1, "x"],
        "c": None,
        "d": {"e": 3e-4},
        "f": "k=v",
        "g": True,
        "h": "ü, ö",
    }


@pytest.mark.parametrize(
    ("word", "yes"),
    [("a.b=1", True), ("seed=", True), ("photos", False), ("./a=b", False), ("=x", False)],
)
def test_a_word_with_a_key_is_an_assignment(word: str, yes: bool) -> None:
    assert is_assignment(word) is yes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1", "optim.lr=1", "seed=2"], "seed is given twice on the command line"),
        (["a=[1"], r"a=\[1: the value is not YAML"),
        (["a={b: 1, b: 2}"], "key 'b' stands twice"),
        (["a={? [1] : 2}"], "the value is not YAML"),
    ],
)
def test_words_that_cannot_be_read(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_assignments(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: 1\n  lr: 2\n", r"config\.yaml: key 'lr' stands twice, again in line 3"),
        ("seed: 1\noptim: {}\nseed: 1\n", "key 'seed' stands twice, again in line 3"),
        ("optim:\n\tlr: 1\n", r"config\.yaml, line 2: .*\. Mend the file"),
        ("? [1]\n: 2\n", r"config\.yaml, line 1: found unhashable key"),
        ("!!python/object:os.system {}", r"config\.yaml, line 1: could not determine a construct"),
        ("- 1\n- 2\n", r"config\.yaml holds a list, not keys and values"),
        ("word", r"config\.yaml holds a str"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config_file(file_with(tmp_path, text))


def test_a_missing_binary_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the config file .*gone\.yaml: No such"):
        read_config_file(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="Cannot read the config file"):
        read_config_file(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a text file in UTF-8"):
        read_config_file(tmp_path / "binary")
    assert read_config_file(file_with(tmp_path, "# nothing\n")) == {}


def test_anchors_and_merges_are_yaml_too(tmp_path: Path) -> None:
    text = "a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n"
    assert read_config_file(file_with(tmp_path, text))["b"] == {"x": 1, "y": 3}


def test_flags_win_over_words_and_words_over_the_file() -> None:
    tree = {"optim": {"lr": 1.0, "weight_decay": 0.5, "name": "sgd"}, "seed": 1}
    config = build_config(
        tree,
        assignments={"optim.lr": 2.0, "optim.weight_decay": 0.25},
        flags={"optim.lr": ("--lr", 2.0), "seed": ("--seed", 0)},
    )
    assert (config.optim.lr, config.optim.weight_decay, config.optim.name) == (2.0, 0.25, "sgd")
    assert config.seed == 0
    assert config.trainer == Config().trainer
    assert tree == {"optim": {"lr": 1.0, "weight_decay": 0.5, "name": "sgd"}, "seed": 1}


def test_a_flag_and_a_word_that_differ_are_a_conflict() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: --lr 0\.1 and optim\.lr=0\.2 differ"):
        build_config({}, assignments={"optim.lr": 0.2}, flags={"optim.lr": ("--lr", 0.1)})


def test_all_mistakes_come_at_once_each_with_its_source_and_the_nearest_name() -> None:
    tree = {
        "optm": {"lr": 1},
        "optim": {"lrr": 1, "weight_decay": "much"},
        "trainer": 5,
        "model": {"epochs": 3},
    }
    with pytest.raises(ConfigError) as caught:
        build_config(
            tree,
            assignments={"data.val_fraction": 2, "seed.x": 1, "seed": "one"},
            flags={"trainer.epochs": ("--epochs", 0), "augment.name": ("--augment", "stron")},
            source_name="my.yaml",
        )
    first, *lines, last = str(caught.value).splitlines()
    expected = [
        r"optm: unknown key\. Did you mean 'optim'\? \(my\.yaml\)",
        r"optim\.lrr: unknown key\. Did you mean 'optim\.lr'\? \(my\.yaml\)",
        r"optim\.weight_decay: found 'much', expected .*number.* \(my\.yaml\)",
        r"model\.epochs: unknown key\. Did you mean '[\w.]+'\? \(my\.yaml\)",
        r"data\.val_fraction: found 2, expected less than 1 \(command line\)",
        r"seed: found .* expected .*integer.* \(command line\)",
        r"augment\.name: unknown preset 'stron'\. Did you mean 'strong'\?.* \(--augment\)",
        r"trainer\.epochs: 'trainer' holds a value, not keys",
        r"trainer: 5 is a value, but this is a section with keys of its own \(my\.yaml\)",
    ]
    for pattern in expected:
        matching = [line for line in lines if re.fullmatch(f"  {pattern}", line)]
        assert len(matching) == 1, (pattern, lines)
    assert first == f"{len(lines)} mistakes in the configuration:"
    assert len(lines) == len(expected)
    assert last == "See all keys: finetune config"


@pytest.mark.parametrize("key", ["optim.learning_rate", "lr", "trainer.lr", "epochs"])
def test_an_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: unknown key"):
        build_config({}, assignments={key: 1})


@pytest.mark.parametrize(
    ("key", "near"),
    [("lr", "optim.lr"), ("epochs", "trainer.epochs"), ("trainer.epoch", "trainer.epochs")],
)
def test_a_key_in_the_wrong_section_is_found(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"Did you mean '{re.escape(near)}'\?"):
        build_config({}, assignments={key: 1})


def test_commented_defaults_are_the_defaults_with_a_comment_over_each_key(tmp_path: Path) -> None:
    text = dump_commented_defaults()
    assert read_config_file(file_with(tmp_path, text)) == Config().model_dump()
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *\w+:", line)]
    for number in keys:
        indent = re.match(r" *", lines[number])
        assert indent is not None
        assert re.match(rf"{indent[0]}# \S", lines[number - 1]), lines[number]
    values = [
        f"  {name}:" if isinstance(section, dict) else f"{top}:"
        for top, section in Config().model_dump().items()
        for name in (section if isinstance(section, dict) else [top])
    ]
    found = [re.sub(r":.*", ":", lines[number]) for number in keys]
    assert [key for key in found if key in values] == values


CHANGED: dict[str, Any] = {
    "data.path": "früchte/a, b: c",
    "data.image_size": 32,
    "model.kwargs": {"drop_path_rate": 0.1, "name": "1e5"},
    "model.pretrained_cfg": {"mean": [0.5, 0.5, 0.5]},
    "unfreeze.params": {"depths": {"0": 1, "3": 0.5}},
    "optim.lr": 3e-4,
    "trainer.early_stopping_patience": 3,
    "tracking.name": "3e-4",
    "tracking.entity": "2026-01-31",
    "tracking.project": "off",
    "tracking.tags": ["yes", "null", "12"],
    "seed": 7,
}


def test_a_dumped_tree_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = build_config({}, assignments=CHANGED)
    text = dump_config(config)
    assert build_config(read_config_file(file_with(tmp_path, text))) == config
    assert list(yaml.safe_load(text)) == list(Config.model_fields)


def test_differences_are_what_is_not_at_its_default() -> None:
    assert diff_from_defaults(Config()) == {}
    assert diff_from_defaults(build_config({}, assignments=CHANGED)) == CHANGED


def test_replaced_sets_dotted_keys_and_checks_them() -> None:
    config = build_config({}, assignments={"seed": 3})
    changed = replace_values(config, {"optim.lr": 0.5, "unfreeze.params": {"epochs": 2}})
    assert diff_from_defaults(changed) == {
        "seed": 3,
        "optim.lr": 0.5,
        "unfreeze.params": {"epochs": 2},
    }
    assert config.optim.lr == "auto"
    with pytest.raises(ValueError, match="greater than 0"):
        replace_values(config, {"optim.lr": -1})


@pytest.mark.parametrize(("typed", "sides"), [(128, (128, 128)), ("128,224", (128, 224))])
def test_one_side_stands_for_both(typed: object, sides: tuple[int, int]) -> None:
    assert (
        build_config({}, assignments={"data.train_image_size": typed}).data.train_image_size
        == sides
    )


def test_a_switch_is_no_side() -> None:
    with pytest.raises(ConfigError, match=r"data\.train_image_size: found True"):
        build_config({}, assignments={"data.train_image_size": True})

"""Tests of config files, assignments and flags, and of dumping configs."""

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
from finetune.config.section import YamlForm
from finetune.errors import ConfigError


def write_config(folder: Path, text: str) -> Path:
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
def test_numbers_are_read_alike_in_files_and_assignments(tmp_path: Path, text: str) -> None:
    expected = NUMBERS[text]
    from_file = read_config_file(write_config(tmp_path, f"a: {text}\n"))["a"]
    from_argument = parse_assignments([f"a={text}"])["a"]
    assert (from_file, from_argument) == (expected, expected)
    assert type(from_file) is type(from_argument) is type(expected)


def test_parse_assignments_reads_yaml_after_the_first_equals_sign() -> None:
    args = ["a.b=[1, x]", "c=", "d={e: 3e-4}", "f=k=v", "g=true", "h=ü, ö"]
    assert parse_assignments(args) == {
        "a.b": [1, "x"],
        "c": None,
        "d": {"e": 3e-4},
        "f": "k=v",
        "g": True,
        "h": "ü, ö",
    }


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("output=007", "007"),
        ("output=x #y", "x #y"),
        ("output=2026-01-31", "2026-01-31"),
        ("output=[a, b]", "[a, b]"),
        ("output=it's: here", "it's: here"),
        ("output='007'", "007"),
        ('output="a b"', "a b"),
        ("output='a' or 'b'", "'a' or 'b'"),
        ("output=null", None),
        ("output=", None),
        ("data.path=1e3", "1e3"),
        ("data.cache=./on #2", "./on #2"),
        ("data.cache=off", "off"),
        ("data.cache=true", "on"),
        ("data.cache=TRUE", "on"),
        ("data.cache=Yes", "on"),
        ("data.cache=On", "on"),
        ("data.cache=False", "off"),
        ("data.cache=OFF", "off"),
        ("data.cache=No", "off"),
        ("data.path=~", "~"),
        ("data.path=NULL", None),
        ("model.weights=~/w.pth", "~/w.pth"),
        ("tracking.name=off", "off"),
        ("tracking.tags=[007, yes]", ["007", "yes"]),
        ("data.label_columns=a,[b]", "a,[b]"),
        ("seed=7", 7),
        ("trainer.compile=on", True),
        ("trainer.early_stopping_patience=null", None),
    ],
)
def test_assignment_to_a_key_of_text_is_taken_as_typed(arg: str, expected: object) -> None:
    key = arg.partition("=")[0]
    config = build_config({}, assignments=parse_assignments([arg]))
    section, _, name = key.rpartition(".")
    value = getattr(getattr(config, section) if section else config, name)
    assert value == expected
    assert type(value) is type(expected)


LISTS_AND_MAPPINGS = {
    "data.label_columns": "[a,yes,007]",
    "data.splits": "{Training: train, Testing: test}",
    "data.train_image_size": "[128,224]",
    "imbalance.class_weights_params": "{beta: 0.9}",
    "imbalance.sampler_params": "{alpha: 0.5}",
    "loss.params": "{gamma: 1}",
    "lr_schedule.params": "{power: 2}",
    "model.head_params": "{hidden: [64,32]}",
    "model.kwargs": "{widths: [8,16]}",
    "model.pretrained_cfg": "{mean: [0.5,0.4,0.3]}",
    "optim.max_norm": "{head: 1}",
    "optim.params": "{betas: [0.9,0.99]}",
    "tracking.tags": "[a,b]",
    "unfreeze.params": "{every: 2}",
}
"""A value in brackets for each key that takes a list or a mapping."""


def test_keys_that_take_lists_or_mappings_are_known() -> None:
    found = {
        f"{section}.{key}"
        for section, parent in Config.model_fields.items()
        for key, field in getattr(parent.annotation, "model_fields", {}).items()
        if re.search(r"\b(list|tuple|dict)\[", str(field.annotation))
        or any(isinstance(one, YamlForm) for one in field.metadata)
    }
    assert found == set(LISTS_AND_MAPPINGS)


@pytest.mark.parametrize(("key", "text"), LISTS_AND_MAPPINGS.items())
def test_assignment_in_brackets_equals_the_same_text_in_a_config_file(
    key: str, text: str, tmp_path: Path
) -> None:
    section, _, name = key.partition(".")
    quoted = text.replace("[a,yes,007]", "[a,'yes','007']")  # a file reads other types
    file = tmp_path / "config.yaml"
    related = {"model.head_params": {"model": {"head": "mlp"}}}.get(key, {})
    file.write_text(f"{section}: {{{name}: {quoted}}}", encoding="utf-8")
    tree = read_config_file(file)
    tree[section] = {**related.get(section, {}), **tree[section]}
    by_file = build_config(tree)
    by_assignment = build_config(related, assignments=parse_assignments([f"{key}={text}"]))
    assert diff_from_defaults(by_assignment) == diff_from_defaults(by_file)
    assert key in diff_from_defaults(by_file)


def test_assignment_in_brackets_with_a_key_twice_raises_config_error() -> None:
    message = r"data\.splits=\{A: train, A: test\}: duplicate key 'A' in line 1\. Keep one"
    with pytest.raises(ConfigError, match=message):
        parse_assignments(["data.splits={A: train, A: test}"])


def test_list_of_columns_is_the_list_and_no_text_with_brackets() -> None:
    arguments = ["data.label_columns=[a, 'b c', no]", "data.task=multi_label"]
    config = build_config({}, assignments=parse_assignments(arguments))
    assert config.data.label_format.columns == ("a", "b c", "no")
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_assignments(["data.label_columns=[a, b"])
    nested = ["model.head=mlp", "model.head_params.hidden=[64, 32]"]
    config = build_config({}, assignments=parse_assignments(nested))
    assert config.model.head_params == {"hidden": [64, 32]}


@pytest.mark.parametrize(
    ("arg", "expected"),
    [("a.b=1", True), ("seed=", True), ("photos", False), ("./a=b", False), ("=x", False)],
)
def test_is_assignment_needs_a_key(arg: str, expected: bool) -> None:
    assert is_assignment(arg) is expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["seed=1", "optim.lr=1", "seed=2"], "seed "),
        (["a=[1"], r"a=\[1: "),
        (["a={b: 1, b: 2}"], "'b'"),
        (["a={? [1] : 2}"], r"a=\{\? \[1\] : 2\}: "),
    ],
)
def test_parse_assignments_invalid_raises_config_error(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_assignments(args)


@pytest.mark.parametrize(
    ("tree", "assignments", "expected"),
    [
        ({}, {"data.cache_px": 100}, ("data.cache_shorter_side", 100)),
        ({"data": {"cache_px": 1}}, {"data.cache_shorter_side": 8}, ("data.cache_shorter_side", 8)),
        ({}, {"data": {"cache_px": 100}}, ("data.cache_shorter_side", 100)),
    ],
)
def test_build_config_accepts_former_keys(
    tree: dict[str, Any], assignments: dict[str, Any], expected: tuple[str, Any]
) -> None:
    key, value = expected
    assert diff_from_defaults(build_config(tree, assignments=assignments)) == {key: value}


@pytest.mark.parametrize("key", ["imbalance.sampler_params", "imbalance.sampler_params.from_share"])
@pytest.mark.parametrize("setting", ["imbalance.sampler=deferred", "imbalance.strategy=drs"])
def test_build_config_accepts_former_sampler_params(key: str, setting: str) -> None:
    name, _, choice = setting.partition("=")
    value = 0.5 if key.endswith("from_share") else {"from_share": 0.5}
    config = build_config({}, assignments={key: value, name: choice})
    assert config.imbalance.sampler_params == {"start_fraction": 0.5}


def test_build_config_key_given_by_both_names_raises_config_error() -> None:
    assignments = {"data.cache_px": 100, "data.cache_shorter_side": 200}
    with pytest.raises(ConfigError, match=r"data\.cache_shorter_side: given twice"):
        build_config({}, assignments=assignments)


def test_build_config_leaves_given_mappings_unchanged() -> None:
    section = {"leakage": "error"}
    build_config({}, assignments={"data": section}, flags={"data.path": ("data", "photos")})
    assert section == {"leakage": "error"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: 1\n  lr: 2\n", r"config\.yaml: .*'lr' in line 3"),
        ("seed: 1\noptim: {}\nseed: 1\n", "'seed' in line 3"),
        ("optim:\n\tlr: 1\n", r"config\.yaml, line 2: "),
        ("? [1]\n: 2\n", r"config\.yaml, line 1: "),
        ("!!python/object:os.system {}", r"config\.yaml, line 1: "),
        ("- 1\n- 2\n", r"config\.yaml .*list"),
        ("word", r"config\.yaml .*str"),
    ],
)
def test_read_config_file_invalid_raises_config_error(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config_file(write_config(tmp_path, text))


def test_read_config_file_missing_binary_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such"):
        read_config_file(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        read_config_file(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary .*UTF-8"):
        read_config_file(tmp_path / "binary")
    assert read_config_file(write_config(tmp_path, "# nothing\n")) == {}


def test_read_config_file_supports_anchors_and_merges(tmp_path: Path) -> None:
    text = "a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n"
    assert read_config_file(write_config(tmp_path, text))["b"] == {"x": 1, "y": 3}


def test_build_config_flags_override_assignments_override_file() -> None:
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


def test_build_config_flag_contradicting_assignment_raises_config_error() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: --lr 0\.1 .*optim\.lr=0\.2"):
        build_config({}, assignments={"optim.lr": 0.2}, flags={"optim.lr": ("--lr", 0.1)})


def test_build_config_reports_all_errors_with_source_and_similar_name() -> None:
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
        r"trainer\.epochs: 'trainer' .*",
        r"trainer: found 5, expected a section.* \(my\.yaml\)",
    ]
    for pattern in expected:
        matching = [line for line in lines if re.fullmatch(f"  {pattern}", line)]
        assert len(matching) == 1, (pattern, lines)
    assert first.startswith(f"{len(lines)} ")
    assert len(lines) == len(expected)
    assert "finetune config" in last


@pytest.mark.parametrize("key", ["optim.learning_rate", "lr", "trainer.lr", "epochs"])
def test_build_config_unknown_key_raises_config_error(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: unknown key"):
        build_config({}, assignments={key: 1})


@pytest.mark.parametrize(
    ("key", "similar"),
    [("lr", "optim.lr"), ("epochs", "trainer.epochs"), ("trainer.epoch", "trainer.epochs")],
)
def test_build_config_unknown_key_suggests_other_section(key: str, similar: str) -> None:
    with pytest.raises(ConfigError, match=rf"Did you mean '{re.escape(similar)}'\?"):
        build_config({}, assignments={key: 1})


def test_commented_defaults_equal_defaults_with_a_comment_per_key(tmp_path: Path) -> None:
    text = dump_commented_defaults()
    assert read_config_file(write_config(tmp_path, text)) == Config().model_dump()
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
    written = [re.sub(r":.*", ":", lines[number]) for number in keys]
    assert [key for key in written if key in values] == values


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


def test_dump_config_round_trip(tmp_path: Path) -> None:
    config = build_config({}, assignments=CHANGED)
    text = dump_config(config)
    assert build_config(read_config_file(write_config(tmp_path, text))) == config
    assert list(yaml.safe_load(text)) == list(Config.model_fields)


def test_diff_from_defaults_has_changed_values_only() -> None:
    assert diff_from_defaults(Config()) == {}
    assert diff_from_defaults(build_config({}, assignments=CHANGED)) == CHANGED


def test_replace_values_sets_and_validates_dotted_keys() -> None:
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


@pytest.mark.parametrize(("value", "expected"), [(128, (128, 128)), ("128,224", (128, 224))])
def test_train_image_size_of_one_side_applies_to_both(
    value: object, expected: tuple[int, int]
) -> None:
    config = build_config({}, assignments={"data.train_image_size": value})
    assert config.data.train_image_size == expected


def test_train_image_size_boolean_raises_config_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.train_image_size: found true"):
        build_config({}, assignments={"data.train_image_size": True})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:4095", "0:4095"), ("-1000:400", "-1000:400"), ("1:30", "1:30"), ("0:1.5", "0:1.5"),
        ("0.0:255.0", "0:255"), ("auto", "auto"), ("full", "full"),
    ],
)  # fmt: skip
def test_pixel_range_is_text_on_the_command_line_and_in_yaml(
    text: str, expected: str, tmp_path: Path
) -> None:
    config = build_config({}, assignments=parse_assignments([f"data.pixel_range={text}"]))
    assert config.data.pixel_range == expected
    (tmp_path / "a.yaml").write_text(f"data:\n  pixel_range: {text}\n")
    assert build_config(read_config_file(tmp_path / "a.yaml")) == config
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert build_config(read_config_file(tmp_path / "b.yaml")) == config
    is_range = expected not in ("auto", "full")
    assert str(config.data.read_options.pixel_range) == (expected if is_range else "None")


@pytest.mark.parametrize("text", ["5:1", "3:3", "0:inf", "12", "12bit", "0:"])
def test_pixel_range_invalid_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"neither auto, full nor LOW:HIGH .* such as 0:4095"):
        build_config({}, assignments=parse_assignments([f"data.pixel_range={text}"]))

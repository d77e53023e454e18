"""Search space of a study: ranges and choices of config keys, from options or a YAML file."""

import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from finetune.config.auto import get_config_value
from finetune.config.load import build_config, parse_assignments, read_config_file
from finetune.config.renamed_keys import rename_key
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.units import format_scientific

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DEFAULT_SPACE = "default"
"""Word of ``--search`` that adds the default search space to the given keys."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE_PATTERN = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(log|linear))?")

_FIXED_KEYS = {
    "data.path": "the images",
    "data.splits": "the images",
    "data.val_fraction": "the images",
    "data.split_seed": "the images",
    "data.test_fraction": "the images",
    "data.min_images_per_class": "the images",
    "data.leakage": "the images",
    "data.max_megapixels": "the images",
    "data.pixel_range": "the images",
    "data.group_by": "the images",
    "data.labels": "the images",
    "data.cache": "where files are kept",
    "data.num_workers": "how fast a trial is",
    "cache": "where files are kept",
    "tracking": "what is recorded",
    "output": "where files are kept",
    "resume": "what a new run is",
    "seed": "the split and the order of the images, of which none is better than another",
    "trainer.monitor": "how trials are judged",
    "checkpoint.monitor": "how trials are judged",
    "trainer.accelerator": "the hardware",
    "trainer.devices": "the hardware",
    "trainer.num_nodes": "the hardware",
    "trainer.strategy": "the hardware",
}
"""Keys and sections that all trials must share, with what they determine."""


@dataclass(frozen=True, slots=True)
class SearchDimension:
    """Values of one config key among which a study searches: a range or a list of choices.

    Attributes:
        key: Dotted config key.
        choices: The values to choose from; empty for a range.
        low: Lowest value of a range.
        high: Highest value, inclusive.
        is_log: Whether the range is searched in its logarithm.
        is_integer: Whether only whole numbers are tried.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_integer: bool = False

    @property
    def test_values(self) -> tuple[Any, ...]:
        """Values by which the range or the choices are validated."""
        return self.choices or (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Return whether a value of the key lies in the range or among the choices."""
        if self.choices:
            return any(_encode(value) == _encode(choice) for choice in self.choices)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    def encode(self, value: Any) -> Any:
        """Return a value in the form in which the study stores it."""
        return _encode(value) if self.choices else value

    def decode(self, stored: Any) -> Any:
        """Return the value of the key for a stored one, numbers in three digits."""
        if not self.choices:
            if not isinstance(stored, float):
                return stored
            return min(max(float(f"{stored:.3g}"), self.low), self.high)
        return next(choice for choice in self.choices if _encode(choice) == stored)

    def build_distribution(self) -> "BaseDistribution":
        """Return Optuna's form of it."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution([_encode(choice) for choice in self.choices])
        if self.is_integer:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log)
        return FloatDistribution(self.low, self.high, log=self.is_log)

    def to_json(self) -> Any:
        """Return JSON values, which a file of ``--space`` may hold, too."""
        if self.choices:
            return [list(c) if isinstance(c, tuple) else c for c in self.choices]
        return {"low": self.low, "high": self.high, **({"log": True} if self.is_log else {})}

    def describe(self) -> str:
        """Return the range or the choices in words."""
        if self.choices:
            return ", ".join(format_value(choice) for choice in self.choices)
        log = ", logarithmic" if self.is_log else ""
        return f"{format_value(self.low)} to {format_value(self.high)}{log}"


def format_value(value: Any) -> str:
    """Return a config value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return format_scientific(value, digits=3)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool | dict) else str(value)


def parse_search_options(options: Iterable[str]) -> tuple[list[SearchDimension], bool]:
    """Return the dimensions of ``--search`` options, and whether they add to the default space.

    Raises:
        ConfigError: An option is neither KEY=LOW:HIGH[:log] nor KEY=A,B,C, or a key is given twice.
    """
    dimensions: dict[str, SearchDimension] = {}
    extends_default = False
    for option in options:
        if option == DEFAULT_SPACE:
            extends_default = True
            continue
        name, separator, text = option.partition("=")
        if not separator or not name or not text:
            raise ConfigError(
                f"--search {option}: expected KEY=LOW:HIGH, KEY=LOW:HIGH:log, KEY=A,B,C, or the "
                f"word {DEFAULT_SPACE}."
            )
        key = rename_key(name)
        if key in dimensions:
            raise ConfigError(f"--search {key} is given twice. Keep one.")
        dimensions[key] = _parse_dimension(key, text)
    return list(dimensions.values()), extends_default


def read_space_file(path: Path) -> list[SearchDimension]:
    """Return the dimensions of a YAML file: dotted keys, each with a range or a list of choices.

    A range is ``LOW:HIGH``, ``LOW:HIGH:log`` or ``{low: 0.1, high: 1, log: true}``.

    Raises:
        ConfigError: The file is missing or damaged, or an entry is no range and no list.
    """
    return parse_space(read_config_file(path), source=str(path))


def parse_space(tree: Mapping[str, Any], *, source: str) -> list[SearchDimension]:
    """Return the dimensions of dotted keys, each with a range or a list of choices.

    Args:
        tree: Dotted key to "LOW:HIGH", "LOW:HIGH:log", ``{"low": ..., "high": ..., "log": ...}`` or
            a list of values.
        source: Name of the tree in messages.

    Raises:
        ConfigError: There is no key, or an entry is no range and no list.
    """
    if not tree:
        raise ConfigError(f"{source} has no keys. Write for example: optim.lr: 1e-5:1e-2:log")
    return [_read_entry(rename_key(key), value, source) for key, value in tree.items()]


def validate_space(space: Sequence[SearchDimension], config: Config) -> list[SearchDimension]:
    """Return the dimensions with their choices as the config has them, each of them valid.

    Args:
        space: Dimensions of the study.
        config: Config with the settings that all trials share.

    Raises:
        ConfigError: A key is unknown or must be the same in all trials, or a value is invalid.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    validated = []
    for dimension in space:
        key = dimension.key
        for fixed, meaning in _FIXED_KEYS.items():
            if f"{key}.".startswith(f"{fixed}."):
                raise ConfigError(
                    f"--search {key}: it determines {meaning}, which must be the same in all "
                    f"trials. Set it with KEY=VALUE, or leave it out."
                )
        configs = [
            build_config(tree, flags={key: ("--search", value)}) for value in dimension.test_values
        ]
        is_parameter = key.count(".") > 1
        if dimension.choices and not is_parameter:
            choices = tuple(get_config_value(built, key) for built in configs)
            dimension = replace(dimension, choices=choices)
        validated.append(dimension)
    return validated


def _parse_dimension(key: str, text: str) -> SearchDimension:
    match = _RANGE_PATTERN.fullmatch(text)
    if match is not None:
        low, high = (_parse_number(match[group]) for group in (1, 2))
        return _build_range(key, low, high, is_log=match[3] == "log")
    parts = [part.strip() for part in text.split(",")]
    values = [parse_assignments([f"{key}={part}"])[key] for part in parts if part]
    return _build_choices(key, values)


def _parse_number(text: str) -> float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _read_entry(key: str, value: Any, source: str) -> SearchDimension:
    if isinstance(value, str):
        return _parse_dimension(key, value)
    if isinstance(value, list):
        return _build_choices(key, value)
    if isinstance(value, Mapping):
        unknown = set(value) - {"low", "high", "log"}
        numbers = [value.get(name) for name in ("low", "high")]
        is_log = value.get("log", False)
        if not unknown and isinstance(is_log, bool) and all(map(_is_number, numbers)):
            return _build_range(key, *numbers, is_log=is_log)  # type: ignore[arg-type]
        if not unknown & {"low", "high"} and not {"low", "high"} & set(value):
            raise ConfigError(
                f"{source}: '{key}' is a section. Write its keys with dots, for example "
                f"{key}.{next(iter(value), 'name')}: [...]."
            )
    raise ConfigError(
        f"{source}: {key}: expected a list of values, or low and high (and log: true), found "
        f"{value!r}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _build_range(key: str, low: float, high: float, *, is_log: bool) -> SearchDimension:
    if not low < high:
        raise ConfigError(
            f"--search {key}: {low:g}:{high:g} is no range; the first number must be the lower "
            f"one. For a single value, set {key}={low:g}."
        )
    if is_log and low <= 0:
        raise ConfigError(f"--search {key}: a logarithmic range must begin above 0, found {low:g}.")
    is_integer = isinstance(low, int) and isinstance(high, int) and not _accepts_float(key)
    if not is_integer:
        low, high = float(low), float(high)
    return SearchDimension(key, (), low, high, is_log, is_integer)


def _build_choices(key: str, values: Sequence[Any]) -> SearchDimension:
    labels = [_encode(value) for value in values]
    if len(labels) < 2 or len(set(map(repr, labels))) < len(labels):
        problem = "a value is given twice" if len(labels) > 1 else "there is one value"
        raise ConfigError(
            f"--search {key}: {problem}. Give several values, as in {key}=A,B,C, or a range, as in "
            f"{key}=0.1:1; set a single value with KEY=VALUE."
        )
    return SearchDimension(key, tuple(values))


def _encode(value: Any) -> Any:
    """Return a choice as Optuna stores it: text in place of lists and dicts."""
    if isinstance(value, NoneType | bool | int | float | str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _accepts_float(key: str) -> bool:
    """Return whether a config key takes numbers that are not whole."""
    annotation: Any = Config
    for name in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(name)
        if field is None:  # a parameter of a named component, or an unknown key
            return False
        annotation = field.annotation
    return float in _list_types(annotation)


def _list_types(annotation: Any) -> set[Any]:
    arguments = typing.get_args(annotation)
    return set().union(*map(_list_types, arguments)) if arguments else {annotation}

"""Search space of a study: ranges and choices of config keys, from options or a YAML file."""

import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from finetune.config.load import parse_assignments, read_config_file
from finetune.config.renamed_keys import rename_key
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.types import StrPath
from finetune.units import format_scientific, is_number

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DEFAULT_SPACE = "default"
"""Word of ``--search`` that adds the default search space to the given keys."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE_PATTERN = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(log|linear))?")

OPTION = "--search"
"""Option that names dimensions, and the source of those that no file names."""


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
        source: Option or file that names the key, for messages.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_integer: bool = False
    source: str = field(default=OPTION, compare=False)

    @property
    def label(self) -> str:
        """Source and key, the beginning of messages."""
        return describe_source(self.key, self.source)

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
        """Return the value of the key for a stored one, numbers in three digits.

        Raises:
            ValueError: The value is none of the space.
        """
        if self.choices:
            for choice in self.choices:
                if _encode(choice) == stored:
                    return choice
        elif isinstance(stored, float):
            return min(max(float(f"{stored:.3g}"), self.low), self.high)
        elif self.contains(stored):
            return stored
        raise ValueError(f"{self.key}={format_value(stored)} is not in the search space")

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


def describe_source(key: str, source: str) -> str:
    """Return a key after the option or the file that names it, the beginning of messages."""
    return f"{source} {key}" if source == OPTION else f"{source}: {key}"


def is_same_value(first: Any, second: Any) -> bool:
    """Return whether two values of a key are the same, also as a tuple and as a list of JSON."""
    return bool(_encode(first) == _encode(second))


def format_value(value: Any) -> str:
    """Return a config value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return format_scientific(value, digits=3)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
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
        dimensions[key] = _parse_dimension(key, text, OPTION)
    return list(dimensions.values()), extends_default


def read_space(search: Mapping[str, Any] | StrPath | None) -> tuple[SearchDimension, ...]:
    """Return the dimensions of a mapping, of a YAML file, or none; raises as these do."""
    if search is None:
        return ()
    if isinstance(search, Mapping):
        return tuple(parse_space(search, source="search"))
    return tuple(read_space_file(Path(search)))


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


def _parse_dimension(key: str, text: str, source: str) -> SearchDimension:
    match = _RANGE_PATTERN.fullmatch(text)
    if match is not None:
        low, high = (_parse_number(match[group]) for group in (1, 2))
        return _build_range(key, low, high, is_log=match[3] == "log", source=source)
    parts = _split_choices(text)
    values = [parse_assignments([f"{key}={part}"])[key] for part in parts if part]
    return _build_choices(key, values, source)


def _split_choices(text: str) -> list[str]:
    """Return the parts of a text between its commas, but for those within brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _parse_number(text: str) -> float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _read_entry(key: str, value: Any, source: str) -> SearchDimension:
    if isinstance(value, str):
        return _parse_dimension(key, value, source)
    if isinstance(value, list):
        return _build_choices(key, value, source)
    if isinstance(value, Mapping):
        unknown = set(value) - {"low", "high", "log"}
        numbers = [value.get(name) for name in ("low", "high")]
        is_log = value.get("log", False)
        if not unknown and isinstance(is_log, bool) and all(map(is_number, numbers)):
            low, high = numbers
            return _build_range(key, low, high, is_log=is_log, source=source)  # type: ignore[arg-type]
        if not unknown & {"low", "high"} and not {"low", "high"} & set(value):
            raise ConfigError(
                f"{source}: '{key}' is a section. Write its keys with dots, for example "
                f"{key}.{next(iter(value), 'name')}: [...]."
            )
    raise ConfigError(
        f"{source}: {key}: expected a list of values, or low and high (and log: true), found "
        f"{format_value(value)}."
    )


def _build_range(
    key: str, low: float, high: float, *, is_log: bool, source: str
) -> SearchDimension:
    label = describe_source(key, source)
    if not low < high:
        raise ConfigError(
            f"{label}: {low:g}:{high:g} is no range; the first number must be the lower one. For a "
            f"single value, set {key}={low:g}."
        )
    if is_log and low <= 0:
        raise ConfigError(f"{label}: a logarithmic range must begin above 0, found {low:g}.")
    is_integer = isinstance(low, int) and isinstance(high, int) and not _accepts_float(key)
    if not is_integer:
        low, high = float(low), float(high)
    return SearchDimension(key, (), low, high, is_log, is_integer, source)


def _build_choices(key: str, values: Sequence[Any], source: str) -> SearchDimension:
    labels = [_encode(value) for value in values]
    if len(labels) < 2 or len(set(map(repr, labels))) < len(labels):
        problem = "a value is given twice" if len(labels) > 1 else "there is one value"
        example = (
            f"{key}=A,B,C, or a range, as in {key}=0.1:1"
            if source == OPTION
            else f"{key}: [A, B, C], or a range, as in {key}: 0.1:1"
        )
        raise ConfigError(
            f"{describe_source(key, source)}: {problem}. Give several values, as in {example}; set "
            f"a single value with {key}=VALUE."
        )
    return SearchDimension(key, tuple(values), source=source)


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

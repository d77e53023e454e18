"""Base class and value types of the config sections."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from finetune.lookup import suggest_name
from finetune.units import format_count, format_yaml_value, is_number

Auto = Literal["auto"]

Monitor = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "loss",
    "mean_average_precision",
    "micro_average_precision",
    "micro_f1",
    "subset_accuracy",
]
"""Validation metrics that judge a run; those of multi-label images have no accuracy."""

_WORDS_OF_YAML = dict.fromkeys(("true", "yes", "on"), "on") | dict.fromkeys(
    ("false", "no", "off"), "off"
)
"""Value that each word for a boolean in YAML 1.1 stands for."""


@dataclass(frozen=True)
class YamlForm:
    """Mark of a key that is text, and may be written as a list or a mapping of YAML, too.

    Attributes:
        opening: Bracket that such a value begins with.
    """

    opening: Literal["[", "{"]


def build_name_validator(
    names: Sequence[str], *, allow_custom: bool = True
) -> Callable[[str], str]:
    """Return a validator of known names and, if allowed, of ``package.module:attribute``."""

    def check(value: str) -> str:
        if value in names or (allow_custom and ":" in value):
            return value
        raise ValueError(f"unknown name '{value}'.{suggest_name(value, names)}")

    return check


def coerce_on_off(value: Any) -> Any:
    """Return "on" or "off" for a boolean, as YAML 1.1 reads a bare ``on`` as true."""
    if isinstance(value, bool):
        return "on" if value else "off"
    # the same words in the same letter cases where text is taken as typed
    return _WORDS_OF_YAML.get(value.casefold(), value) if isinstance(value, str) else value


def parse_text(text: str, *, is_optional: bool) -> str | None:
    """Return the text of an assignment as it is typed, but without quotes around it.

    Args:
        text: Text after the equals sign.
        is_optional: Whether "" and "null" mean that there is no text; "~" is the home folder.
    """
    if is_optional and text.casefold() in ("", "null"):
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        with suppress(yaml.YAMLError):
            return str(yaml.safe_load(text))
    return text


_EXPECTED_BY_TYPE = {
    "model_type": "a section with keys of its own",
    "dict_type": "names and values, as {name: value}",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "invalid_key": "text as the name of a key",
}
"""What is expected, by pydantic's type of error, where its message speaks of Python."""


def begins_with_key(text: str, section: FieldInfo | None) -> bool:
    """Return whether a message begins with a key of a section, as those on two keys do.

    Args:
        text: Message.
        section: Field of the config; None and other fields have no keys.
    """
    keys = getattr(None if section is None else section.annotation, "model_fields", {})
    return re.split(r"[^a-z0-9_]", text, maxsplit=1)[0] in keys


def describe_invalid_value(errors: Sequence[ErrorDetails]) -> str:
    """Return what was found and what is expected, from the errors of all types of a union."""
    first = errors[0]
    if first["input"] is None and ":" in str(first["loc"][-1:]):
        # YAML reads {head:3} as a key without a value
        return "found no value. Write a blank after the colon, as in {name: value}"
    # those of all types, but of the first item of a list only
    same = [error for error in errors if error["input"] is first["input"]]
    expected = [_describe_expected(error) for error in same]
    if {error["type"] for error in errors} == {"value_error"}:
        return expected[0]
    return f"found {format_yaml_value(first['input'])}, expected {_join_expected(expected)}"


def _describe_expected(error: ErrorDetails) -> str:
    kind, value, limits = error["type"], error["input"], error.get("ctx", {})
    if kind == "string_type" and is_number(value):
        return f"text, as in '{value}'"
    if kind in _EXPECTED_BY_TYPE:
        return _EXPECTED_BY_TYPE[kind]
    if kind in ("list_type", "tuple_type"):
        is_item = isinstance(value, str | int | float) and not isinstance(value, bool)
        return f"a list, as [{value}]" if is_item else "a list"
    if kind == "too_short":
        return f"a list of at least {format_count(limits['min_length'], 'item')}"
    if kind == "too_long":
        return f"a list of at most {format_count(limits['max_length'], 'item')}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return message.removeprefix("String should have ").removeprefix("a valid ")


def _join_expected(expected: Sequence[str]) -> str:
    """Return what the types of a union expect, the names of several in one list."""
    lists = [text for text in expected if text.startswith("'")]
    names = [name for text in lists for name in text.replace(" or ", ", ").split(", ")]
    *others, last = dict.fromkeys(names) or [""]
    choices = f"{', '.join(others)} or {last}" if others else last
    kinds = [text for text in expected if text not in lists]
    return " or ".join(dict.fromkeys([*kinds, choices] if choices else kinds))


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(coerce_on_off)]


class Section(BaseModel):
    """Section of the config; unknown keys are errors, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

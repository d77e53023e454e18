"""Base class and value types of the config sections."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import ErrorDetails

from finetune.lookup import suggest_name

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


def describe_invalid_value(errors: Sequence[ErrorDetails]) -> str:
    """Return what was found and what is expected, from the errors of all types of a union."""
    expected = []
    for error in errors:
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        expected.append(message.removeprefix("a valid "))
    if {error["type"] for error in errors} == {"value_error"}:
        return expected[0]
    return f"found {errors[0]['input']!r}, expected {' or '.join(dict.fromkeys(expected))}"


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(coerce_on_off)]


class Section(BaseModel):
    """Section of the config; unknown keys are errors, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

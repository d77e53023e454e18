"""Checks of the parameters of named components beyond their names."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune.errors import ConfigError


def names_parameter(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name, other than any keyword."""
    return callable(function) and name in inspect.signature(function).parameters


def check_reserved(params: Mapping[str, Any], sources: Mapping[str, str], *, setting: str) -> None:
    """Check that parameters do not set what the run sets itself.

    Raises:
        ConfigError: One does; the message names its source.
    """
    for key in params:
        if key in sources:
            raise ConfigError(f"{setting}: '{key}' comes from {sources[key]}. Leave it out.")


@contextmanager
def explain_invalid(section: str, name: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Raise ``ConfigError`` for an error of a component within the block that means its values."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{section}.name={name} with {section}.params={dict(params)} fails: {error}."
        ) from error

"""Checks of the parameters of named components beyond their names."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune.errors import ConfigError
from finetune.lookup import suggest_name


def names_parameter(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of this name, other than any keyword."""
    return callable(function) and name in inspect.signature(function).parameters


def check_settable(
    function: Callable[..., Any],
    params: Mapping[str, Any],
    *,
    sources: Mapping[str, str],
    num_positional: int,
    setting: str,
) -> None:
    """Check that a function takes each parameter, and that the run does not set it itself.

    Args:
        function: Function that receives the parameters.
        params: Parameters from the config.
        sources: Parameters that the config cannot set, and where they come from.
        num_positional: Number of leading arguments that the caller supplies.
        setting: Config key that holds ``params``, for error messages.

    Raises:
        ConfigError: A parameter is unknown, or comes from elsewhere.
    """
    if not callable(function):
        return
    names = list(inspect.signature(function).parameters.items())[num_positional:]
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for _, parameter in names)
    settable = {
        name
        for name, parameter in names
        if parameter.kind is not parameter.VAR_KEYWORD and name not in sources
    }
    for key in params:
        if key in sources:
            raise ConfigError(f"{setting}: '{key}' comes from {sources[key]}. Leave it out.")
        if key in settable or accepts_any:
            continue
        hint = suggest_name(key, settable) if settable else " It takes no parameters."
        if ":" in key:  # YAML reads {rho:0.9} as a key without a value
            hint = " Write a blank after the colon, as in {key: value}."
        raise ConfigError(f"{setting}: unknown parameter '{key}'.{hint}")


@contextmanager
def explain_invalid(section: str, name: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Raise ``ConfigError`` for an error of a component within the block that means its values."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        # errors of wrong types speak of operators of Python
        wrong = [key for key, value in params.items() if not isinstance(value, int | float)]
        reason = str(error)
        if isinstance(error, TypeError) and wrong:
            values = ", ".join(f"{key}={params[key]}" for key in wrong)
            reason = f"{values} {'is' if len(wrong) == 1 else 'are'} of a wrong type"
        elif isinstance(error, TypeError):
            reason = "a value is of a wrong type"
        raise ConfigError(
            f"{section}.name={name} with {section}.params={dict(params)} fails: {reason}."
        ) from error

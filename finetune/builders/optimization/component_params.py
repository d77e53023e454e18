"""Checks of the parameters of named components beyond their names."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune.errors import ConfigError
from finetune.lookup import suggest_name
from finetune.units import format_count, format_value


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


def check_types(function: Callable[..., Any], params: Mapping[str, Any], *, setting: str) -> None:
    """Check that each value has the type of the parameter's default.

    Text in place of true or false would count as true, and be no error anywhere.

    Args:
        function: Function of this package or of torch, whose defaults show its types.
        params: Parameters from the config, known to exist.
        setting: Config key that holds ``params``, for error messages.

    Raises:
        ConfigError: A value is of another type.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        expected = _describe_type(parameter.default)
        if name in params and expected is not None and _describe_type(params[name]) != expected:
            raise ConfigError(
                f"{setting}: found {name}={format_value(params[name])}, expected {expected}."
            )


def _describe_type(value: Any) -> str | None:
    """Return the type of a value as a message names it; None if it is no simple one."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple) and all(_describe_type(v) == "a number" for v in value):
        return f"a list of {format_count(len(value), 'number')}"
    return None


@contextmanager
def explain_invalid(section: str, name: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Raise ``ConfigError`` for an error of a component within the block that means its values."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ConfigError(
            f"{section}.name={name} with {section}.params={format_value(params)} fails: "
            f"{describe_failure(error, params)}."
        ) from error


def describe_failure(
    error: Exception, params: Mapping[str, Any], *, is_custom: bool = False
) -> str:
    """Return why a component fails with its parameters, without a full stop.

    Args:
        error: Error of the component.
        params: Parameters from the config.
        is_custom: Whether the component is code of the user, who knows the types of its errors.
    """
    if is_custom:
        return f"{type(error).__name__}: {error}"
    if not isinstance(error, TypeError | LookupError):
        return str(error).removesuffix(".")
    # these errors speak of operators of Python
    wrong = [key for key, value in params.items() if not isinstance(value, int | float)]
    named = wrong or list(params)
    values = ", ".join(f"{key}={format_value(params[key])}" for key in named)
    return f"{values} {'is' if len(named) == 1 else 'are'} of a wrong type"

"""A name in a table, or ``package.module:attribute`` of the user's own, checked before any work."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finetune.errors import ConfigError


def suggest_name(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or the short list of all names."""
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if len(names) <= 12 else ""


def look_up(table: Mapping[str, Any], name: str, *, setting: str) -> Any:
    """Return the table's entry, or the object behind ``package.module:attribute``.

    Args:
        table: Name to entry.
        name: A key of ``table``, or an importable ``package.module:attribute``.
        setting: The config key that named it, for the message.

    Raises:
        ConfigError: No such entry, module or attribute.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise ConfigError(
            f"{setting}: unknown name '{name}'.{suggest_name(name, table)} "
            f"Your own code is named as 'my_package.module:function'."
        )
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the latter: no name, a relative one
        raise ConfigError(
            f"{setting}: cannot import '{module_name}' of '{name}': {error}. "
            f"Install the package, or run from the folder that holds it."
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"{setting}: module '{module_name}' has no '{attribute}'."
            f"{suggest_name(attribute, [n for n in vars(module) if not n.startswith('_')])}"
        ) from None


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Tell whether a function has a parameter of this name, or takes any."""
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_params(
    function: Callable[..., Any], params: Mapping[str, Any], *, num_positional: int, setting: str
) -> None:
    """Raise unless ``function`` takes every key of ``params`` and needs no other.

    Args:
        function: What will be called.
        params: Keyword arguments that the user gave.
        num_positional: How many leading arguments the caller supplies itself.
        setting: The config key that holds ``params``, for the message.

    Raises:
        ConfigError: An unknown parameter, or a required one that is missing.
    """
    if not callable(function):
        raise ConfigError(f"{setting}: {function!r} is no function.")
    parameters = list(inspect.signature(function).parameters.items())[num_positional:]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for _, parameter in parameters)
    accepted = {
        name: parameter
        for name, parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    unknown = [name for name in params if name not in accepted and not takes_all]
    if unknown:
        hint = suggest_name(unknown[0], accepted) if accepted else " It takes none."
        raise ConfigError(f"{setting}: unknown parameter '{unknown[0]}'.{hint}")
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in params]
    if missing:
        raise ConfigError(f"{setting}: parameter '{missing[0]}' is required.")

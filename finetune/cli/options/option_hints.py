"""Hints for an option that a command does not have: a config key, or another command."""

from collections.abc import Mapping, Sequence, Set

_MAX_KEYS = 3
"""Config keys that may be meant, at most, for a hint."""

_KEY_COMMANDS = ("fit", "inspect", "compare", "tune", "submit")
"""Commands that take KEY=VALUE arguments."""


def suggest_for_option(
    option: str, command: str, options_by_command: Mapping[str, Set[str]]
) -> str:
    """Return a sentence, after a blank, on what is meant by an unknown option; "" for no idea.

    ``--x-y`` may mean a config key that ends in ``x_y``, whose value the command takes as
    KEY=VALUE, or an option of another command.

    Args:
        option: Option as it was typed, without a value.
        command: Name of the command.
        options_by_command: Options of each command.
    """
    keys = find_keys(option) if command in _KEY_COMMANDS else []
    if keys and len(keys) <= _MAX_KEYS:
        return f" To set {' or '.join(keys)}, write {' or '.join(f'{key}=VALUE' for key in keys)}."
    others = sorted(name for name, options in options_by_command.items() if option in options)
    if others:
        return f" It is an option of {_join([f'finetune {name}' for name in others])}."
    return ""


def _join(names: Sequence[str]) -> str:
    """Return names with commas and a final "and"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def find_keys(option: str) -> list[str]:
    """Return the config keys that an option names, with or without their section."""
    from finetune.config.schema import Config

    name = option.lstrip("-").replace("-", "_").lower()
    sections = Config().model_dump()
    keys = [
        f"{section}.{key}"
        for section, values in sections.items()
        if isinstance(values, dict)
        for key in values
    ] + [key for key, value in sections.items() if not isinstance(value, dict)]
    whole = [key for key in keys if key.replace(".", "_") == name]
    return whole or [key for key in keys if key.rpartition(".")[2] == name]

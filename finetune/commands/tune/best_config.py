"""Config of the best trial as a YAML file for ``fit --config``, with the reason of each value."""

from collections.abc import Mapping
from typing import Any

import yaml

from finetune.commands.tune.space.search_space import format_value, is_same_value
from finetune.config.load import build_config, diff_from_defaults
from finetune.config.schema import Config

_OWN_KEYS = ("output", "resume", "report.", "tracking.")
"""Keys, and sections ending in a dot, that belong to the study and not to what it found."""


def format_best_config(
    values: Mapping[str, Any],
    *,
    number: int,
    overrides: Mapping[str, Any],
    defaults: Mapping[str, Any],
    heading: list[str],
) -> str:
    """Return the config as YAML: the settings of the study, and the values that the trial found.

    Args:
        values: Values of the trial by dotted key; empty for the default settings.
        number: Number of the trial.
        overrides: Settings that the user gave to the study, by dotted key.
        defaults: Value of each searched key with the default settings; None if it is measured.
        heading: Lines of the comment at the top.
    """
    given = {key: value for key, value in overrides.items() if not f"{key}.".startswith(_OWN_KEYS)}
    # as fit would read them, so that a value equal to the default of its key is left out
    kept = {**given, **_drop_defaults(values, given)}
    lines = [f"# {line}" if line else "#" for line in heading]
    for section, fields in _nest(kept).items():
        if not isinstance(fields, dict):
            lines += ["", f"{section}: {_format_scalar(fields)}"]
            continue
        lines += ["", f"{section}:"]
        for name, value in fields.items():
            comment = _describe_origin(f"{section}.{name}", values, number, defaults)
            lines.append(f"  {name}: {_format_scalar(value)}{comment}")
    return "\n".join(lines) + "\n"


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as nested dicts, in the order of the config's sections."""
    order = list(Config.model_fields)
    tree: dict[str, Any] = {}
    for key in sorted(values, key=lambda key: order.index(key.partition(".")[0])):
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        value = values[key]
        branch[last] = dict(value) if isinstance(value, Mapping) else value
    return tree


def _describe_origin(
    key: str, values: Mapping[str, Any], number: int, defaults: Mapping[str, Any]
) -> str:
    """Return a comment on a value that the search has found; empty for the user's own."""
    found = [name for name in values if f"{name}.".startswith(f"{key}.")]
    if not found:
        return ""
    if all(is_same_value(values[name], defaults.get(name)) for name in found):
        return f"  # trial {number}, as by default"
    before = ", ".join(
        format_value(defaults[name]) for name in found if defaults.get(name) is not None
    )
    return f"  # trial {number}{f'; default {before}' if before else ''}"


def _drop_defaults(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the config without them, as they were found."""
    before = diff_from_defaults(build_config({}, assignments=given))
    after = diff_from_defaults(build_config({}, assignments={**given, **values}))
    return {
        key: value
        for key, value in values.items()
        if any(
            f"{changed}.".startswith(f"{key}.") or f"{key}.".startswith(f"{changed}.")
            for changed in after
            if before.get(changed) != after[changed]
        )
    }


def _format_scalar(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()

"""Errors in a config as lines: the key, the value, what is expected, and where it was set."""

from collections.abc import Iterable, Mapping
from typing import Any, get_origin

from pydantic_core import ErrorDetails

from finetune.config.schema import Config
from finetune.config.section import begins_with_key, describe_invalid_value
from finetune.config.text.flat_keys import flatten_keys
from finetune.lookup import suggest_name


def format_errors(
    errors: Iterable[ErrorDetails], sources: Mapping[str, str], source_name: str
) -> list[str]:
    """Return one line per invalid key, however many union members rejected its value.

    Args:
        errors: Errors of pydantic.
        sources: Name of what has set a value, by dotted key: an option, or the command line.
        source_name: Name of what has set the others.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_get_error_key(error), []).append(error)
    lines = []
    for key, key_errors in by_key.items():
        prefix = f"{key}."
        related = (k for k in sources if prefix.startswith(f"{k}.") or k.startswith(prefix))
        source = sources.get(next(related, ""), source_name)
        text = _describe_error(key, key_errors)
        separator = "." if begins_with_key(text, Config.model_fields.get(key)) else ": "
        lines.append(f"{key}{separator}{text} ({source})")
    return lines


def _get_error_key(error: ErrorDetails) -> str:
    """Return the dotted key of an error, without pydantic's names of union members."""
    parts: list[str] = []
    model: Any = Config
    for part in error["loc"]:
        fields = getattr(model, "model_fields", None)
        if fields is None and get_origin(model) is not dict:
            break
        parts.append(str(part))
        model = fields[part].annotation if fields and part in fields else None
    return ".".join(parts) or "config"


def _describe_error(key: str, errors: list[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if "extra_forbidden" in kinds:
        return f"unknown key.{_suggest_key(key)}"
    return describe_invalid_value(errors)


def _suggest_key(key: str) -> str:
    """Return a hint with the most similar key, else with the same key of another section."""
    known = list(flatten_keys(Config().model_dump())) + list(Config.model_fields)
    hint = suggest_name(key, known)
    if hint:
        return hint
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    return f" Did you mean '{same[0]}'?" if same else ""

"""Class prior read from a JSON or CSV file of the user, for ``--prior FILE``."""

import csv
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, StorageError
from finetune.evaluation.priors import ClassPrior, normalize_prior
from finetune.lookup import suggest_name, suggest_path
from finetune.system.given_paths import is_file

PRIOR_NAMES = ("uniform", "train", "model")
"""Values of ``--prior`` besides files."""

_CSV_HEADERS = (["class", "prior"], ["class", "share"])
"""Accepted headers; the second one is that of version 0.1."""

_MAX_VALUE_CHARS = 40
"""Number of characters of an invalid value shown in a message."""

_SUFFIXES = (".json", ".csv")


def check_prior(prior: str, classes: Sequence[str] | None) -> None:
    """Check that ``--prior`` is a known name or a valid file.

    Args:
        prior: Value of the option.
        classes: Class names that a file must contain; None skips this check.

    Raises:
        ConfigError: The name is unknown, or the file is missing or invalid.
        StorageError: The file cannot be read.
    """
    if prior in PRIOR_NAMES:
        return
    if Path(prior).suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"--prior {prior}: must be one of {', '.join(PRIOR_NAMES)}, or a .json or .csv file "
            f"with the prior of each class."
        )
    if not is_file(Path(prior)):
        raise ConfigError(f"--prior {prior}: the file does not exist.{suggest_path(Path(prior))}")
    if classes is None:
        _read_class_weights(Path(prior))
    else:
        read_prior(Path(prior), classes)


def read_prior(file: Path, classes: Sequence[str]) -> ClassPrior:
    """Return the class prior of a file in class order, normalised to a sum of 1.

    Args:
        file: JSON object ``{"class": prior}``, or CSV with the columns ``class,prior``; the values
            may have any positive sum.
        classes: Class names in index order.

    Raises:
        ConfigError: The file is invalid or does not match the classes.
        StorageError: The file cannot be read.
    """
    weights = _read_class_weights(file)
    for name in weights:
        if name not in classes:
            raise ConfigError(
                f"--prior {file}: the model has no class '{name}'.{suggest_name(name, classes)}"
            )
    missing = [name for name in classes if name not in weights]
    if missing:
        examples = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConfigError(
            f"--prior {file}: {len(missing)} of {len(classes)} classes "
            f"{'is' if len(missing) == 1 else 'are'} missing: {examples}. "
            f"Add a value for each; use 0 for a class that never occurs."
        )
    return normalize_prior([weights[name] for name in classes])


def _read_class_weights(file: Path) -> dict[str, float]:
    """Return the unnormalised prior of each class in a file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prior {file}: not UTF-8 text. Save the file as UTF-8.") from error
    except OSError as error:
        raise StorageError(f"Cannot read {file}: {error.strerror or error}.") from error
    pairs = _parse_json(file, text) if file.suffix.lower() == ".json" else _parse_csv(file, text)
    weights: dict[str, float] = {}
    for label, value in pairs:
        name = unicodedata.normalize("NFC", label)
        if name in weights:
            raise ConfigError(f"--prior {file}: class '{name}' occurs twice. Remove one entry.")
        weights[name] = _parse_weight(file, name, value)
    if weights and not any(weights.values()):
        raise ConfigError(f"--prior {file}: all values are 0. Set at least one class above 0.")
    return weights


def _parse_json(file: Path, text: str) -> list[tuple[str, Any]]:
    expected = f'--prior {file}: must contain one JSON object {{"class": prior}}'
    try:
        # as pairs: a dict would silently drop the first of two equal keys
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise ConfigError(f"{expected}; invalid JSON: {error}.") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ConfigError(f"{expected}.")
    return pairs


def _parse_csv(file: Path, text: str) -> list[tuple[str, Any]]:
    header, *rows = list(csv.reader(text.splitlines())) or [[]]
    if [name.strip().lower() for name in header] not in _CSV_HEADERS:
        raise ConfigError(f"--prior {file}: the first line must be class,prior.")
    for number, row in enumerate(rows, start=2):
        if row and len(row) != 2:
            raise ConfigError(f"--prior {file}: line {number} has {len(row)} cells instead of 2.")
    return [(row[0], row[1]) for row in rows if row]


def _parse_weight(file: Path, name: str, value: Any) -> float:
    try:
        weight = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        weight = float("nan")
    if not 0 <= weight < float("inf"):
        shown = str(value)
        shown = shown if len(shown) <= _MAX_VALUE_CHARS else f"{shown[:_MAX_VALUE_CHARS]}…"
        raise ConfigError(
            f"--prior {file}: the value of class '{name}' is {shown}; it must be a finite number "
            f"of 0 or more."
        )
    return weight

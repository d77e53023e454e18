"""Shares of classes from a file of the user's: what the classes are like where a model serves."""

import csv
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, StorageError
from finetune.evaluation.priors import ClassPrior, normalize_prior
from finetune.lookup import suggest_name

PRIOR_NAMES = ("uniform", "train", "model")
"""What ``--prior`` knows besides files."""

_MAX_SHOWN_CHARS = 40
"""Characters of a wrong value that are shown."""

_SUFFIXES = (".json", ".csv")


def check_prior(prior: str, classes: Sequence[str] | None) -> None:
    """Raise where ``--prior`` is neither a name nor a file of shares.

    Args:
        prior: What was said.
        classes: Names that a file must give shares; None where they are not known yet.

    Raises:
        ConfigError: It says which there are, or what is wrong with the file.
        StorageError: The disk does not give it.
    """
    if prior in PRIOR_NAMES:
        return
    if Path(prior).suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"--prior {prior}: there are {', '.join(PRIOR_NAMES)}, or a .json or .csv file with a share "
            f"for each class."
        )
    if not Path(prior).is_file():
        raise ConfigError(f"--prior {prior}: there is no such file.")
    if classes is None:
        _read_class_fractions(Path(prior))
    else:
        read_prior(Path(prior), classes)


def read_prior(file: Path, classes: Sequence[str]) -> ClassPrior:
    """Return the shares that a file gives the classes, in class order; they may add up to anything.

    Args:
        file: JSON, ``{"class": share}``, or a CSV with the columns ``class,share``.
        classes: Names in index order.

    Raises:
        ConfigError: It cannot be understood, or does not fit the classes.
        StorageError: The disk does not give it.
    """
    shares = _read_class_fractions(file)
    for name in shares:
        if name not in classes:
            raise ConfigError(
                f"--prior {file}: the model knows no class '{name}'.{suggest_name(name, classes)}"
            )
    missing = [name for name in classes if name not in shares]
    if missing:
        few = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise ConfigError(
            f"--prior {file}: {len(missing)} of {len(classes)} classes have no share: {few}. Give "
            f"each one; 0 for one that never occurs."
        )
    return normalize_prior([shares[name] for name in classes])


def _read_class_fractions(file: Path) -> dict[str, float]:
    """Return class to share, as the file has them."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prior {file}: it is no UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise StorageError(f"Cannot read {file}: {error.strerror or error}.") from error
    pairs = _parse_json(file, text) if file.suffix.lower() == ".json" else _parse_csv(file, text)
    shares: dict[str, float] = {}
    for label, value in pairs:
        name = unicodedata.normalize("NFC", label)
        if name in shares:
            raise ConfigError(f"--prior {file}: class '{name}' is there twice. Keep one.")
        shares[name] = _parse_fraction(file, name, value)
    if shares and not any(shares.values()):
        raise ConfigError(f"--prior {file}: all shares are 0. Give one class more.")
    return shares


def _parse_json(file: Path, text: str) -> list[tuple[str, Any]]:
    wanted = f'--prior {file}: it must be one JSON object of {{"class": share}}'
    try:
        # as pairs, where a dict would drop the first of two alike
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise ConfigError(f"{wanted}, and is no JSON: {error}.") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ConfigError(f"{wanted}.")
    return pairs


def _parse_csv(file: Path, text: str) -> list[tuple[str, Any]]:
    head, *rows = list(csv.reader(text.splitlines())) or [[]]
    if [name.strip().lower() for name in head] != ["class", "share"]:
        raise ConfigError(f"--prior {file}: its first line must be class,share.")
    for number, row in enumerate(rows, start=2):
        if row and len(row) != 2:
            raise ConfigError(f"--prior {file}: line {number} has {len(row)} cells, not 2.")
    return [(row[0], row[1]) for row in rows if row]


def _parse_fraction(file: Path, name: str, value: Any) -> float:
    try:
        share = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        share = float("nan")
    if not 0 <= share < float("inf"):
        said = str(value)
        said = said if len(said) <= _MAX_SHOWN_CHARS else f"{said[:_MAX_SHOWN_CHARS]}…"
        raise ConfigError(
            f"--prior {file}: the share of class '{name}' is {said}; it must be a number, 0 or "
            f"more."
        )
    return share

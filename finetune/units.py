"""Readable forms of durations, fractions, sizes, counts and values, used in every message."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SECONDS_OF = {"d": 86_400, "h": 3_600, "min": 60, "m": 60, "s": 1}
UNDEFINED = "undefined"
"""Text of a metric that images do not define."""

_BYTE_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, as in ``45 s``, ``12 min`` and ``2.5 h``."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_duration(text: str) -> float | None:
    """Return the seconds of a duration such as ``45s``, ``90min``, ``2h`` or ``1h30m``; else None.

    A number without a unit is none: it might be seconds, minutes or hours.
    """
    parts = re.findall(r"(\d+\.?\d*|\.\d+) ?(d|h|min|m|s)(?:\s*)", text)
    if not parts or "".join(f"{n}{u}" for n, u in parts) != re.sub(r"\s", "", text):
        return None
    return sum(float(number) * _SECONDS_OF[unit] for number, unit in parts)


def is_number(value: Any) -> bool:
    """Return whether a value is an integer or a float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_percent(fraction: float, *, decimals: int = 1) -> str:
    """Return a fraction in [0, 1] as a percentage, as in ``87.4%``."""
    return f"{fraction:.{decimals}%}"


def format_defined_percent(fraction: float | None) -> str:
    """Return a fraction in percent, or "undefined" for None."""
    return UNDEFINED if fraction is None else format_percent(fraction)


def format_bytes(num_bytes: float) -> str:
    """Return a size in the largest decimal unit that it fills, as in ``360 kB`` and ``1.2 GB``."""
    value, unit = float(num_bytes), _BYTE_UNITS[0]
    for unit in _BYTE_UNITS:
        # 999.5 and more would be rounded to 1000
        if value < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        value /= 1000
    is_whole = value >= 9.95 or unit == "bytes"
    return f"{value:.0f} {unit}" if is_whole else f"{value:.1f} {unit}"


def format_count(count: int, noun: str = "") -> str:
    """Return a number with its noun in the plural where it is not 1, as in ``1,200 images``."""
    if not noun:
        return f"{count:,}"
    plural = f"{noun}es" if noun.endswith(("s", "x", "sh")) else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def shorten_text(text: str, max_length: int = 80) -> str:
    """Return a text for a message: its start and an ellipsis if it is longer than a length."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def format_value(value: Any) -> str:
    """Return a value of a config as it is written on the command line, after ``key=``."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_yaml_value(value: Any) -> str:
    """Return a value of a config as YAML has it, text in quotes, shortened if it is long."""
    return shorten_text(_format_part(value))


def _format_part(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_format_part(part)}' for key, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format_part, value))}]"
    return repr(value)


def format_millions(count: int) -> str:
    """Return a number in full below a million, else in millions, as in ``11.2 M``."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def format_scientific(value: float, *, digits: int = 2) -> str:
    """Return a number in a few significant digits without padded exponents, as in ``1e-6``."""
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e+")


def format_folds(num_folds: int, *, num_held_out: int, num_groups: int) -> str:
    """Return the folds of a cross-validation, as in ``5 folds, 312 groups kept together``.

    Args:
        num_folds: Number of folds.
        num_held_out: Number of folds that are held out in turn.
        num_groups: Number of groups of images of which each is in one fold.
    """
    of_all = f"{num_held_out} of " if num_held_out < num_folds else ""
    folds = f"{of_all}{num_folds} folds"
    return f"{folds}, {format_count(num_groups, 'group')} kept together" if num_groups else folds


def format_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV, with a line feed at the end of each line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()

"""Source and target classes of a transfer experiment, as written on the command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.errors import ConfigError
from finetune.lookup import suggest_name

_EXAMPLE = "Write SOURCE:TARGET, for example 0-4:5-9 or 'cats,dogs:birds,fish'."


@dataclass(frozen=True, slots=True)
class TransferClasses:
    """Classes of the two tasks of a transfer experiment.

    Attributes:
        source: Classes that the backbone is trained on first.
        target: Classes that it is transferred to; none of ``source``.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]


def parse_transfer(text: str, classes: Sequence[str]) -> TransferClasses:
    """Return the classes of ``SOURCE:TARGET``.

    Each side lists class names, separated by commas; ``A-B`` stands for the classes from A to B in
    their order, by number where names end in numbers.

    Args:
        text: Value of ``--transfer``.
        classes: Class names of the images.

    Raises:
        ConfigError: A class is unknown or stands on both sides, or a side has fewer than two.
    """
    source_text, target_text = split_transfer(text)
    ordered = sorted(classes, key=_natural_key)
    source, target = _parse_side(source_text, ordered), _parse_side(target_text, ordered)
    for side in (source, target):
        if len(side) < 2:
            raise ConfigError(
                f"--transfer {text}: '{side[0]}' is a single class, and each side needs two or "
                f"more. {_EXAMPLE}"
            )
    if shared := [name for name in target if name in source]:
        raise ConfigError(
            f"--transfer {text}: '{shared[0]}' is in both lists. Name each class once."
        )
    return TransferClasses(tuple(source), tuple(target))


def split_transfer(text: str) -> tuple[str, str]:
    """Return the two sides of ``SOURCE:TARGET``, before the classes are known.

    Raises:
        ConfigError: There are not two sides.
    """
    source_text, colon, target_text = text.partition(":")
    if not colon or not source_text.strip() or not target_text.strip():
        raise ConfigError(f"--transfer {text}: two lists of classes are expected. {_EXAMPLE}")
    return source_text, target_text


def _parse_side(text: str, ordered: Sequence[str]) -> list[str]:
    names: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        names += [name for name in _parse_item(item, ordered) if name not in names]
    return names


def _parse_item(item: str, ordered: Sequence[str]) -> Sequence[str]:
    """Return the classes of a name or a range; a class whose name has a hyphen is itself."""
    if item in ordered:
        return [item]
    for hyphen in (match.start() for match in re.finditer("-", item)):
        first, last = item[:hyphen].strip(), item[hyphen + 1 :].strip()
        if first in ordered and last in ordered:
            start, end = ordered.index(first), ordered.index(last)
            if start > end:
                raise ConfigError(f"--transfer: the range {item} is empty. Write {last}-{first}.")
            return ordered[start : end + 1]
    raise ConfigError(
        f"--transfer: there is no class '{item}'.{suggest_name(item, ordered)} {_EXAMPLE}"
    )


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key that puts 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]

"""Names of classes: cleaned of invisible characters, and compared by what they look like."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.types import Sample
from finetune.units import format_count

_JOINERS = "\u200c\u200d"
"""Zero-width characters that scripts such as Persian and Hindi, and emoji, need between letters."""
_BLANK_PATTERNS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that show nothing although Unicode counts them as letters, marks or symbols."""
_BRAILLE_BLANK = "\u2800"
_VARIATION_SELECTOR = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Characters that choose a form of the one before, as of emoji and of Chinese characters."""
_FLAG_TAG = re.compile("[\U000e0020-\U000e007f]")
_FLAG = re.compile(f"\U0001f3f4{_FLAG_TAG.pattern}*\\Z")
"""A black flag, which tags turn into that of a region, at the end of a text."""
_ENCLOSING_KEYCAP = "\u20e3"
_FIRST_LETTER_TO_JOIN = "\u0370"
"""Letters before this one, the Latin ones, are never joined."""

_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_LATIN_LOOKALIKES = str.maketrans(
    "аеорсухѕіјһԁԛԝкмтвнαονρυτικχ",
    "aeopcyxsijhdqwkmtbhaovputikx",
)
"""Small Cyrillic and Greek letters to the Latin ones that they look like."""
_TYPOGRAPHIC_MARKS = str.maketrans(
    "\u2018\u2019\u201b\u2032\u02b9\u02bb\u02bc`\u00b4\u201c\u201d\u201f\u2033",
    "'''''''''\"\"\"\"",
)
"""Apostrophes and quotation marks to those of a keyboard."""


@dataclass(frozen=True, slots=True)
class SimilarClasses:
    """Classes whose names look alike.

    Attributes:
        names: Names, two or more.
        num_images: Number of images of each.
    """

    names: tuple[str, ...]
    num_images: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the classes as values of JSON."""
        return {"names": list(self.names), "num_images": list(self.num_images)}


def normalize_class_name(name: str) -> str:
    """Return a class name in Unicode NFC, without invisible characters and blanks at the ends.

    Composed characters make macOS and Linux agree on it. Joiners and variation selectors stay
    where they change how letters or emoji are written.
    """
    text = unicodedata.normalize("NFC", name)
    if text.isascii() and text.isprintable():
        return text.strip()
    visible = ""
    for position, character in enumerate(text):
        if not _is_invisible(character) or _is_shaping(character, visible, text[position + 1 :]):
            visible += character
    return visible.strip()


def find_similar_classes(samples: Iterable[Sample]) -> list[SimilarClasses]:
    """Return the classes whose names look alike, with their numbers of images.

    Names look alike that differ only in case, in blanks, underscores and hyphens, in the form of
    apostrophes, in how a number is written (1, 01 and 1.0), or in letters of other scripts with
    the same form.
    """
    counts: dict[str, int] = {}
    for sample in samples:
        for name in sample.class_names:
            counts[name] = counts.get(name, 0) + 1
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault(_describe_appearance(name), []).append(name)
    return [
        SimilarClasses(tuple(names), tuple(counts[name] for name in names))
        for names in groups.values()
        if len(names) > 1
    ]


def describe_similar_classes(names: Sequence[str], num_images: Sequence[int]) -> str:
    """Return the names with their numbers of images, as in ``'Ants' (12 images) and 'ants' (3 …``.

    Args:
        names: Names that look alike.
        num_images: Number of images of each.
    """
    scripts = [_describe_other_script(name) for name in names]
    if all(scripts):  # all are written in that script
        scripts = [""] * len(names)
    shown = [
        f"{quote_name(name)}{script} ({format_count(count, 'image')})"
        for name, script, count in zip(names, scripts, num_images, strict=True)
    ]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def describe_changed_names(names_of: Mapping[str, Iterable[str]], *, noun: str) -> list[str]:
    """Return a line for each class of which a name was cleaned, or several became one.

    Args:
        names_of: Class name to the names that were read as it.
        noun: Noun for such a name, "class folder" or "label".
    """
    lines = []
    for name, found in sorted(names_of.items()):
        raw = sorted(set(found))
        if len(raw) > 1:
            shown = f"{', '.join(map(quote_name, raw[:-1]))} and {quote_name(raw[-1])}"
            lines.append(f"{noun.capitalize()}s {shown} are read as one class, '{name}'.")
        elif unicodedata.normalize("NFC", raw[0]) != name:
            lines.append(f"{noun.capitalize()} {quote_name(raw[0])} is read as '{name}'.")
    return lines


def quote_name(name: str) -> str:
    """Return a name in quotes; characters that do not show are written by their numbers."""
    shown = (
        f"\\u{ord(character):04x}"
        if _is_invisible(character) or (character.isspace() and character != " ")
        else character
        for character in name
    )
    return f"'{''.join(shown)}'"


def _is_invisible(character: str) -> bool:
    """Return whether a character shows nothing by itself, such as a zero-width space."""
    if character in _BLANK_PATTERNS or _VARIATION_SELECTOR.match(character):
        return True
    return unicodedata.category(character) in ("Cc", "Cf") and not character.isspace()


def _is_shaping(character: str, before: str, after: str) -> bool:
    """Return whether an invisible character changes how the text around it is written.

    Args:
        character: Joiner, variation selector or another invisible character.
        before: What is kept of the text before it.
        after: Text after it.
    """
    if not before:
        return False
    if _FLAG_TAG.match(character):
        return _FLAG.search(before) is not None
    if _VARIATION_SELECTOR.match(character):
        is_symbol = unicodedata.category(before[-1]) in ("So", "Sm", "Sk", "Lo", "Po", "Pd")
        return after.startswith(_ENCLOSING_KEYCAP) or (
            is_symbol and before[-1] > "\u00a8" and not _is_invisible(before[-1])
        )
    if character not in (*_JOINERS, _BRAILLE_BLANK) or not after or _is_invisible(after[0]):
        return False
    return min(before[-1], after[0]) >= _FIRST_LETTER_TO_JOIN


def _describe_appearance(name: str) -> str:
    """Return a text that names share which look alike."""
    text = "".join(c for c in name.translate(_TYPOGRAPHIC_MARKS) if not _is_invisible(c))
    text = unicodedata.normalize("NFKC", text).casefold().translate(_LATIN_LOOKALIKES)
    if _NUMBER.fullmatch(text):
        return f"{float(text.replace(',', '.')):g}" if len(text) < 7 else text.lstrip("0")
    return re.sub(r"[\s_\-\u2010-\u2015]+", " ", text).strip()


def _describe_other_script(name: str) -> str:
    """Return which letter of a name only looks like a Latin one; "" for none or a whole word."""
    lookalikes = [letter for letter in name if ord(letter.casefold()[0]) in _LATIN_LOOKALIKES]
    if not lookalikes:
        return ""
    letter = lookalikes[0]
    return f" with {unicodedata.name(letter).lower()} (U+{ord(letter):04X})"

"""Texts of several labels that were read as one: by another separator than the one that is set."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.types import LabelFormat
from finetune.units import format_count, shorten_text

_MARKS = ("|", ",", ";", "\t", "+")
_DOUBTFUL = ("/", "&", " ")
"""Separators that are often parts of names, too."""

_NAMES_OF_BLANKS = {" ": "a blank", "\t": "a tab"}
_BRACKETS = ("[]", "()", "{}")
_MIN_EXPLAINED_FRACTION = 0.5
_MIN_JOINED_PER_PART = 2


@dataclass(frozen=True, slots=True)
class JoinedLabels:
    """Label names that are probably several labels each.

    Attributes:
        separator: What probably separates them; "" for lists in brackets.
        count: Number of such names.
        example: One of them.
        is_certain: Whether the separator is seldom a part of names.
    """

    separator: str
    count: int
    example: str
    is_certain: bool

    def describe(self, file: Path, *, separator: str, can_set: bool) -> str:
        """Return what was found in a multi-label CSV, and how it is read as several labels.

        Args:
            file: CSV, for the message.
            separator: Separator that is set.
            can_set: Whether the user can set another one.
        """
        names = format_count(self.count, "label")
        if not self.separator:
            return (
                f"{file} has {names} that {'is a list' if self.count == 1 else 'are lists'} in "
                f"brackets, such as {shorten_text(self.example)}. Write an image's labels as "
                f"cat{separator}dog."
            )
        verb = "consists" if self.count == 1 else "consist"
        shown = _NAMES_OF_BLANKS.get(self.separator, f"'{self.separator}'")
        found = (
            f"{file} has {names} that {verb} of other labels with {shown} between them, such as "
            f"'{shorten_text(self.example)}'"
        )
        if not can_set:
            return f"{found}. Write '{separator}' between the labels of an image."
        return (
            f"{found}. If these are several labels of an image, set "
            f"{_format_setting(self.separator)}; if they are one label each, set a "
            f"separator that is in no label, such as data.label_separator='||'."
        )


def find_joined_labels(
    names: Iterable[str], *, separator: str, known: Collection[str] = ()
) -> JoinedLabels | None:
    """Return the label names that another separator divides into further labels; None for none.

    A name counts if each of its parts is a label itself, or a part of another name. That holds for
    most of the names with the separator, or they are names that happen to have it in them.

    Args:
        names: Label names of a CSV, each once or more.
        separator: Separator by which they were read. One that is unusual was set on purpose.
        known: Labels of a model.
    """
    if separator.strip() not in (*_MARKS, *_DOUBTFUL, ""):
        return None
    distinct = sorted({*names})
    lists = [name for name in distinct if _is_list(name)]
    if lists and 2 * len(lists) >= len(distinct):
        return JoinedLabels("", len(lists), lists[0], is_certain=True)
    for mark in (*_MARKS, *_DOUBTFUL):
        if mark != separator.strip(" ") and mark != separator:
            joined = _find_joined(distinct, mark, known)
            if joined:
                return JoinedLabels(mark, len(joined), joined[0], is_certain=mark in _MARKS)
    return None


def describe_joined_classes(
    file: Path, names: Iterable[str], *, num_joined: int, example: str
) -> list[str]:
    """Return a line if classes of a table are probably several labels each.

    Args:
        file: Table, for the message.
        names: Class names, each once or more.
        num_joined: Number of labels with the separator that is set by default.
        example: One of them.
    """
    separator = LabelFormat().separator
    if num_joined:
        return [
            f"{file.name}: {format_count(num_joined, 'label')} with '{separator}', such as "
            f"'{shorten_text(example)}', {'is' if num_joined == 1 else 'are'} read as one class "
            f"each. If these are several labels of an image, set data.task=multi_label; if not, "
            f"data.task=single_label."
        ]
    joined = find_joined_labels(names, separator=separator)
    if joined is None or not joined.is_certain:
        return []
    shown = shorten_text(joined.example)
    if not joined.separator:
        return [
            f"{file.name}: {format_count(joined.count, 'label')} in brackets, such as {shown}, "
            f"{'is' if joined.count == 1 else 'are'} read as one class each. If these are several "
            f"labels of an image, write them as cat{separator}dog and set data.task=multi_label; "
            f"if not, data.task=single_label."
        ]
    mark = _NAMES_OF_BLANKS.get(joined.separator, f"'{joined.separator}'")
    return [
        f"{file.name}: {format_count(joined.count, 'class')} with {mark}, such as '{shown}', "
        f"{'consists' if joined.count == 1 else 'consist'} of other classes. If these are several "
        f"labels of an image, set data.task=multi_label {_format_setting(joined.separator)}; if "
        f"not, data.task=single_label."
    ]


def _is_list(name: str) -> bool:
    """Return whether a name is a list in brackets: of several labels, or of one in quotes."""
    is_in_brackets = len(name) > 1 and name[0] + name[-1] in _BRACKETS
    return is_in_brackets and (name == "[]" or any(mark in name for mark in ",'\""))


def _format_setting(separator: str) -> str:
    """Return the setting of a separator as it is typed in a shell."""
    return "data.label_separator=" + ("$'\\t'" if separator == "\t" else f"'{separator}'")


def _find_joined(distinct: Collection[str], mark: str, known: Collection[str]) -> list[str]:
    """Return the names that a separator divides into labels; none if most are not such."""
    parts_of = {name: [part.strip() for part in name.split(mark)] for name in distinct}
    parts_of = {name: [part for part in parts if part] for name, parts in parts_of.items()}
    joined = {name: parts for name, parts in parts_of.items() if len(parts) > 1}
    plain = {*distinct, *known} - joined.keys()
    counts = Counter(part for parts in joined.values() for part in {*parts})
    found = [
        name
        for name, parts in joined.items()
        if all(part in plain or counts[part] > 1 for part in parts)
    ]
    if not found or len(found) < _MIN_EXPLAINED_FRACTION * len(joined):
        return []
    is_dense = len(joined) >= _MIN_JOINED_PER_PART * len(counts)
    return found if mark in _MARKS or is_dense else []

"""Labels of the images in a table: one class, a text of several labels, or columns of 0 and 1."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from finetune.data.layouts.class_names import normalize_class_name
from finetune.data.layouts.csv_files.csv_records import NOT_USED, CsvTable
from finetune.data.layouts.csv_files.joined_labels import (
    describe_joined_classes,
    find_joined_labels,
)
from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import LabelFormat
from finetune.units import format_count, shorten_text

NO_LABEL = "(no label)"
"""Text for an image without any label."""

OTHER_COLUMNS = ("path", "label", "labels", "split", "group")
"""Columns that are no label, where all others are."""

_DEFAULT_SEPARATOR = LabelFormat().separator
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")


def open_label_table(
    file: Path,
    labels: LabelFormat,
    *,
    single_line: Sequence[str] = (),
    roles: Mapping[str, str] | None = None,
) -> tuple[CsvTable, LabelFormat]:
    """Return a CSV and the format of its labels, of which the task is known then.

    Args:
        file: Absolute path of the CSV.
        labels: How its labels are written.
        single_line: Columns whose values have no line break.
        roles: Name of a column to the name that it is read as, see ``CsvTable``.

    Raises:
        DataError: The file is no CSV, or lacks a column; the message names it.
    """
    candidates: list[tuple[str, ...]] = []
    if labels.columns:
        candidates.append(("path", *(name.casefold() for name in labels.columns)))
    if not labels.columns or labels.known:
        names = {"single_label": ("label",), "multi_label": ("labels", "label")}
        texts = names.get(labels.task, ("label", "labels"))
        candidates += [*(("path", name) for name in texts), ("path",)]
    # the columns tell the separator of the CSV, too
    tables = (
        CsvTable(file, required=required, single_line=single_line, roles=roles)
        for required in candidates
    )
    first = next(tables)
    opened = [first] if set(candidates[0]) <= set(first.columns) else [first, *tables]
    pairs = zip(opened, candidates, strict=False)
    fitting = [table for table, required in pairs if set(required) <= set(table.columns)]
    table = fitting[0] if fitting else opened[0]
    task = labels.task
    if task == "auto":
        is_multi_label = "labels" in table.columns and "label" not in table.columns
        task = "multi_label" if is_multi_label else "single_label"
    has_columns = set(map(str.casefold, labels.columns)) <= set(table.columns)
    if labels.known and not has_columns:  # other data than those that the columns are named for
        return table, replace(labels, task=task, columns=())
    return table, replace(labels, task=task)


class LabelReader:
    """Reader of the labels of each record of a CSV.

    Args:
        file: Path of the CSV.
        table: The CSV.
        labels: How its labels are written; the task is not "auto".

    Attributes:
        is_multi_label: Whether an image has any number of labels.
        names_of: Class name to the names that were read as it.

    Raises:
        DataError: The CSV lacks a column of labels.
    """

    def __init__(self, file: Path, table: CsvTable, labels: LabelFormat) -> None:
        self.is_multi_label = labels.task == "multi_label"
        self.names_of: dict[str, set[str]] = {}
        self._separator = labels.separator
        self._known = labels.known
        self._table = table
        self._num_joined, self._joined_example = 0, ""
        self._has_separator = False
        columns = table.columns
        self._text_column = next((columns.index(n) for n in ("labels", "label") if n in columns), 0)
        if not self.is_multi_label:
            self._text_column = columns.index("label") if "label" in columns else -1
        self._label_columns: dict[int, str] = {}
        if self.is_multi_label and (labels.columns or not {"label", "labels"} & set(columns)):
            self._label_columns = _find_label_columns(file, table, labels)
        self._used: set[int] = set()

    def read(self, values: Sequence[str], where: str) -> tuple[str, ...]:
        """Return the sorted class names of a record; one, unless it is multi-label.

        Args:
            values: Values of the record.
            where: File and line, for messages.

        Raises:
            DataError: There is no class, or a column of a label holds neither 0 nor 1.
        """
        if self._label_columns:
            return self._read_columns(values, where)
        text = values[self._text_column].strip() if self._text_column < len(values) else ""
        parts = text.split(self._separator) if self.is_multi_label else [text]
        self._has_separator |= len(parts) > 1
        names = set()
        for part in filter(str.strip, parts):
            name = normalize_class_name(part)
            if name:
                self.names_of.setdefault(name, set()).add(part.strip())
                names.add(name)
        if not names and not self.is_multi_label:
            hint = ""
            if self._has_joined_labels():
                hint = (
                    " Other lines have several labels in one text: if each image has any number of "
                    "labels, set data.task=multi_label."
                )
            raise DataError(f"{where}: path or label is empty. Fill it or drop the line.{hint}")
        if not self.is_multi_label and _DEFAULT_SEPARATOR in text.strip(_DEFAULT_SEPARATOR):
            self._num_joined += 1
            self._joined_example = self._joined_example or text
        return tuple(sorted(names))

    def find_doubt(self, file: Path) -> str:
        """Return which labels are probably several labels each; "" for none.

        Raises:
            DataError: They certainly are: no text has the separator that is set.
        """
        if not self.is_multi_label or self._label_columns:
            return ""
        joined = find_joined_labels(self.names_of, separator=self._separator, known=self._known)
        if joined is None:
            return ""
        text = joined.describe(file, separator=self._separator, can_set=not self._known)
        if joined.is_certain and not self._has_separator:
            raise DataError(text)
        return text

    def describe(self, file: Path, *, is_task_given: bool) -> list[str]:
        """Return lines on the labels, after all records were read.

        Args:
            file: Path of the CSV.
            is_task_given: Whether the user has said how many labels an image has.
        """
        lines = []
        unused = [name for place, name in self._label_columns.items() if place not in self._used]
        if unused and not self._known:
            shown = ", ".join(unused[:5]) + (", …" if len(unused) > 5 else "")
            lines.append(
                f"{file.name}: {format_count(len(unused), 'column')} without a 1 "
                f"{'is' if len(unused) == 1 else 'are'} no label: {shown}."
            )
        if not (self.is_multi_label or is_task_given):
            lines += describe_joined_classes(
                file,
                self.names_of,
                num_joined=self._num_joined,
                example=self._joined_example,
            )
        return lines

    def _has_joined_labels(self) -> bool:
        """Return whether any record has a text of several labels, for a message."""
        with suppress(DataError):
            texts = (v[self._text_column] for _, v in self._table if self._text_column < len(v))
            return any(self._separator in text.strip(self._separator) for text in texts)
        return False

    def _read_columns(self, values: Sequence[str], where: str) -> tuple[str, ...]:
        names = []
        for place, name in self._label_columns.items():
            cell = values[place].strip().casefold() if place < len(values) else ""
            if cell in _TRUE:
                names.append(name)
                self._used.add(place)
            elif cell not in _FALSE:
                raise DataError(
                    f"{where}: column '{name}' holds '{shorten_text(values[place].strip())}', and "
                    f"the column of a label holds 0 or 1. Correct it, or name the columns of the "
                    f"labels, as in data.label_columns=cat,dog."
                )
        return tuple(sorted(names))


def join_labels(names: Sequence[str]) -> str:
    """Return the label names of an image as one text."""
    return _DEFAULT_SEPARATOR.join(names) or NO_LABEL


def find_binary_columns(table: CsvTable) -> list[str]:
    """Return the names of the columns that hold only 0 and 1, and both, as those of labels do."""
    found: dict[int, set[str]] = {
        place: set() for place, column in enumerate(table.columns) if _may_be_label(column)
    }
    with suppress(DataError):  # what else is wrong is reported once the columns are known
        for _, values in table:
            for place, seen in found.items():
                seen.add(values[place].strip().lower() if place < len(values) else "")
    names = table.read_names()
    return [
        names[place]
        for place, seen in found.items()
        if seen & {*_TRUE} and seen & {*_FALSE} and seen <= {*_TRUE, *_FALSE}
    ]


def _may_be_label(column: str) -> bool:
    return column not in OTHER_COLUMNS and not column.endswith(NOT_USED)


def _find_label_columns(file: Path, table: CsvTable, labels: LabelFormat) -> dict[int, str]:
    """Return the columns of labels by position: those given or known, or all that are no others.

    Raises:
        DataError: A given column is missing, or there is none, or a name has the separator.
    """
    names = table.read_names()
    for name in labels.columns:
        if name.casefold() not in table.columns:
            raise DataError(
                f"{file} has no column '{name}' (data.label_columns)."
                f"{suggest_name(name, names)} Correct the name."
            )
    spelling = {name.casefold(): name for name in labels.known}
    wanted = {name.casefold() for name in labels.columns or labels.known}
    found = {
        place: spelling.get(column, names[place])
        for place, column in enumerate(table.columns)
        if (column in wanted if wanted else _may_be_label(column))
    }
    if not found:
        known = f", such as {', '.join(labels.known[:3])}" if labels.known else ""
        raise DataError(
            f"{file} has no labels: expected a column labels, or a column of 0 and 1 for each "
            f"label{known} (found: {', '.join(filter(None, names))})."
        )
    joined = next((name for name in found.values() if labels.separator in name), None)
    if joined is not None:
        raise DataError(
            f"{file}: the column '{joined}' has the separator of labels "
            f"'{labels.separator}' in its name. Rename it, or set data.label_separator."
        )
    return found

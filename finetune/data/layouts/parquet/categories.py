"""Labels, splits and groups in the rows of a Parquet file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.layouts.class_names import normalize_class_name
from finetune.data.layouts.parquet.parquet_columns import (
    CategoryColumn,
    find_group_column,
    find_split_column,
)
from finetune.data.layouts.parquet.parquet_files import open_parquet
from finetune.data.layouts.table_options import TableOptions
from finetune.errors import DataError

_NO_LABEL = -1
"""Number by which the ``datasets`` library writes that an image has no label."""

_FLAGS = ("0", "1", "-1", "True", "False")
"""Texts of values that say whether an image has a label."""


@dataclass(frozen=True, slots=True)
class Categories:
    """Labels, splits and groups of the rows of a file.

    Attributes:
        columns: Columns of label, split and group, where the file has them.
        values: Their values, in the order of rows.
    """

    columns: Mapping[str, CategoryColumn]
    values: Mapping[str, Sequence[Any]]

    def read_labels(
        self, row: int, where: str, names_of: dict[str, set[str]]
    ) -> tuple[str, ...] | None:
        """Return the sorted class names of a row, one unless it is multi-label.

        Args:
            row: Number of the row, from 0.
            where: File and row, for messages.
            names_of: Receives for each class name the names that were read as it.

        Returns:
            None if the row of an image with one class says that it has none.

        Raises:
            DataError: The class is missing, or a label is a number without a name.
        """
        column, value = self.columns["label"], self.values["label"][row]
        if column.is_multi_label:
            values = () if value is None else value if column.is_list else [value]
            texts = [_find_name(v, column, where) for v in values if v is not None]
            if column.separator and not column.is_number:
                texts = [
                    part.strip() for text in texts if text for part in text.split(column.separator)
                ]
        elif value is None:
            raise DataError(
                f"{where}: column '{column.name}' is empty. Fill it, or remove the row."
            )
        else:
            texts = [_find_name(value, column, where)]
            if texts == [None]:
                return None
        names = set()
        for text in texts:
            if name := normalize_class_name(text or ""):
                names_of.setdefault(name, set()).add(text or "")
                names.add(name)
        if not names and not column.is_multi_label:
            raise DataError(f"{where}: the label is empty. Fill it, or remove the row.")
        return tuple(sorted(names))

    def read_optional(self, key: str, row: int, where: str) -> str:
        """Return the split or group of a row; "" for none.

        Raises:
            DataError: It is a number without a name.
        """
        if key not in self.columns:
            return ""
        value = _format_value(self.values[key][row])
        return value and (_find_name(value, self.columns[key], where) or "")


def read_categories(file: Path, label: CategoryColumn, tables: TableOptions) -> Categories:
    """Return labels, splits and groups of all rows.

    Raises:
        DataError: Lists of labels hold a value for each of all labels.
    """
    with open_parquet(file) as opened:
        schema = opened.schema_arrow
        found = {
            "label": label,
            "split": find_split_column(file, schema),
            "group": find_group_column(file, schema, tables),
        }
        columns = {key: column for key, column in found.items() if column is not None}
        names = sorted({column.name for column in columns.values()})
        table = opened.read(columns=names, use_threads=False)
    values = {key: table.column(c.name).to_pylist() for key, c in columns.items()}
    if label.is_list:
        _check_lists(file, label, values["label"])
    return Categories(columns, values)


def _check_lists(file: Path, column: CategoryColumn, values: Sequence[Any]) -> None:
    """Check that lists hold the labels of an image, and not a value for each of all labels.

    Such are lists of one length with only 0 and 1, or -1 for what is not known, in which values
    are repeated or change their places.

    Raises:
        DataError: They are such.
    """
    lists = [tuple(map(str, value)) for value in values if value is not None]
    length = len(lists[0]) if lists else 0
    has_one_length = length > 1 and all(len(texts) == length for texts in lists)
    are_flags = has_one_length and {*_FLAGS} >= {text for texts in lists for text in texts}
    is_repeated = any(len({*texts}) < length for texts in lists)
    if not are_flags or not (is_repeated or len({*lists}) > 1):
        return
    names = column.class_names
    example = ", ".join(f"'{name}'" for name in (names or ("cat", "dog"))[:2])
    raise DataError(
        f"{file}: column '{column.name}' holds lists of {length} values 0 and 1 "
        f"(the first: [{', '.join(lists[0][:8])}{', …' if length > 8 else ''}]), probably one "
        f"for each "
        f"of {length} labels. Expected the labels of an image: write a list of their names, as "
        f"[{example}], empty for an image without any."
    )


def _find_name(value: Any, column: CategoryColumn, where: str) -> str | None:
    """Return the text of a value, or the name that a number stands for; None for "no label".

    Raises:
        DataError: The number has no name.
    """
    if column.class_names is None or not column.is_number:
        return str(value)
    number = int(value)
    if number == _NO_LABEL:
        return None
    if not 0 <= number < len(column.class_names):
        raise DataError(
            f"{where}: {column.name} {number} has no name; column '{column.name}' has names for 0 "
            f"to {len(column.class_names) - 1}. Correct the number or the names."
        )
    return column.class_names[number]


def _format_value(value: Any) -> str:
    """Return a value as text; "" if it is missing, also as NaN, by which pandas writes that.

    Numbers of a column with missing values are floats in pandas: 7.0 is written as 7.
    """
    if value is None or value != value:  # NaN, of floats and decimals
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()

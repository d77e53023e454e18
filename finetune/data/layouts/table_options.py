"""Settings of reading tables of images, and of grouping images by their names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.types import DEFAULT_LABEL_FORMAT, LabelFormat

AUTO = "auto"

PATH_COLUMNS = ("path", "file_name", "filename", "image_path", "file_path", "filepath", "file")
"""Usual names of a column with the paths of images."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Columns of a table of images, and the pattern that groups images by their names.

    Attributes:
        image_column: Column with the images or their paths; "auto" for the usual one.
        label_column: Column with the labels; "auto" for the usual one.
        group_column: Column with the groups; "auto" for ``group``, if there is one.
        group_by: Pattern that finds the group of an image in its path; None for no groups.
        cache: Value of ``data.cache``; images inside of tables are unpacked into its folder.
        is_strict: Whether a named column that is missing is an error; else "auto" replaces it.
        labels: How the labels of a CSV are written.
    """

    image_column: str = AUTO
    label_column: str = AUTO
    group_column: str = AUTO
    group_by: str | None = None
    cache: str = AUTO
    is_strict: bool = True
    labels: LabelFormat = DEFAULT_LABEL_FORMAT

    @property
    def named_columns(self) -> dict[str, str]:
        """Config key to the column that it names, for those that do not say auto."""
        columns = {
            "data.image_column": self.image_column,
            "data.label_column": self.label_column,
            "data.group_column": self.group_column,
        }
        return {key: name for key, name in columns.items() if name != AUTO}

    @property
    def csv_roles(self) -> dict[str, str]:
        """Lower-case name of each named column to the name that a CSV has for it by default."""
        roles = {
            "data.image_column": "path",
            "data.label_column": "label",
            "data.group_column": "group",
        }
        return {name.casefold(): roles[key] for key, name in self.named_columns.items()}

    def adapt_to_other_data(self, multi_label_classes: Sequence[str] = ()) -> "TableOptions":
        """Return options for data other than those they were made for: columns may be missing.

        Args:
            multi_label_classes: Labels of a multi-label model, which may have columns.
        """
        labels = self.labels
        if multi_label_classes:
            labels = replace(labels, task="multi_label", known=tuple(multi_label_classes))
        return replace(self, group_by=None, is_strict=False, labels=labels)


DEFAULT_TABLE_OPTIONS = TableOptions()

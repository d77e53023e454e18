"""Settings of reading tables of images, and of grouping images by their names."""

from dataclasses import dataclass, replace

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Which columns of a table hold what, and how images are grouped.

    Attributes:
        image_column: Column with the images or their paths; "auto" for the usual one.
        label_column: Column with the labels; "auto" for the usual one.
        group_column: Column with the groups; "auto" for ``group``, if there is one.
        group_by: Pattern that finds the group of an image in its path; None for no groups.
        cache: Value of ``data.cache``; images of Parquet files are unpacked into its folder.
        is_strict: Whether a named column that is missing is an error; else "auto" replaces it.
    """

    image_column: str = AUTO
    label_column: str = AUTO
    group_column: str = AUTO
    group_by: str | None = None
    cache: str = AUTO
    is_strict: bool = True

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

    def adapt_to_other_data(self) -> "TableOptions":
        """Return options for data other than those they were made for: columns may be missing."""
        return replace(self, group_by=None, is_strict=False)


DEFAULT_TABLE_OPTIONS = TableOptions()

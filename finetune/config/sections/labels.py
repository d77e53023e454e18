"""Config keys on the labels of images: one class for each image, or any number of labels."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from finetune.config.section import Section, YamlForm
from finetune.types import LabelFormat
from finetune.units import format_yaml_value


def _join_columns(value: Any) -> Any:
    """Return ``data.label_columns`` as text, from text or from a list of a config file."""
    if isinstance(value, (list, tuple)):
        # a column may be called 1; yes and null without quotes are no texts in YAML
        other = [n for n in value if isinstance(n, bool) or not isinstance(n, str | int)]
        if other:
            found = format_yaml_value(other[0])
            raise ValueError(
                f"found {found} in the list, expected names of columns. If a column is called so, "
                f"write its name in quotes, as in ['yes', 'null']"
            )
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        found = format_yaml_value(value)
        raise ValueError(f"found {found}, expected names of columns, as in cat,dog,horse")
    names = [name.strip() for name in value.split(",") if name.strip()]
    folded = [name.casefold() for name in names]
    if len(set(folded)) < len(folded):
        raise ValueError(f"'{value}' names a column twice")
    return ",".join(names)


class LabelKeys(Section):
    """Keys of the section ``data`` that say what is labelled, and how."""

    path: str | None = Field(
        None,
        description="folder of class folders, folder of train/val/test folders, CSV file, or "
        "Parquet: a file, a folder of them or a pattern such as data/train-*.parquet",
    )
    task: Literal["auto", "single_label", "multi_label"] = Field(
        "auto",
        description="single_label: each image has one class; multi_label: each image of a CSV or "
        "Parquet file has any number of labels; auto: multi_label with label_columns, if a CSV has "
        "a column labels instead of label, or if a column of Parquet holds lists",
    )
    label_columns: Annotated[str, BeforeValidator(_join_columns), YamlForm("[")] = Field(
        "",
        description="columns of a multi-label CSV that hold 0 or 1, one for each label, as in "
        "cat,dog; empty: a column of label names, else with task=multi_label all columns of 0 and "
        "1",
    )
    label_separator: str = Field(
        "|",
        min_length=1,
        description="text between the label names of an image in a multi-label CSV or Parquet file",
    )

    @property
    def label_format(self) -> LabelFormat:
        """How the labels of a CSV are written."""
        columns = tuple(name for name in self.label_columns.split(",") if name)
        task = "multi_label" if columns and self.task == "auto" else self.task
        return LabelFormat(task, columns, self.label_separator)

    @model_validator(mode="after")
    def _check_label_columns(self) -> "LabelKeys":
        if self.label_columns and self.task == "single_label":
            raise ValueError(
                f"label_columns={self.label_columns} cannot apply to task=single_label: each "
                f"column is a label of its own. Leave one of them out"
            )
        return self

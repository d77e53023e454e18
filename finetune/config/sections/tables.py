"""Keys of the data section on tables of images (CSV, Parquet), and on groups in names."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune.config.section import Section

_EXAMPLE = "such as (?P<group>[^_]+)_ for the part before the first underscore"


def _check_group_by(pattern: str | None) -> str | None:
    """Accept a regular expression that captures a group."""
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        raise ValueError(
            f"'{pattern}' is not a regular expression: {error.msg}{place}. Write a pattern "
            f"{_EXAMPLE}"
        ) from None
    if not expression.groups:
        raise ValueError(
            f"'{pattern}' captures no group. Put the part of the path that images of a group share "
            f"in parentheses, {_EXAMPLE}"
        )
    return pattern


class TableKeys(Section):
    """Columns of a table of images, and groups in names."""

    group_by: Annotated[str | None, AfterValidator(_check_group_by)] = Field(
        None,
        description="regular expression that finds the group of an image in its path, relative to "
        "the data folder: images for which (?P<group>...), or its first parentheses, capture the "
        "same text stay in one split, as frames of a video, tiles of a slide, photos of a patient",
    )
    image_column: str = Field(
        "auto",
        description="column of a CSV or Parquet file with the images or their paths; auto: path in "
        "a CSV, or its only column of images in base64, or image; in Parquet image, or the only "
        "column that holds images",
    )
    label_column: str = Field(
        "auto",
        description="column of a CSV or Parquet file with the labels; auto: label, or in "
        "Parquet the only column whose values have class names, or labels",
    )
    group_column: str = Field(
        "auto",
        description="column of a CSV or Parquet file with the groups of images, such as patients; "
        "auto: group, if there is one",
    )

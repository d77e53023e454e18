"""Tables that hold images themselves, row by row, whatever their format."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

TableKind = Literal["parquet", "csv"]
"""Kind of tables: the folder of their images in the cache, and part of the name of the index."""


@dataclass(frozen=True, slots=True)
class TableImage:
    """Image in a row of a table.

    Attributes:
        row: Name of the row, with which the name of the image file begins.
        content: Bytes of the image file; None for a row without any.
        given: Path or name that the table gives the image; "" for none.
        reason: Why the row holds no image, where that is known; else "".
    """

    row: str
    content: bytes | None
    given: str = ""
    reason: str = ""


class ImageTable(Protocol):
    """Table that holds images."""

    @property
    def file(self) -> Path:
        """Path of the table."""

    @property
    def name(self) -> str:
        """Name of the folder of its images."""

    @property
    def column(self) -> str:
        """Name of the column of the images."""

    def measure(self) -> tuple[int, int]:
        """Return the number of rows, and of bytes of the images; upper bounds will do."""

    def read_images(self) -> Iterator[TableImage]:
        """Yield the image of each row."""

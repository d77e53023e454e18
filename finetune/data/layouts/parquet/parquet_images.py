"""Images inside of a Parquet file, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.layouts.image_table import TableImage
from finetune.data.layouts.parquet.parquet_files import open_parquet

_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """Parquet file with a column of images.

    Attributes:
        file: Path of the file.
        name: Its path relative to the dataset.
        column: Name of the column of the images.
    """

    file: Path
    name: str
    column: str

    def measure(self) -> tuple[int, int]:
        """Return the number of rows, and the bytes of the images before compression."""
        with open_parquet(self.file) as opened:
            metadata = opened.metadata
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            chunks = (group.column(i) for group in groups for i in range(group.num_columns))
            num_bytes = sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema.split(".")[0] == self.column
            )
            return metadata.num_rows, num_bytes

    def read_images(self) -> Iterator[TableImage]:
        """Yield the image of each row, named row00000 for the first one.

        Raises:
            DataError: The file is damaged.
        """
        with open_parquet(self.file) as opened:
            width = max(5, len(str(opened.metadata.num_rows)))
            row = 0
            for batch in opened.iter_batches(_BATCH_SIZE, columns=[self.column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    content, given = _read_value(value)
                    yield TableImage(f"row{row:0{width}}", content, given)
                    row += 1


def _read_value(value: Any) -> tuple[bytes | None, str]:
    """Return the bytes and the path of an image, None and "" for those that are missing."""
    if isinstance(value, dict):
        return value["bytes"], value.get("path") or ""
    return value, ""

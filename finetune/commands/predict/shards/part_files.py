"""Parts of a prediction as Parquet files, which appear when they are complete."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune.commands.predict.prediction_row import PredictionRow, RowFormat
from finetune.commands.predict.row_writers import RowWriter, open_writer
from finetune.errors import DataError
from finetune.system.files import write_text

Unit = tuple[int, int]
"""Number of a shard, and of a part of it."""

_ROWS_TOGETHER = 256
"""Rows that are handed to a writer at once."""


class PartFiles:
    """Parts that are being written; those that are complete have their final names.

    Args:
        folder: Folder of the parts.
        form: Form of the rows.
        part_size: Number of rows of a part.
    """

    def __init__(self, folder: Path, form: RowFormat, part_size: int) -> None:
        self.folder = folder
        self.num_written = 0
        self._form = form
        self._part_size = part_size
        self._open: dict[Unit, _OpenPart] = {}
        self._abandoned: set[Unit] = set()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Complete the last parts of shards, which may be shorter; after an error, remove them."""
        while self._open:
            unit, part = self._open.popitem()
            if error is None and unit in self._abandoned:
                stop = DataError("The rest of this part cannot be read.")
                part.manager.__exit__(DataError, stop, None)
                continue
            if error is None:
                part.writer.write(part.rows)
                self._complete(unit, part)
            else:
                part.manager.__exit__(kind, error, traceback)

    def abandon(self, unit: Unit) -> None:
        """Remove a part at the end unless it is complete before, as its images are not known."""
        self._abandoned.add(unit)

    def has(self, unit: Unit) -> bool:
        """Return whether a part is complete."""
        return self.get_path(unit).exists()

    def get_path(self, unit: Unit) -> Path:
        """Return the file of a part."""
        shard, part = unit
        return self.folder / f"part-{shard:05}-{part:05}.parquet"

    def get_marker(self, shard: int) -> Path:
        """Return the file that says that all parts of a shard are there."""
        return self.folder / f"_complete-{shard:05}.json"

    def mark_complete(self, shard: int, num_images: int) -> None:
        """Say that all parts of a shard are there; another process may do so at the same time."""
        if not self.get_marker(shard).exists():
            write_text(self.get_marker(shard), f'{{"num_images": {num_images}}}\n')

    def remove_stale_temp_files(self) -> None:
        """Remove the temporary files of parts, all of which are there, that killed processes left.

        Those of markers stay: another process may be about to rename one.
        """
        for file in self.folder.glob(".part-*.parquet.*"):
            file.unlink(missing_ok=True)

    def write(self, unit: Unit, row: PredictionRow) -> None:
        """Write a row of a part; its last one completes it.

        Raises:
            StorageError: The disk is full, read-only or fails.
        """
        part = self._open.get(unit)
        if part is None:
            manager = open_writer(self.get_path(unit), self._form, "parquet")
            part = self._open[unit] = _OpenPart(manager, manager.__enter__())
        part.rows.append(row)
        part.num_rows += 1
        if len(part.rows) == _ROWS_TOGETHER or part.num_rows == self._part_size:
            part.writer.write(part.rows)
            part.rows.clear()
        if part.num_rows == self._part_size:
            del self._open[unit]
            self._complete(unit, part)

    def _complete(self, unit: Unit, part: "_OpenPart") -> None:
        """Give a part its final name.

        Another start of the same command may have done so, and removed the temporary file of this
        one as that of a killed process.
        """
        try:
            part.manager.__exit__(None, None, None)
        except FileNotFoundError:
            if not self.has(unit):
                raise
        self.num_written += 1


@dataclass(slots=True)
class _OpenPart:
    """Part that is being written."""

    manager: AbstractContextManager[RowWriter]
    writer: RowWriter
    num_rows: int = 0
    rows: list[PredictionRow] = field(default_factory=list)

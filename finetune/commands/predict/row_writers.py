"""Writers of predictions, row by row: CSV, JSON lines and Parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from finetune.commands.predict.prediction_row import (
    Column,
    PredictionRow,
    RowFormat,
    format_cell,
)
from finetune.errors import ConfigError
from finetune.system.files import OUTPUT_REMEDY, write_file_atomically

OutputFormat = Literal["csv", "jsonl", "parquet"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = ("csv", "jsonl", "parquet")

_FORMAT_OF_SUFFIX: dict[str, OutputFormat] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ROWS_IN_MEMORY = 2_000
"""Rows of a Parquet file that are written together, as a row group."""


class RowWriter(Protocol):
    """Writer of rows."""

    def write(self, rows: Sequence[PredictionRow]) -> None:
        """Write rows."""

    def close(self) -> None:
        """Write what is left; the file is complete."""


class TextWriter:
    """Writer of rows as CSV or JSON lines.

    Args:
        form: Form of the rows.
        output_format: "csv" or "jsonl".
        write_text: Function that receives the text.
    """

    def __init__(
        self, form: RowFormat, output_format: OutputFormat, write_text: Callable[[str], Any]
    ) -> None:
        self._form = form
        self._is_csv = output_format == "csv"
        self._columns = form.list_columns() if self._is_csv else []
        self._write_text = write_text
        if self._is_csv:
            write_text(_format_lines([[column.name for column in self._columns]]))

    def write(self, rows: Sequence[PredictionRow]) -> None:
        """Write rows."""
        if self._is_csv:
            self._write_text(_format_lines(self._format_cells(row) for row in rows))
            return
        lines = (json.dumps(self._form.to_json(row), ensure_ascii=False) for row in rows)
        self._write_text("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Do nothing: all of the text is written."""

    def _format_cells(self, row: PredictionRow) -> list[str]:
        cells = zip(self._form.list_cells(row), self._columns, strict=True)
        return [format_cell(value, column.kind) for value, column in cells]


class ParquetWriter:
    """Writer of rows as a Parquet file.

    Args:
        form: Form of the rows.
        path: File to write.

    Raises:
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, form: RowFormat, path: Path) -> None:
        check_pyarrow()
        from pyarrow import parquet

        self._form = form
        self._schema = _build_schema(form.list_columns())
        self._rows: list[list[Any]] = []
        self._writer = parquet.ParquetWriter(path, self._schema)

    def write(self, rows: Sequence[PredictionRow]) -> None:
        """Write rows; they are kept until there are enough for a row group."""
        self._rows += [self._form.list_cells(row) for row in rows]
        if len(self._rows) >= _ROWS_IN_MEMORY:
            self._flush()

    def close(self) -> None:
        """Write what is left; the file is complete."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = zip(*self._rows, strict=True)
        arrays = [
            pa.array(values, field.type)
            for values, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


def choose_format(output: Path | None, output_format: str | None) -> OutputFormat:
    """Return the format of the output: the named one, or that of the suffix of the file.

    Args:
        output: File to write; None for standard output.
        output_format: Name of a format; None for that of the file.

    Raises:
        ConfigError: The format is unknown, or cannot be printed.
    """
    if output_format is not None:
        found = next((name for name in OUTPUT_FORMATS if name == output_format), None)
        if found is None:
            raise ConfigError(
                f"--output-format {output_format}: unknown format. Choose one of "
                f"{', '.join(OUTPUT_FORMATS)}."
            )
    else:
        suffix = "" if output is None else output.suffix.lower()
        found = "csv" if output is None else _FORMAT_OF_SUFFIX.get(suffix)
        if found is None:
            given = f"for {suffix}" if suffix else "without a suffix"
            raise ConfigError(
                f"--output {output}: no format is known {given}. Name the file .csv, .jsonl "
                f"or .parquet, or choose the format with --output-format."
            )
    if found == "parquet" and output is None:
        raise ConfigError("--output-format parquet needs a file: add --output predictions.parquet.")
    if found == "parquet":
        check_pyarrow()
    return found


def check_pyarrow() -> None:
    """Check that pyarrow is installed.

    Raises:
        ConfigError: It is not.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Predictions as Parquet need pyarrow, which is not installed: "
            "pip install 'finetune-vision[parquet]'"
        ) from error


@contextmanager
def open_writer(path: Path, form: RowFormat, output_format: OutputFormat) -> Iterator[RowWriter]:
    """Yield the writer of a file that appears under its name when the block succeeds.

    Raises:
        ConfigError: pyarrow is needed and not installed.
        StorageError: The disk is full, read-only or fails.
    """
    with write_file_atomically(path, OUTPUT_REMEDY) as temporary:
        if output_format == "parquet":
            table = ParquetWriter(form, temporary)
            try:
                yield table
            except BaseException:
                with suppress(Exception):  # the file is removed
                    table.close()
                raise
            table.close()
            return
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            yield TextWriter(form, output_format, stream.write)


def _format_lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _build_schema(columns: Sequence[Column]) -> Any:
    import pyarrow as pa

    type_of = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "number": pa.float32(),
        "numbers": pa.list_(pa.float32()),
        "flag": pa.bool_(),
    }
    return pa.schema([(column.name, type_of[column.kind]) for column in columns])

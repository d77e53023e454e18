"""Writers of embeddings, the pooled features of images: Parquet, NumPy archive and CSV."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from finetune.errors import ConfigError
from finetune.system.files import write_file_atomically

SUFFIXES = (".parquet", ".npz", ".csv")

_REMEDY = "Free space there, or choose another --embeddings."

_TEXT_COLUMNS = ("path", "folder", "label")


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """Embeddings of some images (B images, D features).

    Attributes:
        names: Names of the images in predictions, such as their paths, shape (B,).
        folders: Names of their folders, which are the classes in a folder of classes, shape (B,).
        labels: Predicted class; of a multi-label image its labels with "|" between them, (B,).
        probabilities: Probability of the most probable class, shape (B,).
        embeddings: Features, float32, shape (B, D).
    """

    names: Sequence[str]
    folders: Sequence[str]
    labels: Sequence[str]
    probabilities: Sequence[float]
    embeddings: NDArray[np.float32]


class EmbeddingWriter(Protocol):
    """Writer of embeddings."""

    def write(self, images: EmbeddedImages) -> None:
        """Write the embeddings of some images."""

    def close(self) -> None:
        """Write what is left; the file is complete."""


class ParquetEmbeddings:
    """Writer of a Parquet file with the column ``embedding``, a list of float32 of fixed size.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, images: EmbeddedImages) -> None:
        """Write a row group."""
        import pyarrow as pa
        from pyarrow import parquet

        width = images.embeddings.shape[1]
        values = pa.array(images.embeddings.reshape(-1), pa.float32())
        table = pa.table(
            {
                "path": pa.array(images.names, pa.string()),
                "folder": pa.array(images.folders, pa.string()),
                "label": pa.array(images.labels, pa.string()),
                "probability": pa.array(images.probabilities, pa.float32()),
                "embedding": pa.FixedSizeListArray.from_arrays(values, width),
            }
        )
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Write the end of the file."""
        if self._writer is not None:
            self._writer.close()


class NumpyEmbeddings:
    """Writer of a NumPy archive, whose arrays are kept in memory until its end.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batches: list[EmbeddedImages] = []

    def write(self, images: EmbeddedImages) -> None:
        """Keep the embeddings."""
        self._batches.append(images)

    def close(self) -> None:
        """Write the archive."""
        batches = self._batches
        with self._path.open("wb") as stream:
            np.savez(
                stream,
                embeddings=np.concatenate([batch.embeddings for batch in batches]),
                paths=np.array([name for batch in batches for name in batch.names]),
                folders=np.array([name for batch in batches for name in batch.folders]),
                labels=np.array([name for batch in batches for name in batch.labels]),
                probabilities=np.concatenate(
                    [np.asarray(batch.probabilities, np.float32) for batch in batches]
                ),
            )


class CsvEmbeddings:
    """Writer of a CSV with a column for each feature.

    Args:
        stream: Text stream of the file.
    """

    def __init__(self, stream: TextIO) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")
        self._has_header = False

    def write(self, images: EmbeddedImages) -> None:
        """Write a row for each image."""
        if not self._has_header:
            width = images.embeddings.shape[1]
            names = [f"embedding_{number}" for number in range(width)]
            self._writer.writerow([*_TEXT_COLUMNS, "probability", *names])
            self._has_header = True
        for name, folder, label, probability, row in zip(
            images.names,
            images.folders,
            images.labels,
            images.probabilities,
            images.embeddings,
            strict=True,
        ):
            # as many digits as float32 has
            values = (f"{value:.9g}" for value in row.tolist())
            self._writer.writerow([name, folder, label, f"{probability:.6f}", *values])

    def close(self) -> None:
        """Do nothing: all rows are written."""


def check_embedding_path(path: Path) -> None:
    """Check that embeddings can be written to a file.

    Raises:
        ConfigError: Its suffix is unknown, it is a folder, or pyarrow is needed and missing.
    """
    if path.is_dir():
        raise ConfigError(f"--embeddings {path} is a folder. Give the path of a file.")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--embeddings {path}: no format is known for '{path.suffix}'. Name the file .parquet, "
            f".npz or .csv."
        )
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "Embeddings as Parquet need pyarrow, which is not installed: "
                'pip install "finetune-vision[parquet]". Files .npz and .csv need nothing.'
            ) from error


@contextmanager
def open_embedding_writer(path: Path) -> Iterator[EmbeddingWriter]:
    """Yield the writer of a file that appears under its name when the block succeeds.

    Raises:
        StorageError: The disk is full, read-only or fails.
    """
    with write_file_atomically(path, _REMEDY) as temporary:
        suffix = path.suffix.lower()
        if suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield CsvEmbeddings(stream)
            return
        is_parquet = suffix == ".parquet"
        writer = ParquetEmbeddings(temporary) if is_parquet else NumpyEmbeddings(temporary)
        yield writer
        writer.close()

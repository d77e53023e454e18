"""Images of Parquet files, unpacked once into a folder of the cache as image files.

Every step after the scan reads image files by path: decoders of TIFF, JPEG and AVIF seek in them,
caches recognise them by their stamps, and workers read them in random order. A row of a Parquet
file has no place of its own: to read one, a compressed page or a row group of hundreds of images is
decoded. The folder is named by the stamps of the Parquet files, so that changed files get another
one, and it appears under its name only when it is complete.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.data.cache.file_stamp import read_file_stamps
from finetune.data.images.formats import NUM_START_BYTES, find_format, identify_content
from finetune.data.layouts.parquet.parquet_columns import ImageColumn
from finetune.data.layouts.parquet.parquet_files import ParquetFiles, open_parquet
from finetune.errors import StorageError
from finetune.system.files import (
    build_storage_error,
    describe_disk_error,
    translate_disk_errors,
)
from finetune.types import Reporter
from finetune.units import format_bytes, format_count

INDEX_FILE = "parquet-images.json"
_FORMAT = 1
_BATCH_SIZE = 64
_REMEDY = (
    "Images of Parquet files are unpacked there: free some space, or choose another folder with "
    "data.cache=PATH or FINETUNE_CACHE."
)
_UNSAFE = re.compile(r"[^\w.+-]+")
_MAX_NAME = 60
_locks: dict[Path, int] = {}
"""Folder to the open file whose lock protects it from removal until this process ends."""


@dataclass(frozen=True, slots=True)
class UnpackedRow:
    """Image of a row.

    Attributes:
        path: Path of its file relative to the folder, or of a file elsewhere; "" without one.
        name: Path or name that the Parquet file gives it; "" for none.
        is_reference: Whether the row has a path and no bytes.
    """

    path: str
    name: str = ""
    is_reference: bool = False


@dataclass(frozen=True, slots=True)
class UnpackedImages:
    """Images of Parquet files.

    Attributes:
        folder: Folder of the image files.
        rows: Rows of each Parquet file.
    """

    folder: Path
    rows: tuple[tuple[UnpackedRow, ...], ...]


def unpack_images(
    files: ParquetFiles, columns: Sequence[ImageColumn], *, root: Path, reporter: Reporter
) -> UnpackedImages:
    """Return the images of Parquet files, unpacked below a folder unless they are there already.

    Args:
        files: Parquet files.
        columns: Column of the images of each.
        root: Folder of all caches.
        reporter: Receives progress, and a note on what was written.

    Raises:
        DataError: A Parquet file is damaged.
        StorageError: The disk is full, or the folder cannot be written.
    """
    parent = root / "parquet"
    source = [list(stamp) for stamp in read_file_stamps(files.files)]
    key = _build_key(files, columns, source)
    folder = parent / key
    if (rows := _read_complete(folder)) is None:
        with _lock_folder(parent, key):
            rows = _read_complete(folder)  # another process may have written it
            if rows is None:
                _remove_outdated(parent, source)
                _unpack(files, columns, folder, source, reporter)
                rows = _read_complete(folder)
    if rows is None:
        raise build_storage_error(folder, "its files differ from those just written", _REMEDY)
    _protect(folder)
    return UnpackedImages(folder, rows)


def _build_key(files: ParquetFiles, columns: Sequence[ImageColumn], source: Sequence[Any]) -> str:
    """Return the name of the folder: that of the data, and a digest of the files' stamps."""
    state = json.dumps([_FORMAT, files.names, source, [column.name for column in columns]])
    digest = hashlib.blake2b(state.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    name = files.files[0].stem if len(files.files) == 1 else files.base.name
    return f"{_UNSAFE.sub('-', name).strip('-.')[:_MAX_NAME] or 'images'}-{digest}"


def _read_complete(folder: Path) -> tuple[tuple[UnpackedRow, ...], ...] | None:
    """Return the rows of unpacked files; None unless all are there with their sizes."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            return None
        result = []
        for entry in index["files"]:
            expected = {name: size for name, size, _ in entry["rows"] if size >= 0}
            if expected:
                with os.scandir(folder / entry["name"]) as found:
                    sizes = {file.name: file.stat().st_size for file in found}
                if any(sizes.get(name) != size for name, size in expected.items()):
                    return None
            result.append(tuple(_build_row(entry["name"], *row) for row in entry["rows"]))
        return tuple(result)
    return None


def _build_row(file_name: str, name: str, size: int, given: str) -> UnpackedRow:
    if size >= 0:
        return UnpackedRow(f"{file_name}/{name}", given)
    return UnpackedRow(given, given, is_reference=bool(given))


@contextmanager
def _lock_folder(parent: Path, key: str) -> Iterator[None]:
    """Hold the lock under which a folder is written.

    Raises:
        StorageError: The folder of the cache cannot be written or locked.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = (parent / f"{key}.lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise build_storage_error(parent, describe_disk_error(error), _REMEDY) from error
    with lock:
        yield


def _unpack(
    files: ParquetFiles,
    columns: Sequence[ImageColumn],
    folder: Path,
    source: Sequence[Any],
    reporter: Reporter,
) -> None:
    """Write the images of all files into a folder that appears when it is complete."""
    num_rows, num_bytes = _measure(files, columns)
    free = shutil.disk_usage(folder.parent).free
    if num_bytes > free:
        raise StorageError(
            f"The images of {files.base} need {format_bytes(num_bytes)} in {folder.parent}, where "
            f"{format_bytes(free)} are free. {_REMEDY}"
        )
    for old in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    reporter.start("unpacking images", num_rows)
    with translate_disk_errors(folder.parent, _REMEDY):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            entries = []
            sizes: list[int] = []
            for file, name, column in zip(files.files, files.names, columns, strict=True):
                rows = _unpack_file(file, column, temporary / name, reporter.advance)
                entries.append({"name": name, "rows": rows})
                sizes += [size for _, size, _ in rows if size >= 0]
            index = {"format": _FORMAT, "source": source, "files": entries}
            (temporary / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
            temporary.chmod(0o755)
            if folder.exists():  # incomplete
                folder.rename(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)))
            temporary.rename(folder)
        finally:
            for old in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(old, ignore_errors=True)
    reporter.finish()
    reporter.note(
        f"Unpacked {format_count(len(sizes), 'image')} of {format_count(len(files.files), 'file')} "
        f"({format_bytes(sum(sizes))}) into {folder}."
    )


def _measure(files: ParquetFiles, columns: Sequence[ImageColumn]) -> tuple[int, int]:
    """Return the number of rows, and the bytes of the images before compression."""
    num_rows = num_bytes = 0
    for file, column in zip(files.files, columns, strict=True):
        with open_parquet(file) as opened:
            num_rows += opened.metadata.num_rows
            for number in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(number)
                chunks = (group.column(index) for index in range(group.num_columns))
                num_bytes += sum(
                    chunk.total_uncompressed_size
                    for chunk in chunks
                    if chunk.path_in_schema.split(".")[0] == column.name
                )
    return num_rows, num_bytes


def _unpack_file(
    file: Path, column: ImageColumn, folder: Path, on_progress: Callable[[int], None]
) -> list[tuple[str, int, str]]:
    """Write the images of one file; return the name, size (-1 for none) and given path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, int, str]] = []
    with open_parquet(file) as opened:
        width = max(5, len(str(opened.metadata.num_rows)))
        for batch in opened.iter_batches(_BATCH_SIZE, columns=[column.name], use_threads=False):
            for value in batch.column(0).to_pylist():
                content, given = _read_value(value)
                if not content:
                    # bytes that are there and empty are an empty file, not a path elsewhere
                    rows.append(("", -1, given if content is None else ""))
                    continue
                name = _build_name(f"row{len(rows):0{width}}", given, content)
                (folder / name).write_bytes(content)
                rows.append((name, len(content), given))
            on_progress(batch.num_rows)
    return rows


def _read_value(value: Any) -> tuple[bytes | None, str]:
    """Return the bytes and the path of an image, None and "" for those that are missing."""
    if isinstance(value, dict):
        return value["bytes"], value.get("path") or ""
    return value, ""


def _build_name(row: str, given: str, content: bytes) -> str:
    """Return the name of an image file: its row, its given name, and the suffix of its content."""
    path = PurePosixPath(given.replace("\\", "/"))
    stem = _UNSAFE.sub("-", path.stem).strip("-.")[:_MAX_NAME]
    entry = find_format(identify_content(content[:NUM_START_BYTES]))
    suffix = path.suffix.lower()
    if entry is None:
        suffix = ".bin"
    elif suffix not in entry.suffixes:
        suffix = entry.suffixes[0]
    return f"{row}_{stem}{suffix}" if stem else f"{row}{suffix}"


def _remove_outdated(parent: Path, source: Sequence[Sequence[Any]]) -> None:
    """Remove folders of earlier states of the same Parquet files, unless a process uses them."""
    stamp_of = {path: [path, size, time] for path, size, time in source}
    for index in parent.glob(f"*/{INDEX_FILE}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            stamps = json.loads(index.read_text(encoding="utf-8"))["source"]
            if not any(stamp[0] in stamp_of and stamp != stamp_of[stamp[0]] for stamp in stamps):
                continue
            with (parent / f"{index.parent.name}.in-use").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(index.parent, ignore_errors=True)
            for suffix in ("in-use", "lock"):
                (parent / f"{index.parent.name}.{suffix}").unlink(missing_ok=True)


def _protect(folder: Path) -> None:
    """Protect a folder from removal until this process ends; one that is read-only needs none."""
    path = folder.parent / f"{folder.name}.in-use"
    if folder in _locks and path.exists():
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _locks[folder] = descriptor

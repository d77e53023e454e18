"""Images inside of tables, unpacked once into a folder of the cache as image files.

Every step after the scan reads image files by path: decoders of TIFF, JPEG and AVIF seek in them,
caches recognise them by their stamps, and workers read them in random order. A row of a table has
no place of its own: to read one of a Parquet file, a compressed page or a row group of hundreds of
images is decoded, and a CSV is read from its beginning. The folder is named by the stamps of the
tables, so that changed files get another one, and it appears under its name only when it is
complete.
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
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.data.cache.file_stamp import read_file_stamps
from finetune.data.images.formats import NUM_START_BYTES, find_format, identify_content
from finetune.data.layouts.image_table import ImageTable, TableKind
from finetune.errors import StorageError
from finetune.system.files import (
    build_storage_error,
    describe_disk_error,
    translate_disk_errors,
)
from finetune.types import Reporter
from finetune.units import format_bytes, format_count

_FORMAT = 1
_PROGRESS_STEP = 64
_REMEDY = (
    "Images of {} are unpacked there: free some space, or choose another folder with "
    "data.cache=PATH or FINETUNE_CACHE."
)
_NOUNS = {"parquet": "Parquet files", "csv": "a CSV"}
_UNSAFE = re.compile(r"[^\w.+-]+")
_MAX_NAME = 60
_locks: dict[Path, int] = {}
"""Folder to the open file whose lock protects it from removal until this process ends."""


@dataclass(frozen=True, slots=True)
class UnpackedRow:
    """Image of a row.

    Attributes:
        path: Path of its file relative to the folder, or of a file elsewhere; "" without one.
        name: Path or name that the table gives it, "" for none; that of the row where it holds no
            image, with a reason.
        is_reference: Whether the row has a path and no bytes.
        reason: Why the row holds no image, where that is known; else "".
    """

    path: str
    name: str = ""
    is_reference: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UnpackedImages:
    """Images of tables.

    Attributes:
        folder: Folder of the image files.
        rows: Rows of each table.
    """

    folder: Path
    rows: tuple[tuple[UnpackedRow, ...], ...]


def unpack_images(
    tables: Sequence[ImageTable], *, base: Path, kind: TableKind, root: Path, reporter: Reporter
) -> UnpackedImages:
    """Return the images of tables, unpacked below a folder unless they are there already.

    Args:
        tables: Tables of a dataset.
        base: File or folder of the tables, which gives the folder of images its name.
        kind: Kind of the tables.
        root: Folder of all caches.
        reporter: Receives progress, and a note on what was written.

    Raises:
        DataError: A table is damaged.
        StorageError: The disk is full, or the folder cannot be written.
    """
    parent = root / kind
    source = [list(stamp) for stamp in read_file_stamps([table.file for table in tables])]
    key = _build_key(tables, base, source)
    folder = parent / key
    remedy = _REMEDY.format(_NOUNS[kind])
    if (rows := _read_complete(folder)) is None:
        with _lock_folder(parent, key, remedy):
            rows = _read_complete(folder)  # another process may have written it
            if rows is None:
                _remove_outdated(parent, source)
                _unpack(tables, base, folder, source, reporter)
                rows = _read_complete(folder)
    if rows is None:
        raise build_storage_error(folder, "its files differ from those just written", remedy)
    _protect(folder)
    return UnpackedImages(folder, rows)


def find_unpacked_table(folder: Path) -> Path | None:
    """Return the table, the first of several, of a folder of unpacked images; None for another."""
    for index in folder.glob("*-images.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            tree = json.loads(index.read_text(encoding="utf-8"))
            if index == _get_index_path(folder) and tree["format"] == _FORMAT:
                return Path(tree["source"][0][0])
    return None


def _build_key(tables: Sequence[ImageTable], base: Path, source: Sequence[Any]) -> str:
    """Return the name of the folder: that of the data, and a digest of the files' stamps."""
    names, columns = [table.name for table in tables], [table.column for table in tables]
    state = json.dumps([_FORMAT, names, source, columns])
    digest = hashlib.blake2b(state.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    name = tables[0].file.stem if len(tables) == 1 else base.name
    return f"{_UNSAFE.sub('-', name).strip('-.')[:_MAX_NAME] or 'images'}-{digest}"


def _get_index_path(folder: Path) -> Path:
    """Return the path of the index of a folder, whose parent is named for the kind of tables."""
    return folder / f"{folder.parent.name}-images.json"


def _read_complete(folder: Path) -> tuple[tuple[UnpackedRow, ...], ...] | None:
    """Return the rows of unpacked files; None unless all are there with their sizes."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads(_get_index_path(folder).read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            return None
        result = []
        for entry in index["files"]:
            expected = {name: size for name, size, *_ in entry["rows"] if size >= 0}
            if expected:
                with os.scandir(folder / entry["name"]) as found:
                    sizes = {file.name: file.stat().st_size for file in found}
                if any(sizes.get(name) != size for name, size in expected.items()):
                    return None
            result.append(tuple(_build_row(entry["name"], *row) for row in entry["rows"]))
        return tuple(result)
    return None


def _build_row(table: str, name: str, size: int, given: str, reason: str = "") -> UnpackedRow:
    if size >= 0:
        return UnpackedRow(f"{table}/{name}", given)
    if reason:
        return UnpackedRow("", f"{table}/{name}", reason=reason)
    return UnpackedRow(given, given, is_reference=bool(given), reason=reason)


@contextmanager
def _lock_folder(parent: Path, key: str, remedy: str) -> Iterator[None]:
    """Hold the lock under which a folder is written.

    Raises:
        StorageError: The folder of the cache cannot be written or locked.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = (parent / f"{key}.lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise build_storage_error(parent, describe_disk_error(error), remedy) from error
    with lock:
        yield


def _unpack(
    tables: Sequence[ImageTable],
    base: Path,
    folder: Path,
    source: Sequence[Any],
    reporter: Reporter,
) -> None:
    """Write the images of all tables into a folder that appears when it is complete."""
    remedy = _REMEDY.format(_NOUNS[folder.parent.name])
    measured = [table.measure() for table in tables]
    num_bytes = sum(size for _, size in measured)
    free = shutil.disk_usage(folder.parent).free
    if num_bytes > free:
        raise StorageError(
            f"The images of {base} need {format_bytes(num_bytes)} in {folder.parent}, where "
            f"{format_bytes(free)} are free. {remedy}"
        )
    for old in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    reporter.start("unpacking images", sum(num_rows for num_rows, _ in measured))
    with translate_disk_errors(folder.parent, remedy):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            entries = []
            sizes: list[int] = []
            for table in tables:
                rows = _unpack_table(table, temporary / table.name, reporter.advance)
                entries.append({"name": table.name, "rows": rows})
                sizes += [size for _, size, *_ in rows if size >= 0]
            index = {"format": _FORMAT, "source": source, "files": entries}
            path = temporary / _get_index_path(folder).name
            path.write_text(json.dumps(index), encoding="utf-8")
            temporary.chmod(0o755)
            if folder.exists():  # incomplete
                folder.rename(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)))
            temporary.rename(folder)
        finally:
            for old in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(old, ignore_errors=True)
    reporter.finish()
    reporter.note(
        f"Unpacked {format_count(len(sizes), 'image')} of {format_count(len(tables), 'file')} "
        f"({format_bytes(sum(sizes))}) into {folder}."
    )


def _unpack_table(
    table: ImageTable, folder: Path, on_progress: Callable[[int], None]
) -> list[tuple[str, int, str] | tuple[str, int, str, str]]:
    """Write the images of a table; return the name, size (-1 for none) and given path of each.

    A row without an image may have a reason for that, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, int, str] | tuple[str, int, str, str]] = []
    images = table.read_images()
    while batch := list(islice(images, _PROGRESS_STEP)):
        for image in batch:
            if image.content:
                name = _build_name(image.row, image.given, image.content)
                (folder / name).write_bytes(image.content)
                rows.append((name, len(image.content), image.given))
            elif image.reason:
                rows.append((image.row, -1, "", image.reason))
            else:  # bytes that are there and empty are an empty file, not a path elsewhere
                rows.append(("", -1, image.given if image.content is None else ""))
        on_progress(len(batch))
    return rows


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
    """Remove folders of earlier states of the same tables, unless a process uses them."""
    stamp_of = {path: [path, size, time] for path, size, time in source}
    for index in parent.glob(f"*/{_get_index_path(parent / 'any').name}"):
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

"""Listing of files and folders on disk: a stable order, no loops, reasons for rejected files."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from finetune.data.images.formats import IMAGE_SUFFIXES
from finetune.errors import DataError

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_MAX_SUGGESTIONS = 20_000
_OUTPUT_FILES: tuple[dict[str, tuple[bytes, ...]], ...] = (
    {
        "config.yaml": (rb"^data:", rb"^model:", rb"^trainer:", rb"^seed:", rb"^output:"),
        "manifest.csv": (rb"\Apath,label,split,group\b",),
    },
    {"audit.json": (rb"\A\{",), "audit.csv": (rb"\Afinding,\w+,group,path,detail\b",)},
    {"finetune.json": (rb"\A\{\s*\"format\":",), "model.safetensors": ()},
    {"parquet-images.json": (rb"\A\{\"format\":",)},
    {"csv-images.json": (rb"\A\{\"format\":",)},
    {"arrays.bin": (), "index.sqlite": (rb"\A(SQLite format 3|\Z)",)},
)
"""Files that stand together in a run folder, an audit folder, a model, or a cache of the images of
tables or of arrays.

The expressions are found in what finetune writes into them, and not in files of users that have
the same names.
"""

_OUTPUT_NAMES = frozenset(name for files in _OUTPUT_FILES for name in files)
_MAX_BYTES_TO_CHECK = 65_536


def list_folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders, sorted; links that lead back to an ancestor are omitted."""
    ancestors = _resolve_ancestors(folder)
    with os.scandir(folder) as entries:  # no call to stat for each of many images
        names = sorted(e.name for e in entries if not _is_ignored(e.name) and _is_folder(e))
    return [folder / n for n in names if os.path.realpath(folder / n) not in ancestors]


def is_output_folder(folder: Path) -> bool:
    """Return whether a folder is a run, an audit, a model or a cache that finetune has written."""
    return any(
        all((folder / name).is_file() for name in files) and _are_written_by_finetune(folder, files)
        for files in _OUTPUT_FILES
    )


def holds_image(folder: Path, *, outputs: list[Path] | None = None) -> bool:
    """Return whether an image file is below a folder, outside of what finetune has written.

    Args:
        folder: Folder to search until the first image.
        outputs: Receives the folders that finetune has written and that were passed over.

    Raises:
        DataError: A folder cannot be listed.
    """
    return any(find_rejection_reason(file) is None for file in walk_files(folder, outputs=outputs))


def walk_files(folder: Path, *, outputs: list[Path] | None = None) -> Iterator[Path]:
    """Yield all files below a folder in a stable order; a link back to a folder is not followed.

    Folders below it that finetune has written (runs, audits, models, caches) are passed over:
    pictures in them are not images of the user.

    Args:
        folder: Folder to list.
        outputs: Receives the folders that were passed over.

    Raises:
        DataError: A folder cannot be listed.
    """
    visited = _resolve_ancestors(folder.parent) | _resolve_ancestors(folder)
    visited.discard(os.path.realpath(folder))
    for current, folders, files in os.walk(folder, onerror=raise_listing_error, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        marks = _OUTPUT_NAMES.intersection(files)  # a set of all names may be large
        is_marked = any(output.keys() <= marks for output in _OUTPUT_FILES)
        if is_marked and Path(current) != folder and is_output_folder(Path(current)):
            folders.clear()
            if outputs is not None:
                outputs.append(Path(current))
            continue
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        files.sort()
        for name in files:
            yield Path(current, name)


def find_rejection_reason(file: Path) -> str | None:
    """Return why a file name is rejected; None for an image, "" for a file to ignore silently."""
    if _is_ignored(file.name) or file.name.lower() in _SYSTEM_FILES:
        return ""
    if not str(file).isprintable() and not _is_utf8(str(file)):
        return "name is not UTF-8, rename it"
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None if file.is_file() or not file.exists() else "not a regular file"
    return f"unsupported image format ({suffix})" if suffix else "no image suffix"


def has_image_suffix(file: Path) -> bool:
    """Return whether a file is an image by its suffix: one that a folder offers as an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def suggest_file(folder: Path, path: str) -> str | None:
    """Return the image that a path without an existing file probably means, relative to a folder.

    It has the same name but for its suffix, case or folder.

    Args:
        folder: Folder that the path is relative to.
        path: Path as it was given.
    """
    given = folder / path
    names = {
        given.name.casefold(),
        given.stem.casefold() if given.suffix else given.name.casefold(),
    }
    near: Iterator[Path] = iter(())
    if given.parent.is_dir():
        near = (entry for entry in sorted(given.parent.iterdir()) if not entry.is_dir())
    # the search of the whole folder is for a message only: it ends after as many files
    for file in (*near, *itertools.islice(walk_files(folder), _MAX_SUGGESTIONS)):
        is_same = {file.name.casefold(), file.stem.casefold()} & names
        if is_same and find_rejection_reason(file) is None and file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    return None


def escape_path(path: Path) -> str:
    """Return a path for a UTF-8 report; bytes that are not UTF-8 are escaped with backslashes."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def raise_listing_error(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"The folder {error.filename} cannot be listed: {error.strerror}. Change its permissions, "
        f"or move it away."
    )


def _resolve_ancestors(folder: Path) -> set[str]:
    """Return the real paths of a folder and its parents: a link to one of them would loop."""
    real = Path(os.path.realpath(folder))
    return {str(parent) for parent in (real, *real.parents)}


def _are_written_by_finetune(folder: Path, files: Mapping[str, Sequence[bytes]]) -> bool:
    """Return whether the beginning of each file contains all of its expressions."""
    for name, expressions in files.items():
        try:
            with (folder / name).open("rb") as stream:
                content = stream.read(_MAX_BYTES_TO_CHECK) if expressions else b""
        except OSError:  # the files of a user are not judged by what cannot be read
            return False
        if not all(re.search(expression, content, re.MULTILINE) for expression in expressions):
            return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:  # os.walk lists such an entry as a file
        return False


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

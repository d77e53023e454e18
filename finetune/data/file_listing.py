"""Listing of files and folders on disk: a stable order, no loops, reasons for rejected files."""

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.errors import DataError

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
     ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)  # fmt: skip
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})


def list_folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders, sorted; links that lead back to an ancestor are omitted."""
    ancestors = _resolve_ancestors(folder)
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
        and not _is_ignored(entry.name)
        and os.path.realpath(entry) not in ancestors
    ]


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder in a stable order; a link back to a folder is not followed.

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
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        for name in sorted(files):
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


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

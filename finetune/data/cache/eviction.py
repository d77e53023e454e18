"""Location of the cache, its size, and eviction of the least recently used stores."""

import fcntl
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakKeyDictionary

import platformdirs

from finetune.data.cache.file_stamp import read_file_stamps
from finetune.errors import FinetuneError, StorageError
from finetune.system.files import (
    build_storage_error,
    describe_disk_error,
    translate_disk_errors,
)
from finetune.types import Reporter

CACHE_REMEDY = (
    "Free some space there, choose another folder with data.cache=PATH or FINETUNE_CACHE, or read "
    "the image files directly with data.cache=off."
)
"""Remedy in messages about the disk of the cache."""

ARRAYS_FILE = "arrays.bin"
NEW_ARRAYS_FILE = "arrays.new"
INDEX_FILE = "index.sqlite"
FILL_LOCK_FILE = "filling.lock"
_USE_LOCK_FILE = "in-use.lock"
_DUPLICATE_CACHE_FILES = re.compile(r"^\.?(duplicates|copies|crops-[-.\w]+)\.json(\..*)?$")
"""Files with duplicates in a store of fingerprints, complete or partly written; version 0.1 named
one "copies"."""

_STORE_FOLDER = re.compile(r"-[0-9a-f]{16}$")
_ROOT_LOCK_FILE = "stores.lock"
_warned_roots: WeakKeyDictionary[Reporter, set[Path]] = WeakKeyDictionary()
"""Receiver of warnings to the folders of stores of whose failure it was told."""

_ROOT_FOLDER = "pixels"
"""Folder of all stores below the cache folder; named for its first content."""


def resolve_cache_root(setting: str) -> Path:
    """Return the folder of all stores by ``data.cache``: a path, or "auto", "on" or "off"."""
    return (
        get_default_cache_root()
        if setting in ("auto", "on", "off")
        else Path(setting).expanduser().resolve()
    )


def get_default_cache_root() -> Path:
    """Return the stores' folder below ``$FINETUNE_CACHE``, else below the user's cache folder."""
    path = os.environ.get("FINETUNE_CACHE")
    cache = Path(path).expanduser() if path else platformdirs.user_cache_path("finetune")
    return cache / _ROOT_FOLDER


def check_cache_root(root: Path) -> None:
    """Check that stores can be opened in a folder, or that the folder can be created.

    Raises:
        StorageError: They cannot.
    """
    with translate_cache_errors(root):
        existing = next(path for path in (root, *root.parents) if path.exists())
        if existing == root:
            with _lock_root(root):
                pass
        else:
            with TemporaryDirectory(prefix=".finetune-", dir=existing):
                pass


def find_cache_failure(root: Path) -> str:
    """Return which folder of stores cannot be used, and why; empty if it can."""
    try:
        check_cache_root(root)
    except StorageError as error:
        return describe_cache_failure(root, error)
    return ""


def describe_cache_failure(root: Path, error: StorageError) -> str:
    """Return in a clause which folder of stores cannot be used, and why."""
    reason = error.reason or "it cannot be written"
    with suppress(OSError):
        existing = next(path for path in (root, *root.parents) if path.exists())
        if not existing.is_dir():
            reason = f"{existing} is a file"
    return f"the cache in {root} cannot be used: {reason}"


def warn_of_cache_failure(root: Path, error: StorageError, reporter: Reporter) -> None:
    """Warn, once for all stores, that a command continues without their folder."""
    warned = _warned_roots.setdefault(reporter, set())
    if root in warned:
        return
    warned.add(root)
    failure = describe_cache_failure(root, error)
    reporter.warn(
        f"{failure[0].upper()}{failure[1:]}. The command continues without it: features stay in "
        f"memory, and images are decoded whenever they are read. To use a cache, choose another "
        f"folder with data.cache=PATH or FINETUNE_CACHE, or free some space there."
    )


@contextmanager
def translate_cache_errors(folder: Path) -> Iterator[None]:
    """Raise every error of the disk within the block as StorageError with a remedy.

    Raises:
        StorageError: The folder of a store cannot be read or written.
    """
    try:
        with translate_disk_errors(folder, CACHE_REMEDY):
            yield
    except FinetuneError:
        raise
    except OSError as error:  # for example, a folder that cannot be created below /proc
        raise build_storage_error(folder, describe_disk_error(error), CACHE_REMEDY) from error
    except sqlite3.Error as error:
        raise build_storage_error(folder, str(error), CACHE_REMEDY) from error


def measure_store_bytes(folder: Path) -> int:
    """Return the size of a store in bytes; 0 if it does not exist."""
    # by stamps, because SQLite's journal may vanish between listing and reading its size
    return sum(max(0, file.num_bytes) for file in read_file_stamps(list(folder.glob("*"))))


def evict_to_fit(root: Path, *, needed_bytes: int, limit_bytes: int) -> bool:
    """Remove the least recently used stores until new data fit, and return whether they do.

    Stores that a process is using are kept.

    Args:
        root: Folder of all stores.
        needed_bytes: Size of the new data.
        limit_bytes: Maximum size of all stores together.

    Raises:
        StorageError: The folder cannot be created or written.
    """
    with translate_cache_errors(root), _lock_root(root):
        candidates = (f for f in root.glob(f"*/{ARRAYS_FILE}") if _is_store(f.parent))
        stores = sorted(candidates, key=lambda file: file.stat().st_mtime)
        used = sum(measure_store_bytes(file.parent) for file in stores)
        for file in stores:
            if used + needed_bytes <= limit_bytes:
                break
            size = measure_store_bytes(file.parent)
            if _remove_if_unused(file.parent):
                used -= size
    return used + needed_bytes <= limit_bytes


def _is_store(folder: Path) -> bool:
    """Return whether a folder is a store without foreign files; users choose the root freely."""
    known = {ARRAYS_FILE, NEW_ARRAYS_FILE, _USE_LOCK_FILE, FILL_LOCK_FILE, INDEX_FILE}
    names = {file.name.removesuffix("-journal") for file in folder.iterdir()}
    foreign = {name for name in names - known if not _DUPLICATE_CACHE_FILES.search(name)}
    return bool(_STORE_FOLDER.search(folder.name)) and not foreign


def _remove_if_unused(folder: Path) -> bool:
    """Remove a store unless a process is using it, and return whether it was removed."""
    with (folder / _USE_LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True


def acquire_shared_lock(folder: Path) -> int:
    """Return a file descriptor that protects a store from eviction until it is closed."""
    with _lock_root(folder.parent):
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / _USE_LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def _lock_root(root: Path) -> Iterator[None]:
    """Hold the lock under which processes open and remove stores.

    Raises:
        StorageError: The file system does not support locks.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / _ROOT_LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            failure = StorageError(f"Cannot lock {root}: {error.strerror}. {CACHE_REMEDY}")
            failure.reason = f"it cannot be locked ({error.strerror})"
            raise failure from error
        yield

"""How much room all stores take together, and which of them make way for new ones."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from finetune.data.cache.file_stamp import read_file_stamps
from finetune.errors import StorageError

CACHE_REMEDY = (
    "Free some space there, name another place with data.cache=PATH or FINETUNE_CACHE, or read "
    "from the files with data.cache=off."
)
"""What to do where the stores' disk does not serve."""


_DUPLICATE_CACHE_FILES = re.compile(r"^\.?(copies|crops-[-.\w]+)\.json(\..*)?$")
"""What was found in the images whose looks a store holds, also half-written."""


def resolve_cache_root(setting: str) -> Path:
    """Return the folder of all stores that ``data.cache`` names, or the usual one."""
    return (
        get_default_cache_root()
        if setting in ("auto", "on", "off")
        else Path(setting).expanduser().resolve()
    )


def get_default_cache_root() -> Path:
    """Return ``$FINETUNE_CACHE``, else this user's cache folder."""
    named = os.environ.get("FINETUNE_CACHE")
    return (Path(named).expanduser() if named else platformdirs.user_cache_path("finetune")) / (
        "pixels"
    )


def measure_store_bytes(folder: Path) -> int:
    """Return the size of a store; 0 where there is none."""
    # by state, since SQLite's journal comes and goes
    return sum(max(0, file.num_bytes) for file in read_file_stamps(list(folder.glob("*"))))


def evict_to_fit(root: Path, *, needed_bytes: int, limit_bytes: int) -> bool:
    """Remove the stores used longest ago until ``needed_bytes`` more fit; tell whether they do.

    Stores that a process uses stay.
    """
    with _lock_root(root):
        found = (file for file in root.glob("*/arrays.bin") if _is_store(file.parent))
        stores = sorted(found, key=lambda file: file.stat().st_mtime)
        used = sum(measure_store_bytes(file.parent) for file in stores)
        for file in stores:
            if used + needed_bytes <= limit_bytes:
                break
            size = measure_store_bytes(file.parent)
            if _remove_if_unused(file.parent):
                used -= size
    return used + needed_bytes <= limit_bytes


def _is_store(folder: Path) -> bool:
    """Tell a store from what else lies in a folder that the user named."""
    known = {"arrays.bin", "arrays.new", "in-use.lock", "filling.lock", "index.sqlite"}
    names = {file.name.removesuffix("-journal") for file in folder.iterdir()}
    strange = {name for name in names - known if not _DUPLICATE_CACHE_FILES.search(name)}
    return bool(re.search(r"-[0-9a-f]{16}$", folder.name)) and not strange


def _remove_if_unused(folder: Path) -> bool:
    with (folder / "in-use.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True


def acquire_shared_lock(folder: Path) -> int:
    """Return an open descriptor that keeps a store from being removed until it is closed."""
    with _lock_root(folder.parent):
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / "in-use.lock", os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def _lock_root(root: Path) -> Iterator[None]:
    """Keep every other process from opening and removing stores.

    Raises:
        StorageError: The file system has no locks.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "stores.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"Cannot lock {root}: {error.strerror}. {CACHE_REMEDY}") from error
        yield

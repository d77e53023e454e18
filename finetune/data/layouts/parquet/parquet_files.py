"""Parquet files of a dataset: a file, a pattern or a folder of them, their splits and schemas."""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.file_listing import find_rejection_reason, walk_files
from finetune.data.images.formats import identify_content, read_start
from finetune.data.layouts.split_names import (
    SplitSetting,
    is_unlabelled_name,
    parse_split_name,
)
from finetune.errors import DataError
from finetune.system.given_paths import is_file, is_folder
from finetune.types import Split
from finetune.units import format_count

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
_WILDCARD = re.compile(r"[*?\[]")
_PARTITION = re.compile(r"[^=]+=.*")
_SHARD = re.compile(r"[-_.]?\d+(?:[-_]of[-_]\d+)?(?:-[0-9a-f]{16})?$")
"""End of the name of one of several files, as in train-00000-of-00002 and 0003."""


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """Parquet files of a dataset.

    Attributes:
        base: Folder that the names of the files are relative to.
        files: Absolute paths, sorted.
        splits: Split of each file by its name, or None.
        notes: Lines that say which files were passed over.
    """

    base: Path
    files: tuple[Path, ...]
    splits: tuple[Split | None, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the files relative to the base."""
        return tuple(file.relative_to(self.base).as_posix() for file in self.files)


def is_parquet_path(path: Path) -> bool:
    """Return whether a path is that of a Parquet file, or a pattern for several."""
    return path.suffix.lower() in PARQUET_SUFFIXES and not is_folder(path)


def list_parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a path, a pattern such as ``train-*.parquet``, or a folder.

    A folder with images holds no Parquet dataset: its images are the data.
    """
    if is_folder(path):
        files = []
        for file in walk_files(path):
            if file.suffix.lower() in PARQUET_SUFFIXES:
                files.append(file)
            elif find_rejection_reason(file) is None:
                return []
        return files
    if not is_parquet_path(path):
        return []
    if is_file(path):
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def find_parquet_files(path: Path, splits: SplitSetting = "auto") -> ParquetFiles | None:
    """Return the Parquet files of a dataset with the splits in their names; None without such.

    Args:
        path: Absolute path of a file or folder, or a pattern.
        splits: "auto" recognises the names of splits, "none" ignores them, and a mapping gives the
            splits of files by their names, without the numbers of their parts.

    Raises:
        DataError: Some files have a split by their names and others do not, or files of several
            datasets are in one folder.
    """
    files = list_parquet_files(path)
    if not files:
        return None
    base = _find_base(path)
    if path.is_file() or splits == "none":
        return ParquetFiles(base, tuple(files), (None,) * len(files))
    names = [_find_name(file, base) for file in files]
    notes = []
    if isinstance(splits, Mapping):
        given = {name.casefold(): split for name, split in splits.items()}
        found = [given.get(name.casefold()) for name in names]
        kept = [row for row, split in enumerate(found) if split is not None]
        if not kept:
            found, kept = [None] * len(files), list(range(len(files)))  # values of a column
    else:
        found = [parse_split_name(name) for name in names]
        kept = [row for row, name in enumerate(names) if not is_unlabelled_name(name)]
        _check_split_names(base, [names[row] for row in kept], [found[row] for row in kept])
    passed_over = sorted({names[row] for row in range(len(files)) if row not in kept})
    if passed_over:
        notes.append(f"Passed over the Parquet files of {', '.join(passed_over)}.")
    result = [files[row] for row in kept]
    _check_folders(base, result)
    return ParquetFiles(base, tuple(result), tuple(found[row] for row in kept), tuple(notes))


@contextmanager
def open_parquet(file: Path) -> Iterator[Any]:
    """Yield a ``pyarrow.parquet.ParquetFile``; errors within the block name the file.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{file} needs pyarrow, which is not installed: pip install 'finetune-vision[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            yield opened
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error
        raise DataError(_describe_damage(file, error)) from error


def _describe_damage(file: Path, error: Exception) -> str:
    """Return that a file is no Parquet file, or damaged, and what to do."""
    start = read_start(file)
    if not start:
        return f"{file} is empty. Get the file again."
    content = identify_content(start)
    if content == "Git LFS pointer":
        return f"{file} is a Git LFS pointer: the file itself is not here. Run git lfs pull."
    if not start.startswith(b"PAR1"):
        is_what = f": its content is {content}" if content else ""
        return f"{file} is not a Parquet file{is_what}. Get the file again, or name another one."
    reason = " ".join(str(error).split())
    return f"{file} is damaged or incomplete ({reason[:200].rstrip('.')}). Get the file again."


def find_partition(folders: Sequence[str]) -> str | None:
    """Return a folder that holds the rows of one value of a column, as label=cat; else None."""
    return next((name for name in folders if _PARTITION.fullmatch(name)), None)


def _find_base(path: Path) -> Path:
    """Return the folder of a dataset: a folder itself, or that of a file or pattern."""
    if path.is_dir():
        return path
    base = path.parent
    while _WILDCARD.search(base.name):
        base = base.parent
    return base


def _find_name(file: Path, base: Path) -> str:
    """Return the name of a file without the number of its part; for 0000.parquet, of its folder."""
    name = _SHARD.sub("", file.stem)
    if name and (parse_split_name(name) is not None or is_unlabelled_name(name)):
        return name
    parents = file.relative_to(base).parts[:-1]
    if parents and parse_split_name(parents[-1]) is not None:
        return parents[-1]
    return name or (parents[-1] if parents else file.stem)


def _check_split_names(base: Path, names: Sequence[str], found: Sequence[Split | None]) -> None:
    """Raise DataError if some files are splits by their names and others are not."""
    unknown = sorted({name for name, split in zip(names, found, strict=True) if split is None})
    if not unknown or len(set(found)) == 1:
        return
    known = sorted({name for name, split in zip(names, found, strict=True) if split is not None})
    pairs = ",".join(
        f"{name}={split.value}"
        for name, split in sorted(dict(zip(names, found, strict=True)).items())
        if split is not None
    )
    raise DataError(
        f"{base} has Parquet files of {', '.join(known)}, which are splits, and of "
        f"{', '.join(unknown)}, which is none by its name. Say which files are splits, as in "
        f"data.splits='{pairs}'; others are passed over."
    )


def _check_folders(base: Path, files: Sequence[Path]) -> None:
    """Raise DataError if files of one name are in several folders: these are several datasets."""
    folders = set()
    for file in files:
        parts = file.relative_to(base).parts[:-1]
        folders.add("/".join(part for part in parts if parse_split_name(part) is None) or ".")
    if len(folders) > 1:
        partition = find_partition(sorted(folders)[-1].split("/"))
        if partition is not None:
            raise DataError(
                f"{base} has Parquet files in folders of partitions ({partition}), whose names are "
                f"not read. Write their values as a column of the files."
            )
        shown = ", ".join(sorted(folders)[:5]) + (", ..." if len(folders) > 5 else "")
        raise DataError(
            f"{base} has Parquet files in {format_count(len(folders), 'folder')} ({shown}): these "
            f"may be several datasets. Give one of the folders."
        )

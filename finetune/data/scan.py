"""Finds labelled images: class folders, split folders of class folders, or a CSV."""

import csv
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import DataError
from finetune.lookup import suggest_name
from finetune.types import RejectedFile, Sample, Split

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
_SPLIT_FOLDERS = {
    "train": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
}
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies below a data root, before any file was opened.

    Attributes:
        root: Absolute folder that the samples' paths are relative to.
        samples: Labelled image files in a stable order.
        rejected: Files that are no images by their name or place.
        empty_classes: Class and split of folders without an image.
    """

    root: Path
    samples: tuple[Sample, ...]
    rejected: tuple[RejectedFile, ...] = ()
    empty_classes: tuple[tuple[str, Split | None], ...] = ()


def scan(path: Path, *, allow_empty: bool = False) -> Scan:
    """Return the labelled images below a folder or in a CSV of ``path,label[,split][,group]``.

    A folder holds class folders, or train, val (valid, validation) and test folders of class
    folders. Hidden folders and ``__MACOSX`` are passed over, links are followed without loops.

    Args:
        path: The folder or CSV.
        allow_empty: List a class folder that holds no image instead of refusing it.

    Raises:
        DataError: The path is missing, is neither folder nor CSV, or holds no labelled image.
    """
    check_path(path)
    try:
        whole = path.resolve()
        found = _scan_folder(whole, allow_empty) if path.is_dir() else _scan_csv(whole)
    except PermissionError as error:
        _raise_listing_error(error)
        raise
    if not found.samples:
        raise DataError(
            f"{path} holds no labelled image ({len(found.rejected)} other files). Expected "
            f"{path.name}/<class>/<image>, {path.name}/train/<class>/<image>, or a CSV of "
            f"path,label."
        )
    return found


def check_path(path: Path) -> None:
    """Raise unless the path is a folder or a CSV; opens nothing.

    Raises:
        DataError: The path is missing, or is another file.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.{_suggest_sibling(path)} Check the path.")
    if path.is_file() and path.suffix.lower() != ".csv":
        raise DataError(
            f"{path} is a file, but a folder of class folders or a .csv file is needed."
        )


def list_images(path: Path) -> tuple[list[Path], list[RejectedFile]]:
    """Return every image file below a folder, or the one file, and what was left out.

    Raises:
        DataError: The path is missing or holds no image.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.{_suggest_sibling(path)} Check the path.")
    if path.is_file():
        return [path], []
    images: list[Path] = []
    rejected: list[RejectedFile] = []
    for file in _walk_files(path):
        reason = _find_rejection_reason(file)
        if reason is None:
            images.append(file)
        elif reason:
            rejected.append(RejectedFile(_escape_path(file), reason))
    if not images:
        raise DataError(f"{path} holds no image ({len(rejected)} other files). Check the path.")
    return images, rejected


def has_split_folders(root: Path) -> bool:
    """Tell train/val/test folders of class folders from class folders that bear such names."""
    folders = _list_folders(root)
    splits = [folder for folder in folders if folder.name.casefold() in _SPLIT_FOLDERS]
    train = [folder for folder in splits if folder.name.casefold() == "train"]
    # without train only a folder that holds nothing but splits is meant, as for an evaluation
    telling = train or (splits if splits == folders else [])
    return bool(telling) and all(_list_folders(folder) for folder in telling)


def _scan_folder(root: Path, allow_empty: bool) -> Scan:
    rejected: list[RejectedFile] = []
    samples: list[Sample] = []
    empty: list[tuple[str, Split | None]] = []
    folders: list[tuple[Path, Split | None]] = [(root, None)]
    if has_split_folders(root):
        folders = list(_find_split_folders(root))
        _reject_loose_files(root, root, rejected)
    for folder, split in folders:
        _reject_loose_files(folder, root, rejected)
        for class_folder in _list_folders(folder):
            found = _collect_samples(class_folder, root, split, rejected)
            if not found and split in (None, Split.TRAIN):
                empty.append((normalize_class_name(class_folder.name), split))
            if not found and split in (None, Split.TRAIN) and not allow_empty:
                raise DataError(
                    f"Class folder {class_folder} holds no image. Add images or remove the folder."
                )
            samples += found
    return Scan(root, tuple(samples), tuple(rejected), tuple(empty))


def _find_split_folders(root: Path) -> Iterator[tuple[Path, Split]]:
    seen: dict[Split, str] = {}
    for folder in _list_folders(root):
        split = _SPLIT_FOLDERS.get(folder.name.casefold())
        if split is None:
            raise DataError(
                f"{root} holds train and also '{folder.name}', which is no split. Move it away, or "
                f"put it among the class folders of train."
            )
        if split in seen:
            raise DataError(
                f"{root} holds both '{seen[split]}' and '{folder.name}', two {split.value} splits. "
                f"Keep one."
            )
        seen[split] = folder.name
        yield folder, split


def _collect_samples(
    class_folder: Path, root: Path, split: Split | None, rejected: list[RejectedFile]
) -> list[Sample]:
    label = normalize_class_name(class_folder.name)
    samples = []
    for file in _walk_files(class_folder):
        relative = file.relative_to(root)
        reason = _find_rejection_reason(file)
        if reason is None:
            samples.append(Sample(relative.as_posix(), label, split))
        elif reason:
            rejected.append(RejectedFile(_escape_path(relative), reason))
    return samples


def _reject_loose_files(folder: Path, root: Path, rejected: list[RejectedFile]) -> None:
    """List files that lie beside the class folders; images among them have no label."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() or (reason := _find_rejection_reason(entry)) == "":
            continue
        rejected.append(
            RejectedFile(_escape_path(entry.relative_to(root)), reason or "lies in no class folder")
        )


def _scan_csv(file: Path) -> Scan:
    samples: list[Sample] = []
    rejected: list[RejectedFile] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
            _check_columns(file, columns)
            reader.fieldnames = columns
            seen: dict[str, int] = {}
            for row in reader:
                sample = _parse_row(row, file, reader.line_num)
                if (first := seen.setdefault(sample.path, reader.line_num)) != reader.line_num:
                    raise DataError(
                        f"{file}, lines {first} and {reader.line_num}: {sample.path} stands twice. "
                        f"Keep one line an image."
                    )
                reason = _find_rejection_reason(file.parent / sample.path)
                if reason:
                    rejected.append(RejectedFile(sample.path, reason))
                else:
                    samples.append(sample)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not a CSV in UTF-8: {error}.") from error
    return Scan(file.parent, tuple(samples), tuple(rejected))


def _check_columns(file: Path, columns: list[str]) -> None:
    for needed in ("path", "label"):
        if needed not in columns:
            found = ", ".join(columns) or "none"
            raise DataError(
                f"{file} has no column '{needed}' (found: {found}). The first line must name "
                f"path,label and may name split and group."
            )


def _parse_row(row: dict[str, str | None], file: Path, line: int) -> Sample:
    path, label = (row.get("path") or "").strip(), (row.get("label") or "").strip()
    if not path or not label:
        raise DataError(f"{file}, line {line}: path or label is empty. Fill it or drop the line.")
    name = (row.get("split") or "").strip()
    if name and name.casefold() not in _SPLIT_FOLDERS:
        raise DataError(
            f"{file}, line {line}: unknown split '{name}'.{suggest_name(name, _SPLIT_FOLDERS)}"
        )
    split = _SPLIT_FOLDERS[name.casefold()] if name else None
    place = Path(path)
    if place.is_relative_to(file.parent):
        place = place.relative_to(file.parent)
    return Sample(
        place.as_posix(), normalize_class_name(label), split, (row.get("group") or "").strip()
    )


def normalize_class_name(name: str) -> str:
    """Return a class name in Unicode NFC, so that macOS and Linux agree on it."""
    return unicodedata.normalize("NFC", name)


def _list_folders(folder: Path) -> list[Path]:
    above = _resolve_ancestors(folder)
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not _is_ignored(entry.name) and os.path.realpath(entry) not in above
    ]


def _resolve_ancestors(folder: Path) -> set[str]:
    """Return the folder and all above it: a link to one of them would lead back in a loop."""
    real = Path(os.path.realpath(folder))
    return {str(parent) for parent in (real, *real.parents)}


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _walk_files(folder: Path) -> Iterator[Path]:
    """Yield files in a stable order; a folder that a link leads back to is entered once."""
    entered = _resolve_ancestors(folder.parent) | _resolve_ancestors(folder)
    entered.discard(os.path.realpath(folder))
    for current, folders, files in os.walk(folder, onerror=_raise_listing_error, followlinks=True):
        real = os.path.realpath(current)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        for name in sorted(files):
            yield Path(current, name)


def _find_rejection_reason(file: Path) -> str | None:
    """Return None for a file named as an image, "" for one to pass over, else the reason."""
    if _is_ignored(file.name) or file.name.lower() in _SYSTEM_FILES:
        return ""
    if not str(file).isprintable() and _is_not_utf8(str(file)):
        return "name is not UTF-8, rename it"
    suffix = file.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return None if file.is_file() or not file.exists() else "not a regular file"
    return f"not an image format that is read ({suffix})" if suffix else "no image suffix"


def _escape_path(path: Path) -> str:
    """Return a path for a list, which is UTF-8 even where a name is not."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _is_not_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def _raise_listing_error(error: OSError) -> None:
    raise DataError(
        f"The folder {error.filename} cannot be listed: {error.strerror}. Change its permissions, "
        f"or move it away."
    )


def _suggest_sibling(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir() or not path.name:
        return ""
    hint = suggest_name(path.name, [entry.name for entry in parent.iterdir()])
    return hint if "mean" in hint else ""

"""The copies in a data set that has not changed since they were looked for, beside its looks."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from finetune.audit.cropped_duplicates import FeatureArray, find_cropped_duplicates
from finetune.audit.fingerprint_table import FingerprintTable
from finetune.audit.near_duplicates import DuplicateGroup, find_duplicates
from finetune.errors import StorageError
from finetune.system.files import write_text

_DUPLICATES_FILE = "copies.json"

_METHOD_VERSION = 1
"""Raised when what counts as a copy changes, with features or without."""


def load_or_find_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return what ``find_duplicates`` does, or did for the same files in the same order.

    Or what ``cache_duplicates`` was told of them.

    Args:
        fingerprints: Of N images.
        paths: Their files, shape (N,).
        on_progress: Called with a count of images, as they are compared; N in all.
    """
    return _load_or_find(
        fingerprints,
        _DUPLICATES_FILE,
        _compute_key(fingerprints),
        lambda: find_duplicates(fingerprints, paths, on_progress=on_progress),
        on_progress,
    )


def load_or_find_cropped_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    duplicates: Sequence[DuplicateGroup],
    features: Sequence[FeatureArray],
    *,
    cache_key: str,
    on_progress: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return what ``find_cropped_duplicates`` does, or did for the same files in the same order.

    Args:
        fingerprints: Of N images.
        paths: Their files, shape (N,).
        duplicates: What ``load_or_find_duplicates`` returns of them.
        features: Of the same images, one part after the other.
        cache_key: Tells these features from those of another backbone, as part of a file's name.
        on_progress: Called with a count of images, as they are compared; N in all.
    """
    return _load_or_find(
        fingerprints,
        f"crops-{cache_key}.json",
        _compute_key(fingerprints, *(one.rows for one in duplicates)),
        lambda: find_cropped_duplicates(
            fingerprints, paths, duplicates, features, on_progress=on_progress
        ),
        on_progress,
    )


def cache_duplicates(fingerprints: FingerprintTable, duplicates: Sequence[DuplicateGroup]) -> None:
    """Let ``load_or_find_duplicates`` return these from now on, as long as the files stay the same.

    Args:
        fingerprints: Of N images.
        duplicates: All groups of their rows.
    """
    _write_cache(fingerprints, _DUPLICATES_FILE, _compute_key(fingerprints), duplicates)


def _load_or_find(
    fingerprints: FingerprintTable,
    name: str,
    key: str,
    find: Callable[[], list[DuplicateGroup]],
    on_progress: Callable[[int], None] | None,
) -> list[DuplicateGroup]:
    """Return what a file beside the looks says of the same images, or else what is found now."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads((fingerprints.folder / name).read_text(encoding="utf-8"))
        if tree["of"] == key:
            if on_progress is not None:
                on_progress(len(fingerprints))
            return [DuplicateGroup(tuple(rows), bool(exact)) for rows, exact in tree["copies"]]
    found = find()
    _write_cache(fingerprints, name, key, found)
    return found


def _compute_key(fingerprints: FingerprintTable, *groups: tuple[int, ...]) -> str:
    digest = hashlib.sha256(fingerprints.read_column("digest").tobytes())
    digest.update(json.dumps(groups).encode() if groups else b"")
    return f"{_METHOD_VERSION} {len(fingerprints)} {digest.hexdigest()}"


def _write_cache(
    fingerprints: FingerprintTable, name: str, key: str, duplicates: Sequence[DuplicateGroup]
) -> None:
    text = json.dumps({"of": key, "copies": [[one.rows, one.is_exact] for one in duplicates]})
    with suppress(StorageError):  # without it they are looked for again
        write_text(fingerprints.folder / name, text)

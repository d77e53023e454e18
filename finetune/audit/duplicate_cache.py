"""Results of the duplicate searches, stored beside the fingerprints until the images change."""

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

_DUPLICATES_FILE = "duplicates.json"

_METHOD_VERSION = 2
"""Raised when the definition of a duplicate changes, with features or without."""


def load_or_find_duplicates(
    fingerprints: FingerprintTable,
    paths: Sequence[Path],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[DuplicateGroup]:
    """Return the result of ``find_duplicates``, stored or computed now.

    Groups that ``cache_duplicates`` stored for the same files in the same order take its place.

    Args:
        fingerprints: Fingerprints of N images.
        paths: Their files, shape (N,).
        on_progress: Called with numbers of images as they are compared; they add up to N.
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
    """Return the result of ``find_cropped_duplicates``, stored or computed now.

    Args:
        fingerprints: Fingerprints of N images.
        paths: Their files, shape (N,).
        duplicates: Result of ``load_or_find_duplicates`` for the same images.
        features: Features of the same images, as consecutive arrays of N rows in all.
        cache_key: Identifier of the features' backbone, part of a file name.
        on_progress: Called with numbers of images as they are compared; they add up to N.
    """
    return _load_or_find(
        fingerprints,
        f"crops-{cache_key}.json",
        _compute_key(fingerprints, *(group.rows for group in duplicates)),
        lambda: find_cropped_duplicates(
            fingerprints, paths, duplicates, features, on_progress=on_progress
        ),
        on_progress,
    )


def cache_duplicates(fingerprints: FingerprintTable, duplicates: Sequence[DuplicateGroup]) -> None:
    """Store groups that ``load_or_find_duplicates`` returns until one of the files changes.

    Args:
        fingerprints: Fingerprints of N images.
        duplicates: All groups of their rows.
    """
    _write_cache(fingerprints, _DUPLICATES_FILE, _compute_key(fingerprints), duplicates)


def _load_or_find(
    fingerprints: FingerprintTable,
    file_name: str,
    key: str,
    find: Callable[[], list[DuplicateGroup]],
    on_progress: Callable[[int], None] | None,
) -> list[DuplicateGroup]:
    """Return the groups stored under a key beside the fingerprints, else find and store them."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads((fingerprints.folder / file_name).read_text(encoding="utf-8"))
        if tree["key"] == key:
            groups = [
                DuplicateGroup(tuple(rows), bool(exact)) for rows, exact in tree["duplicates"]
            ]
            if on_progress is not None:
                on_progress(len(fingerprints))
            return groups
    groups = find()
    _write_cache(fingerprints, file_name, key, groups)
    return groups


def _compute_key(fingerprints: FingerprintTable, *groups: tuple[int, ...]) -> str:
    """Return a key of the method, the files in their order, and the groups known beforehand."""
    digest = hashlib.sha256(fingerprints.read_column("digest").tobytes())
    digest.update(json.dumps(groups).encode() if groups else b"")
    return f"{_METHOD_VERSION} {len(fingerprints)} {digest.hexdigest()}"


def _write_cache(
    fingerprints: FingerprintTable, file_name: str, key: str, groups: Sequence[DuplicateGroup]
) -> None:
    text = json.dumps(
        {"key": key, "duplicates": [[group.rows, group.is_exact] for group in groups]}
    )
    with suppress(StorageError):  # the search is repeated if the result cannot be stored
        write_text(fingerprints.folder / file_name, text)

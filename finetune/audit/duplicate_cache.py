"""The copies in a data set that has not changed since they were looked for, beside its looks."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from finetune.audit.cropped_duplicates import Features, find_crops
from finetune.audit.fingerprint_table import Looks
from finetune.audit.near_duplicates import Copies, find_copies
from finetune.errors import StorageError
from finetune.system.files import write_text

_COPIES = "copies.json"

_WAY = 1
"""Raised when what counts as a copy changes, with features or without."""


def known_copies(
    looks: Looks, paths: Sequence[Path], *, on_searched: Callable[[int], None] | None = None
) -> list[Copies]:
    """Return what ``find_copies`` does, or did for the same files in the same order.

    Or what ``know_copies`` was told of them.

    Args:
        looks: Of N images.
        paths: Their files, shape (N,).
        on_searched: Called with a count of images, as they are compared; N in all.
    """
    return _known(
        looks,
        _COPIES,
        _key(looks),
        lambda: find_copies(looks, paths, on_searched=on_searched),
        on_searched,
    )


def known_crops(
    looks: Looks,
    paths: Sequence[Path],
    known: Sequence[Copies],
    features: Sequence[Features],
    *,
    made_by: str,
    on_searched: Callable[[int], None] | None = None,
) -> list[Copies]:
    """Return what ``find_crops`` does, or did for the same files in the same order.

    Args:
        looks: Of N images.
        paths: Their files, shape (N,).
        known: What ``known_copies`` returns of them.
        features: Of the same images, one part after the other.
        made_by: Tells these features from those of another backbone, as part of a file's name.
        on_searched: Called with a count of images, as they are compared; N in all.
    """
    return _known(
        looks,
        f"crops-{made_by}.json",
        _key(looks, *(one.rows for one in known)),
        lambda: find_crops(looks, paths, known, features, on_searched=on_searched),
        on_searched,
    )


def know_copies(looks: Looks, copies: Sequence[Copies]) -> None:
    """Let ``known_copies`` return these from now on, as long as the files stay the same.

    Args:
        looks: Of N images.
        copies: All groups of their rows.
    """
    _write(looks, _COPIES, _key(looks), copies)


def _known(
    looks: Looks,
    name: str,
    key: str,
    find: Callable[[], list[Copies]],
    on_searched: Callable[[int], None] | None,
) -> list[Copies]:
    """Return what a file beside the looks says of the same images, or else what is found now."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads((looks.folder / name).read_text(encoding="utf-8"))
        if tree["of"] == key:
            if on_searched is not None:
                on_searched(len(looks))
            return [Copies(tuple(rows), bool(exact)) for rows, exact in tree["copies"]]
    found = find()
    _write(looks, name, key, found)
    return found


def _key(looks: Looks, *known: tuple[int, ...]) -> str:
    digest = hashlib.sha256(looks.column("digest").tobytes())
    digest.update(json.dumps(known).encode() if known else b"")
    return f"{_WAY} {len(looks)} {digest.hexdigest()}"


def _write(looks: Looks, name: str, key: str, copies: Sequence[Copies]) -> None:
    text = json.dumps({"of": key, "copies": [[one.rows, one.exact] for one in copies]})
    with suppress(StorageError):  # without it they are looked for again
        write_text(looks.folder / name, text)

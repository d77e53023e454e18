"""Reads many files on all cores, in order."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from finetune.data.images.decode import DEFAULT_MAX_PIXELS, check_image
from finetune.types import RejectedFile, Sample

_CHUNK_SIZE = 1024

Result = TypeVar("Result")


def map_in_threads(function: Callable[[Path], Result], paths: Iterable[Path]) -> Iterator[Result]:
    """Yield what a function returns for each file, in their order; files are read on all cores."""
    waiting = iter(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # in chunks: ``map`` would hold a future for each of a million files at once
        while chunk := list(islice(waiting, _CHUNK_SIZE)):
            yield from pool.map(function, chunk)


def check_files(
    paths: Iterable[Path], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[str | None]:
    """Yield for each file why it cannot be used, or None; each is read to its end.

    Args:
        paths: Image files.
        max_pixels: Larger images cannot be used.
    """
    return map_in_threads(partial(check_image, max_pixels=max_pixels), paths)


def filter_readable(
    root: Path,
    samples: Sequence[Sample],
    *,
    max_pixels: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[Sample], list[RejectedFile]]:
    """Return the samples whose file reads to its end, and the others with their reason.

    Args:
        root: What relative paths are relative to.
        samples: What to check.
        max_pixels: Larger images are left out.
        on_progress: Called with a count of files, as they are checked.
    """
    good: list[Sample] = []
    bad: list[RejectedFile] = []
    reasons = check_files((root / sample.path for sample in samples), max_pixels=max_pixels)
    for sample, reason in zip(samples, reasons, strict=True):
        if reason is None:
            good.append(sample)
        else:
            bad.append(RejectedFile(sample.path, reason))
        if on_progress is not None:
            on_progress(1)
    return good, bad

"""Opens every file before epoch 0, so that none surprises in the middle of a run."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from finetune.data.decode import check_image
from finetune.types import Rejected, Sample


def audit_files(
    root: Path,
    samples: Sequence[Sample],
    *,
    max_pixels: int,
    on_checked: Callable[[int], None] | None = None,
) -> tuple[list[Sample], list[Rejected]]:
    """Return the samples whose file reads to its end, and the others with their reason.

    Args:
        root: What relative paths are relative to.
        samples: What to check.
        max_pixels: Larger images are left out.
        on_checked: Called with a count of files, as they are checked.
    """
    check = partial(check_image, max_pixels=max_pixels)
    paths = (root / sample.path for sample in samples)
    good: list[Sample] = []
    bad: list[Rejected] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for sample, reason in zip(samples, _in_chunks(pool, check, paths), strict=True):
            if reason is None:
                good.append(sample)
            else:
                bad.append(Rejected(sample.path, reason))
            if on_checked is not None:
                on_checked(1)
    return good, bad


def _in_chunks(
    pool: ThreadPoolExecutor, check: Callable[[Path], str | None], paths: Iterable[Path]
) -> Iterable[str | None]:
    """Map in chunks: ``map`` would hold a future for each of a million files at once."""
    chunk: list[Path] = []
    for path in paths:
        chunk.append(path)
        if len(chunk) == 1024:
            yield from pool.map(check, chunk)
            chunk = []
    yield from pool.map(check, chunk)

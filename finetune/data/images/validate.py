"""Validation of many image files on all cores, in order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from finetune.data.images.decode import OnValues, check_image
from finetune.system.host import count_available_cores
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions, RejectedFile, Sample

_CHUNK_SIZE = 1024
"""Files submitted to the thread pool at once."""

Result = TypeVar("Result")


def map_in_threads(function: Callable[[Path], Result], paths: Iterable[Path]) -> Iterator[Result]:
    """Yield the result of a function for each file, in order, computed in threads on all cores.

    How many of them decode large images at once depends on the memory there is, see ``memory``.
    """
    remaining = iter(paths)
    with ThreadPoolExecutor(count_available_cores()) as pool:
        # in chunks: ``map`` would create a future for each of a million files at once
        while chunk := list(islice(remaining, _CHUNK_SIZE)):
            yield from pool.map(function, chunk)


def check_files(
    paths: Iterable[Path],
    *,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    on_values: OnValues | None = None,
) -> Iterator[str | None]:
    """Yield for each file why it cannot be used, or None; the whole file is read.

    Args:
        paths: Image files.
        options: How image files are read.
        on_values: See ``OnValues``.
    """
    check = partial(check_image, options=options, on_values=on_values)
    return map_in_threads(check, paths)


def filter_readable(
    root: Path,
    samples: Sequence[Sample],
    *,
    options: ReadOptions,
    on_progress: Callable[[int], None] | None = None,
    on_values: OnValues | None = None,
) -> tuple[list[Sample], list[RejectedFile]]:
    """Return the samples whose files are readable, and the others with the reason.

    Args:
        root: Folder that relative paths are relative to.
        samples: Samples to check.
        options: How image files are read.
        on_progress: Callback that receives the number of files checked since the last call.
        on_values: See ``OnValues``.
    """
    good: list[Sample] = []
    bad: list[RejectedFile] = []
    paths = (root / sample.path for sample in samples)
    reasons = check_files(paths, options=options, on_values=on_values)
    for sample, reason in zip(samples, reasons, strict=True):
        if reason is None:
            good.append(sample)
        else:
            bad.append(RejectedFile(sample.path, reason))
        if on_progress is not None:
            on_progress(1)
    return good, bad

"""Writer of decoded images to a store: on all cores, each image at most once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finetune.data.cache.array_store import NOT_STORED, StoreEntry
from finetune.data.cache.file_stamp import FileStamp, read_file_stamps
from finetune.data.cache.pixel_store import PixelStore, build_lazy_image
from finetune.data.images.decode import open_image
from finetune.data.images.lazy_image import LazyImage
from finetune.data.images.multichannel import get_whole_pixels
from finetune.data.images.source import PathSource
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError, StorageError
from finetune.types import DEFAULT_READ_OPTIONS, ReadOptions, Reporter

DecodeFn = Callable[[Path], StoreEntry]

_NUM_SAMPLED_FILES = 200
"""Files whose headers are read to estimate the size of a store."""


def fill_store(
    store: PixelStore,
    paths: Sequence[Path],
    decode: DecodeFn,
    *,
    num_threads: int,
    reporter: Reporter,
) -> NDArray[np.int64]:
    """Decode the images that a store lacks, and return all locations, int64, shape (N, 5).

    Decoding and resizing release the GIL, so that threads use all cores. While another process
    fills the same store, this one waits, and then does not decode its images again.

    Args:
        store: Store to fill.
        paths: Image files, shape (N,).
        decode: Function from a file to its store entry.
        num_threads: Number of decoding threads.
        reporter: Reporter of the progress.

    Raises:
        DataError: A file can no longer be read.
        StorageError: The disk is full or fails; it is left as it was.
    """
    files = read_file_stamps(paths)
    with store.lock_for_filling(reporter):
        store.reset_if_mostly_stale()
        locations = store.find(files)
        missing = [files[row] for row in np.flatnonzero(locations[:, 0] == NOT_STORED.start)]
        if not missing:
            return locations
        reporter.start("caching decoded images", len(missing))
        num_bytes = store.measure()
        try:
            for _ in store.append(_decode_files(missing, decode, num_threads)):
                reporter.advance()
        except StorageError:
            with suppress(StorageError):
                store.truncate(num_bytes)  # the run itself needs the space
            raise
        finally:
            reporter.finish()
        return store.find(files)


class DecodingSource(PathSource):
    """Source of the same images as a store's, decoded on every access.

    Args:
        paths: Image files, shape (N,).
        decode: Function from a file to its store entry.
    """

    def __init__(self, paths: Sequence[Path], decode: DecodeFn) -> None:
        super().__init__(paths)
        self.decode = decode

    def open(self, row: int) -> LazyImage:
        """Return the image of a row.

        Raises:
            DataError: The file cannot be read.
        """
        return build_lazy_image(self.decode(Path(self.paths[row])))


def decode_resized(path: Path, *, shorter_side: int, options: ReadOptions) -> StoreEntry:
    """Return an image shrunk to a shorter side of at most ``shorter_side`` pixels, antialiased.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    image = open_image(path, options=options)
    height, width = size = (image.height, image.width)
    scale = shorter_side / min(size)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = image.crop((0, 0, width, height), size)
    else:
        pixels = get_whole_pixels(image)
    return StoreEntry(pixels, height, width)


def decode_transformed(path: Path, *, transform: EvalTransform, options: ReadOptions) -> StoreEntry:
    """Return the evaluation transform's output for an image.

    Raises:
        DataError: The file cannot be used; the message is the reason without the path.
    """
    pixels = transform(open_image(path, options=options)).pixels
    return StoreEntry(pixels, *pixels.shape[:2])


def estimate_store_bytes(
    paths: Sequence[Path], *, shorter_side: int, options: ReadOptions = DEFAULT_READ_OPTIONS
) -> int:
    """Estimate the bytes that ``decode_resized`` stores, from the headers of a sample of files."""
    step = max(1, len(paths) // _NUM_SAMPLED_FILES)
    areas = []
    for path in paths[::step]:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception:  # plugins raise various exceptions; decoding reports the reason later
            continue
        scale = min(1.0, shorter_side / min(width, height))
        areas.append(width * height * scale**2)
    return round(options.pixel_bytes * len(paths) * sum(areas) / max(1, len(areas)))


def _decode_files(
    files: Sequence[FileStamp], decode: DecodeFn, num_threads: int
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield the files with their entries, in order; few entries are in memory at once."""
    num_torch_threads = torch.get_num_threads()

    def decode_file(file: FileStamp) -> StoreEntry:
        try:
            return decode(Path(file.path))
        except DataError as error:
            raise DataError(
                f"{file.path}: {error}. It was readable before; restore it, or start a new run."
            ) from error

    # each thread decodes alone; additional threads of torch would only slow them down
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with pool:
            yield from zip(
                files, _map_in_order(pool, decode_file, files, 4 * num_threads), strict=True
            )
    finally:
        torch.set_num_threads(num_torch_threads)


def _map_in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[FileStamp], StoreEntry],
    files: Iterable[FileStamp],
    max_pending: int,
) -> Iterator[StoreEntry]:
    """Yield results in order, with at most ``max_pending`` of them in progress."""
    remaining = iter(files)
    pending: deque[Future[StoreEntry]] = deque(
        pool.submit(function, file) for file in islice(remaining, max_pending)
    )
    try:
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, file) for file in islice(remaining, 1))
    finally:
        for future in pending:
            future.cancel()

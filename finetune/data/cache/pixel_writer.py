"""Decoding images into a store, on all cores, each at most once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finetune.data.cache.array_store import NOT_STORED, StoreEntry
from finetune.data.cache.file_stamp import FileStamp, read_file_stamps
from finetune.data.cache.pixel_store import PixelStore, build_lazy_image
from finetune.data.images.lazy_image import LazyImage, open_image
from finetune.data.images.source import PathSource
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError
from finetune.types import Reporter

DecodeFn = Callable[[Path], StoreEntry]

_NUM_SAMPLED_FILES = 200


def fill_store(
    store: PixelStore,
    paths: Sequence[Path],
    decode: DecodeFn,
    *,
    num_threads: int,
    reporter: Reporter,
) -> NDArray[np.int64]:
    """Decode the images that a store does not hold yet, and return where all of them lie, (N, 5).

    Decoding and resizing leave Python's lock, so that threads use all cores. Another process that
    fills the same store is waited for, and what it stored is not decoded again.

    Args:
        store: Is filled.
        paths: Image files, shape (N,).
        decode: File to what is stored of it.
        num_threads: Decode at once.
        reporter: Told of the progress.

    Raises:
        DataError: A file no longer reads as it did before.
        StorageError: The disk is full or fails.
    """
    files = read_file_stamps(paths)
    with store.lock_for_filling(reporter):
        store.reset_if_mostly_stale()
        places = store.find(files)
        missing = [files[row] for row in np.flatnonzero(places[:, 0] == NOT_STORED.start)]
        if not missing:
            return places
        reporter.start("decoding images into the cache", len(missing))
        try:
            for _ in store.append(_decode_files(missing, decode, num_threads)):
                reporter.advance()
        finally:
            reporter.finish()
        return store.find(files)


class DecodingSource(PathSource):
    """Pictures as a store would hold them, decoded whenever they are asked for.

    Args:
        paths: Image files, shape (N,).
        decode: File to what would be stored of it.
    """

    def __init__(self, paths: Sequence[Path], decode: DecodeFn) -> None:
        super().__init__(paths)
        self.decode = decode

    def open(self, row: int) -> LazyImage:
        """Return the picture of a row.

        Raises:
            DataError: The file cannot be read.
        """
        return build_lazy_image(self.decode(Path(self.paths[row])))


def decode_resized(path: Path, *, shorter_side: int, max_pixels: int) -> StoreEntry:
    """Return an image with its shorter side at most so many pixels, antialiased.

    Raises:
        DataError: The reason for which the file cannot be used, without its path.
    """
    picture = open_image(path, max_pixels=max_pixels)
    height, width = size = (picture.height, picture.width)
    scale = shorter_side / min(size)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = picture.crop((0, 0, width, height), size)
    else:
        pixels = np.asarray(picture.to_pil())
    return StoreEntry(pixels, height, width)


def decode_transformed(path: Path, *, transform: EvalTransform, max_pixels: int) -> StoreEntry:
    """Return an image as every evaluation sees it.

    Raises:
        DataError: The reason for which the file cannot be used, without its path.
    """
    pixels = transform(open_image(path, max_pixels=max_pixels)).pixels
    return StoreEntry(pixels, *pixels.shape[:2])


def estimate_store_bytes(paths: Sequence[Path], *, shorter_side: int) -> int:
    """Return about how much ``shrunk`` stores of some files, from the headers of a few of them."""
    step = max(1, len(paths) // _NUM_SAMPLED_FILES)
    areas = []
    for path in paths[::step]:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Exception:  # each format's plugin raises what it likes; whoever decodes it says why
            continue
        scale = min(1.0, shorter_side / min(width, height))
        areas.append(width * height * scale**2)
    return round(3 * len(paths) * sum(areas) / max(1, len(areas)))


def _decode_files(
    files: Sequence[FileStamp], decode: DecodeFn, num_threads: int
) -> Iterator[tuple[FileStamp, StoreEntry]]:
    """Yield the files with their pixels, in order; few of them are in memory at once."""
    threads = torch.get_num_threads()

    def one(file: FileStamp) -> StoreEntry:
        try:
            return decode(Path(file.path))
        except DataError as error:
            raise DataError(
                f"{file.path}: {error}. It read well before; restore it, or start anew."
            ) from error

    # each thread decodes by itself; torch's own threads on top would only get in the way
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with pool:
            yield from zip(files, _map_in_order(pool, one, files, 4 * num_threads), strict=True)
    finally:
        torch.set_num_threads(threads)


def _map_in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[FileStamp], StoreEntry],
    files: Iterable[FileStamp],
    max_pending: int,
) -> Iterator[StoreEntry]:
    """Yield results in order, with at most ``max_pending`` of them under way."""
    rest = iter(files)
    waiting: deque[Future[StoreEntry]] = deque(
        pool.submit(function, file) for file in islice(rest, max_pending)
    )
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, file) for file in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()

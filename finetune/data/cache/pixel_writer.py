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

from finetune.data.cache.array_store import NOWHERE, Stored
from finetune.data.cache.file_stamp import FileState, file_states
from finetune.data.cache.pixel_store import PixelStore, picture_of
from finetune.data.images.lazy_image import Picture, open_picture
from finetune.data.images.source import NamedRows
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError
from finetune.types import Reporter

Decode = Callable[[Path], Stored]

_SAMPLED_FILES = 200


def fill_store(
    store: PixelStore,
    paths: Sequence[Path],
    decode: Decode,
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
    files = file_states(paths)
    with store.filling(reporter):
        store.forget_waste()
        places = store.find(files)
        missing = [files[row] for row in np.flatnonzero(places[:, 0] == NOWHERE.start)]
        if not missing:
            return places
        reporter.start("decoding images into the cache", len(missing))
        try:
            for _ in store.append(_decoded(missing, decode, num_threads)):
                reporter.advance()
        finally:
            reporter.finish()
        return store.find(files)


class DecodingSource(NamedRows):
    """Pictures as a store would hold them, decoded whenever they are asked for.

    Args:
        paths: Image files, shape (N,).
        decode: File to what would be stored of it.
    """

    def __init__(self, paths: Sequence[Path], decode: Decode) -> None:
        super().__init__(paths)
        self.decode = decode

    def open(self, row: int) -> Picture:
        """Return the picture of a row.

        Raises:
            DataError: The file cannot be read.
        """
        return picture_of(self.decode(Path(self.paths[row])))


def shrunk(path: Path, *, shorter_side: int, max_pixels: int) -> Stored:
    """Return an image with its shorter side at most so many pixels, antialiased.

    Raises:
        DataError: The reason for which the file cannot be used, without its path.
    """
    picture = open_picture(path, max_pixels=max_pixels)
    height, width = size = (picture.height, picture.width)
    scale = shorter_side / min(size)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = picture.crop((0, 0, width, height), size)
    else:
        pixels = np.asarray(picture.image())
    return Stored(pixels, height, width)


def ready(path: Path, *, transform: EvalTransform, max_pixels: int) -> Stored:
    """Return an image as every evaluation sees it.

    Raises:
        DataError: The reason for which the file cannot be used, without its path.
    """
    pixels = transform(open_picture(path, max_pixels=max_pixels)).pixels
    return Stored(pixels, *pixels.shape[:2])


def estimated_bytes(paths: Sequence[Path], *, shorter_side: int) -> int:
    """Return about how much ``shrunk`` stores of some files, from the headers of a few of them."""
    step = max(1, len(paths) // _SAMPLED_FILES)
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


def _decoded(
    files: Sequence[FileState], decode: Decode, num_threads: int
) -> Iterator[tuple[FileState, Stored]]:
    """Yield the files with their pixels, in order; few of them are in memory at once."""
    threads = torch.get_num_threads()

    def one(file: FileState) -> Stored:
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
            yield from zip(files, _in_order(pool, one, files, 4 * num_threads), strict=True)
    finally:
        torch.set_num_threads(threads)


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[FileState], Stored],
    files: Iterable[FileState],
    ahead: int,
) -> Iterator[Stored]:
    """Yield results in order, with at most ``ahead`` of them under way."""
    rest = iter(files)
    waiting: deque[Future[Stored]] = deque(
        pool.submit(function, file) for file in islice(rest, ahead)
    )
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, file) for file in islice(rest, 1))
    finally:
        for future in waiting:
            future.cancel()

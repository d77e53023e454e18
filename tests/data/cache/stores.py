"""Stores of small images that are a function of their number."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.cache.array_store import NOT_STORED, StoreEntry
from finetune.data.cache.file_stamp import FileStamp
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.images.resample import Pixels

SIZES = [(1, 1), (10, 12), (7, 30), (64, 48), (3, 5)]


def make_stamp(number: int) -> FileStamp:
    return FileStamp(f"/photos/bée {number}.jpg", 1000 + number, 10**18 + number)


def make_entry(number: int) -> StoreEntry:
    """Return an image that is a function of its number."""
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return StoreEntry(pixels, height * 3, width * 3 + 1)


def make_entries(numbers: Iterable[int]) -> Iterator[tuple[FileStamp, StoreEntry]]:
    return ((make_stamp(number), make_entry(number)) for number in numbers)


def open_store(root: Path, *, owner: str = "photos") -> PixelStore:
    return PixelStore(root, tag="short-64", owner=owner)


def create_filled_store(root: Path, numbers: Iterable[int], *, owner: str = "photos") -> PixelStore:
    store = open_store(root, owner=owner)
    for _ in store.append(make_entries(numbers)):
        pass
    return store


def find_locations(store: PixelStore, numbers: Iterable[int]) -> NDArray[np.int64]:
    return store.find([make_stamp(number) for number in numbers])


def make_source(store: PixelStore, numbers: Sequence[int]) -> StoredSource:
    paths = [Path(make_stamp(number).path) for number in numbers]
    return StoredSource(store, paths, find_locations(store, numbers))


def read_pixels(source: StoredSource, row: int) -> Pixels:
    return np.asarray(source.open(row).to_pil())


def assert_contains(store: PixelStore, numbers: Sequence[int]) -> None:
    """Check that the store contains these images, bit-identical."""
    source = make_source(store, numbers)
    assert (source.locations[:, 0] != NOT_STORED.start).all()
    for row, number in enumerate(numbers):
        expected = make_entry(number)
        lazy_image = source.open(row)
        assert (lazy_image.height, lazy_image.width) == (expected.full_rows, expected.full_columns)
        np.testing.assert_array_equal(np.asarray(lazy_image.to_pil()), expected.array)


def list_missing(store: PixelStore, numbers: Iterable[int]) -> list[int]:
    """Return the images that are not in the store."""
    numbers = list(numbers)
    locations = find_locations(store, numbers)
    return [n for n, location in zip(numbers, locations, strict=True) if location[0] == -1]

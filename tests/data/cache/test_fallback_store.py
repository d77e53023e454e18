"""Tests of stores that continue in memory: whatever fails, all arrays are found bit-identical."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune.data.cache.array_store import NOT_STORED, StoreEntry
from finetune.data.cache.fallback_store import FallbackStore
from finetune.data.cache.file_stamp import FileStamp
from finetune.data.cache.memory_store import MemoryStores
from finetune.errors import StorageError
from tests.data.cache.stores import make_stamp
from tests.support.helpers import list_tree, mount_tiny_disk

COLUMNS = 250
"""Elements of an array, which takes 1 kB."""


def open_store(root: Path, failures: list[StorageError]) -> FallbackStore:
    return FallbackStore(
        root, tag="f", owner="o", item_bytes=4, content="features", on_failure=failures.append
    )


def make_row(number: int) -> np.ndarray:
    return np.full((1, COLUMNS), number, np.float32)


def make_arrays(numbers: Sequence[int]) -> Iterator[tuple[FileStamp, StoreEntry]]:
    for number in numbers:
        yield make_stamp(number), StoreEntry(make_row(number), 7, 9)


def assert_holds(store: FallbackStore, numbers: Sequence[int]) -> None:
    locations = store.find([make_stamp(number) for number in numbers])
    content = store.memory_map()[0]
    for number, (start, rows, columns, *full) in zip(numbers, locations.tolist(), strict=True):
        assert (rows, columns, full) == (1, COLUMNS, [7, 9])
        stored = content[start : start + 4 * COLUMNS].view(np.float32)
        np.testing.assert_array_equal(stored, make_row(number)[0])


def test_store_on_working_disk_is_the_one_on_disk(tmp_path: Path) -> None:
    failures: list[StorageError] = []
    list(open_store(tmp_path, failures).append(make_arrays(range(5))))
    assert_holds(open_store(tmp_path, failures), range(5))
    assert failures == []


def test_store_without_folder_holds_arrays_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failures: list[StorageError] = []
    store = open_store(tmp_path / "file", failures)
    assert [error.reason for error in failures] == ["a component of the path is a file"]
    with store.lock_for_filling():
        store.reset_if_mostly_stale()
        assert (store.find([make_stamp(0)]) == NOT_STORED).all()
        appended = list(store.append(make_arrays(range(5))))
    assert appended == [make_stamp(number) for number in range(5)]
    assert_holds(store, range(5))
    list(store.append(make_arrays(range(5, 7))))
    assert_holds(store, [6, 0, 5])
    assert (store.find([make_stamp(0)._replace(ctime_ns=99)]) == NOT_STORED).all(), "has changed"
    assert list_tree(tmp_path) == ["file"]


@pytest.mark.parametrize("num_first", [0, 30])
def test_store_whose_disk_fills_up_goes_on_in_memory(tmp_path: Path, num_first: int) -> None:
    failures: list[StorageError] = []
    with mount_tiny_disk(tmp_path / "disk", size="128k") as disk:
        list(open_store(disk, failures).append(make_arrays(range(num_first))))
        store = open_store(disk, failures)
        with store.lock_for_filling():
            store.find([make_stamp(number) for number in range(num_first)])
            consumed = list(store.append(make_arrays(range(num_first, 300))))
        assert len(failures) == 1
        assert consumed == [make_stamp(number) for number in range(num_first, 300)]
        assert_holds(store, range(300))
        list(store.append(make_arrays(range(300, 310))))
        assert len(failures) == 1
        (disk / "other").write_bytes(bytes(16_384))  # what was not indexed is free again
    assert_holds(store, range(310))


def test_store_whose_disk_fills_up_after_a_sync_keeps_what_was_synced(tmp_path: Path) -> None:
    failures: list[StorageError] = []
    with mount_tiny_disk(tmp_path / "disk", size="2m") as disk:
        store = open_store(disk, failures)
        assert len(list(store.append(make_arrays(range(2500))))) == 2500
        assert len(failures) == 1
        assert_holds(store, range(2500))
        assert_holds(open_store(disk, failures), range(1000))
        assert len(failures) == 1


def test_store_whose_disk_has_failed_is_opened_again_in_memory(tmp_path: Path) -> None:
    failures: list[StorageError] = []
    kept = MemoryStores(limit_bytes=20 * 4 * COLUMNS)

    def open_again(tag: str) -> FallbackStore:
        return FallbackStore(
            tmp_path / "file",
            tag=tag,
            owner="o",
            item_bytes=4,
            content="f",
            on_failure=failures.append,
            memory_stores=kept,
        )

    (tmp_path / "file").touch()
    list(open_again("a").append(make_arrays(range(10))))
    list(open_again("b").append(make_arrays(range(5))))
    assert_holds(open_again("a"), range(10))
    assert len(failures) == 2, "the first time of each store"
    store = open_again("b")
    list(store.append(make_arrays(range(5, 12))))
    assert_holds(open_again("b"), range(12))
    assert (open_again("a").find([make_stamp(0)]) == NOT_STORED).all(), "beyond the limit"
    list(store.append(make_arrays(range(12, 30))))
    assert_holds(store, range(30))
    assert (open_again("b").find([make_stamp(0)]) == NOT_STORED).all(), "too large alone"


def test_store_too_large_for_memory_raises_what_the_caller_raises(tmp_path: Path) -> None:
    def refuse(error: StorageError) -> None:
        raise StorageError("set probe.depth=1") from error

    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"probe\.depth=1"):
        FallbackStore(
            tmp_path / "file", tag="f", owner="o", item_bytes=4, content="f", on_failure=refuse
        )

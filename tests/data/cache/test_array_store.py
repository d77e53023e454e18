"""Tests of stores: arrays are found bit-identical or not at all, after any interruption."""

import errno
import os
import pickle
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from finetune.data.cache.array_store import NOT_STORED, ArrayLocation, StoreEntry, get_store_folder
from finetune.data.cache.file_stamp import FileStamp
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.errors import StorageError
from tests.data.cache.stores import (
    SIZES,
    assert_contains,
    create_filled_store,
    find_locations,
    list_missing,
    make_entries,
    make_entry,
    make_source,
    make_stamp,
    open_store,
    read_pixels,
)
from tests.support.helpers import RecordingReporter, mount_tiny_disk
from tests.support.processes import start_process


def test_store_finds_arrays_bit_identical_in_any_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert list_missing(store, range(10)) == list(range(10))
    assert list(store.append(make_entries(range(10)))) == [
        make_stamp(number) for number in range(10)
    ]
    assert_contains(store, range(10))
    assert_contains(store, [7, 3, 3, 0])
    assert list_missing(store, range(12)) == [10, 11]
    location = ArrayLocation(*find_locations(store, [0])[0].tolist())
    assert location == (0, *SIZES[0], 3, 4)


def test_store_reopened_finds_and_appends(tmp_path: Path) -> None:
    create_filled_store(tmp_path, range(5))
    again = open_store(tmp_path)
    assert_contains(again, range(5))
    for _ in again.append(make_entries(range(5, 8))):
        pass
    assert_contains(open_store(tmp_path), range(8))
    sizes = [make_entry(number).array.size for number in range(8)]
    assert (again.folder / "arrays.bin").stat().st_size == sum(sizes)


def test_source_reads_arrays_while_others_are_appended(tmp_path: Path) -> None:
    store = create_filled_store(tmp_path, range(5))
    early = make_source(store, range(5))
    assert early.open(0)
    for _ in store.append(make_entries(range(5, 60))):
        pass
    assert_contains(store, range(60))
    for row in range(5):
        np.testing.assert_array_equal(read_pixels(early, row), make_entry(row).array)


@pytest.mark.parametrize("changed", [{"num_bytes": 1}, {"ctime_ns": 1}, {"path": "/other.jpg"}])
def test_store_changed_file_is_not_found_until_stored_again(
    tmp_path: Path, changed: dict[str, int]
) -> None:
    store = create_filled_store(tmp_path, range(3))
    now = make_stamp(1)._replace(**changed)  # type: ignore[arg-type]
    assert store.find([now])[0].tolist() == list(NOT_STORED)
    for _ in store.append([(now, make_entry(7))]):
        pass
    row = StoredSource(store, [Path(now.path)], store.find([now]))
    np.testing.assert_array_equal(read_pixels(row, 0), make_entry(7).array)
    assert list_missing(store, range(3)) == ([] if "path" in changed else [1])
    assert_contains(store, [0, 2])


def test_store_folder_depends_on_tag_and_owner(tmp_path: Path) -> None:
    one = create_filled_store(tmp_path, range(3))
    others = [
        PixelStore(tmp_path, tag="short-65", owner="photos"),
        PixelStore(tmp_path, tag="short-64", owner="other"),
        PixelStore(tmp_path, tag="short-64", owner=os.fsdecode(b"caf\xe9")),
    ]
    folders = {store.folder for store in (one, *others)}
    assert len(folders) == 4
    assert one.folder == get_store_folder(tmp_path, tag="short-64", owner="photos")
    assert one.folder.name.startswith("short-64-")
    for other in others:
        assert list_missing(other, range(3)) == [0, 1, 2]


def test_source_length_and_names(tmp_path: Path) -> None:
    source = make_source(create_filled_store(tmp_path, range(3)), [2, 0])
    assert len(source) == 2
    assert [source.get_name(row) for row in range(2)] == [make_stamp(2).path, make_stamp(0).path]


def test_source_pickles_without_pixels(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    large = StoreEntry(np.full((1000, 1000, 3), 7, np.uint8), 1000, 1000)
    for _ in store.append((make_stamp(number), large) for number in range(3)):
        pass
    source = make_source(store, range(3))
    assert source.open(1)
    packed = pickle.dumps(source)
    assert len(packed) < 10_000
    np.testing.assert_array_equal(read_pixels(pickle.loads(packed), 2), large.array)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory in /proc")
def test_source_memory_does_not_grow_with_store(tmp_path: Path) -> None:
    store = create_filled_store(tmp_path, range(3))
    beyond = 1 << 35
    with (store.folder / "arrays.bin").open("r+b") as stream:
        stream.truncate(beyond)  # a hole, which takes no space
    step = beyond // 32
    locations = np.array([[number * step, 100, 100, 100, 100] for number in range(1, 31)])
    source = StoredSource(store, [Path("x")] * len(locations), locations)
    before = measure_resident_bytes()
    for row in range(len(locations)):
        assert not source.open(row).crop((0, 0, 100, 100), (50, 50)).any()
    assert measure_resident_bytes() - before < 50_000_000


def measure_resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_append_failing_iterator_keeps_earlier_arrays(tmp_path: Path) -> None:
    def failing_images() -> Iterator[tuple[FileStamp, StoreEntry]]:
        yield from make_entries(range(4))
        raise ValueError("no fifth")

    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="no fifth"):
        list(store.append(failing_images()))
    assert_contains(store, range(4))
    assert list_missing(store, range(6)) == [4, 5]


def test_append_closed_early_keeps_earlier_arrays(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    appending = store.append(make_entries(range(10)))
    for _ in range(4):
        next(appending)
    appending.close()  # type: ignore[attr-defined]
    assert_contains(store, range(4))
    assert len(list_missing(store, range(10))) == 6


def append_and_die(root: Path, count: int) -> None:
    store = open_store(root)
    for number, _ in enumerate(store.append(make_entries(range(10_000)))):
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.runs
@pytest.mark.parametrize("count", [5, 1100])
def test_append_killed_process_leaves_consistent_store(tmp_path: Path, count: int) -> None:
    with start_process(append_and_die, tmp_path, count) as child:
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    store = open_store(tmp_path)
    numbers = range(count + 200)
    lost = list_missing(store, numbers)
    assert set(range(count // 1000 * 1000)).isdisjoint(lost)
    assert set(lost) >= set(range(count + 1, count + 200))
    for _ in store.append(make_entries(lost)):
        pass
    assert_contains(store, numbers)
    undisturbed = create_filled_store(tmp_path / "undisturbed", numbers)
    assert (store.folder / "arrays.bin").read_bytes() == (
        undisturbed.folder / "arrays.bin"
    ).read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_store_truncated_file_loses_arrays_permanently(tmp_path: Path, kept: int) -> None:
    store = create_filled_store(tmp_path, range(8))
    end = sum(make_entry(number).array.size for number in range(kept))
    with (store.folder / "arrays.bin").open("r+b") as stream:
        stream.truncate(end + (2 if kept else 0))
    store = open_store(tmp_path)
    assert list_missing(store, range(8)) == list(range(kept, 8))
    # the file grows over the locations of all lost arrays
    for _ in store.append(make_entries([5, *range(100, 130)])):
        pass
    assert list_missing(store, range(8)) == [number for number in range(kept, 8) if number != 5]
    assert_contains(store, [*range(kept), 5, *range(100, 130)])


def test_store_missing_arrays_file_is_rebuilt(tmp_path: Path) -> None:
    store = create_filled_store(tmp_path, range(4))
    (store.folder / "arrays.bin").unlink()
    store = open_store(tmp_path)
    assert list_missing(store, range(4)) == [0, 1, 2, 3]
    for _ in store.append(make_entries(range(2, 6))):
        pass
    assert_contains(store, range(2, 6))
    assert list_missing(store, range(4)) == [0, 1]


def write_garbage(index: Path) -> None:
    index.write_bytes(b"garbage" * 1000)


def truncate_to_zero(index: Path) -> None:
    index.write_bytes(b"")


def truncate_to_page(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:4096])


def overwrite_tail(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    index.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [write_garbage, truncate_to_zero, truncate_to_page, overwrite_tail]
)
def test_store_damaged_index_is_rebuilt_without_affecting_readers(
    tmp_path: Path, damage: object
) -> None:
    store = create_filled_store(tmp_path, range(300))
    reader = make_source(store, range(300))
    with (store.folder / "arrays.bin").open("rb") as in_use:
        assert reader.open(0)
        assert callable(damage)
        damage(store.folder / "index.sqlite")
        again = open_store(tmp_path)
        assert len(list_missing(again, range(300))) == 300
        for _ in again.append(make_entries(range(290, 320))):
            pass
        assert_contains(again, range(290, 320))
        # truncating a mapped file would crash the process that reads it
        assert os.fstat(in_use.fileno()).st_size == sum(
            make_entry(n).array.size for n in range(300)
        )
    for row in (0, 150, 299):
        np.testing.assert_array_equal(read_pixels(reader, row), make_entry(row).array)
    assert sorted(set(range(300)) - set(list_missing(open_store(tmp_path), range(300)))) == list(
        range(290, 300)
    )


def test_append_full_disk_raises_storage_error_with_settings(tmp_path: Path) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="400k") as disk:
        store = create_filled_store(disk, range(20))
        large = StoreEntry(np.zeros((400, 400, 3), np.uint8), 400, 400)
        with pytest.raises(StorageError) as caught:
            list(store.append([(make_stamp(100), large)]))
        message = str(caught.value)
        assert str(store.folder) in message
        assert "no space" in message
        assert "data.cache=PATH" in message
        assert "data.cache=off" in message
        assert "FINETUNE_CACHE" in message
        assert "--output" not in message
        assert_contains(store, range(20))
        assert list_missing(store, [100]) == [100]
        assert_contains(create_filled_store(disk, range(20, 25)), range(25))


@pytest.mark.parametrize("free", [0, 4096, 8192, 40_000])
def test_store_on_full_disk_raises_storage_error(tmp_path: Path, free: int) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="128k") as disk:
        (disk / "full").write_bytes(bytes(128 * 1024 - 4096 - free))
        with pytest.raises(StorageError, match=r"no space|full.*data\.cache=off"):
            create_filled_store(disk / "cache", range(20))


def test_store_root_below_file_raises_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(StorageError, match=r"cache.*file.*data\.cache=PATH"):
        open_store(tmp_path / "cache")


def test_store_file_system_without_locks_raises_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("finetune.data.cache.array_store.fcntl.flock", no_locks)
    with pytest.raises(StorageError, match=r"Function not implemented.*data\.cache=off"):
        open_store(tmp_path / "cache")


def test_append_failing_sync_does_not_index_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = create_filled_store(tmp_path, range(3))
    monkeypatch.setattr("finetune.data.cache.array_store.os.fsync", fails)
    with pytest.raises(StorageError, match=r"data\.cache=PATH"):
        list(store.append(make_entries(range(3, 6))))
    monkeypatch.undo()
    assert list_missing(store, range(6)) == [3, 4, 5]
    assert_contains(create_filled_store(tmp_path, range(3, 6)), range(6))


def store_changed(store: PixelStore, numbers: Iterable[int], *, change: int) -> None:
    """Store images as files that have changed ``change`` times."""
    later = [(make_stamp(n)._replace(ctime_ns=change), make_entry(n + change)) for n in numbers]
    for _ in store.append(later):
        pass


def test_reset_clears_store_when_over_half_is_stale(tmp_path: Path) -> None:
    store = create_filled_store(tmp_path, range(10))
    full = (store.folder / "arrays.bin").stat().st_size
    store_changed(store, range(5), change=5)
    store.reset_if_mostly_stale()
    assert list_missing(store, range(5, 10)) == [], "a third is stale"
    store_changed(store, range(10), change=10)
    store.reset_if_mostly_stale()
    locations = store.find([make_stamp(number)._replace(ctime_ns=10) for number in range(10)])
    assert (locations[:, 0] == NOT_STORED.start).all()
    store_changed(store, range(10), change=10)
    assert (store.folder / "arrays.bin").stat().st_size == full


def test_source_of_replaced_store_keeps_pixels_but_copy_raises_storage_error(
    tmp_path: Path,
) -> None:
    store = create_filled_store(tmp_path, range(5))
    source = make_source(store, range(5))
    packed = pickle.dumps(source)
    for change in (5, 10, 15):
        store_changed(open_store(tmp_path), range(5), change=change)
        open_store(tmp_path).reset_if_mostly_stale()
    store_changed(open_store(tmp_path), range(5), change=3)
    for row in range(5):
        np.testing.assert_array_equal(read_pixels(source, row), make_entry(row).array)
    with pytest.raises(StorageError, match=r"Another run .*short-64.* --resume"):
        pickle.loads(packed).open(0)


def test_source_copy_of_removed_store_raises_storage_error(tmp_path: Path) -> None:
    source = make_source(create_filled_store(tmp_path, range(5)), range(5))
    packed = pickle.dumps(source)
    shutil.rmtree(source.store.folder)
    np.testing.assert_array_equal(read_pixels(source, 3), make_entry(3).array)
    with pytest.raises(StorageError, match=r"short-64.*removed.*--resume"):
        pickle.loads(packed).open(0)


def test_lock_for_filling_reports_waiting(tmp_path: Path) -> None:
    store, recorder = open_store(tmp_path), RecordingReporter()
    with store.lock_for_filling(recorder):
        thread = threading.Thread(target=lambda: store.lock_for_filling(recorder).__enter__())
        thread.start()
        end = time.monotonic() + 20
        while not recorder.notes:
            assert time.monotonic() < end
            time.sleep(0.01)
    thread.join(20)
    assert not thread.is_alive()
    assert len(recorder.notes) == 1
    assert str(store.folder) in recorder.notes[0]


def test_lock_for_filling_is_exclusive(tmp_path: Path) -> None:
    store, other = open_store(tmp_path), open_store(tmp_path)
    order = []

    def second() -> None:
        with other.lock_for_filling():
            order.append("second")

    with store.lock_for_filling():
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_store_index_is_sqlite(tmp_path: Path) -> None:
    store = create_filled_store(tmp_path, range(3))
    with sqlite3.connect(store.folder / "index.sqlite") as index:
        rows = index.execute("SELECT path, bytes, ctime_ns FROM arrays ORDER BY path").fetchall()
    index.close()
    assert rows == [tuple(make_stamp(number)) for number in range(3)]

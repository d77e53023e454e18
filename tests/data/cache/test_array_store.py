"""What was stored is found again to the bit, or not at all, whatever happened in between."""

import errno
import os
import pickle
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.data.cache.array_store import NOT_STORED, ArrayLocation, StoreEntry, get_store_folder
from finetune.data.cache.eviction import evict_to_fit, measure_store_bytes
from finetune.data.cache.file_stamp import FileStamp, read_file_stamps
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.images.resample import Pixels
from finetune.errors import StorageError
from tests.support.helpers import Recorder, tiny_disk
from tests.support.processes import get_fork_context, start_process

SIZES = [(1, 1), (10, 12), (7, 30), (64, 48), (3, 5)]


def file(number: int) -> FileStamp:
    return FileStamp(f"/photos/bée {number}.jpg", 1000 + number, 10**18 + number)


def image(number: int) -> StoreEntry:
    """Return an image that depends on its number alone."""
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return StoreEntry(pixels, height * 3, width * 3 + 1)


def images(numbers: Iterable[int]) -> Iterator[tuple[FileStamp, StoreEntry]]:
    return ((file(number), image(number)) for number in numbers)


def opened(root: Path, *, owner: str = "photos") -> PixelStore:
    return PixelStore(root, tag="short-64", owner=owner)


def filled(root: Path, numbers: Iterable[int], *, owner: str = "photos") -> PixelStore:
    store = opened(root, owner=owner)
    for _ in store.append(images(numbers)):
        pass
    return store


def places_of(store: PixelStore, numbers: Iterable[int]) -> NDArray[np.int64]:
    return store.find([file(number) for number in numbers])


def source_of(store: PixelStore, numbers: Sequence[int]) -> StoredSource:
    paths = [Path(file(number).path) for number in numbers]
    return StoredSource(store, paths, places_of(store, numbers))


def pixels_in(source: StoredSource, row: int) -> Pixels:
    return np.asarray(source.open(row).to_pil())


def assert_holds(store: PixelStore, numbers: Sequence[int]) -> None:
    """Fail unless the store holds these images, to the bit."""
    source = source_of(store, numbers)
    assert (source.locations[:, 0] != NOT_STORED.start).all()
    for row, number in enumerate(numbers):
        expected = image(number)
        picture = source.open(row)
        assert (picture.height, picture.width) == (expected.full_rows, expected.full_columns)
        np.testing.assert_array_equal(np.asarray(picture.to_pil()), expected.array)


def missing(store: PixelStore, numbers: Iterable[int]) -> list[int]:
    """Return the images that the store does not know."""
    numbers = list(numbers)
    places = places_of(store, numbers)
    return [number for number, place in zip(numbers, places, strict=True) if place[0] == -1]


def test_what_was_stored_is_found_to_the_bit_in_any_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert missing(store, range(10)) == list(range(10))
    assert list(store.append(images(range(10)))) == [file(number) for number in range(10)]
    assert_holds(store, range(10))
    assert_holds(store, [7, 3, 3, 0])
    assert missing(store, range(12)) == [10, 11]
    place = ArrayLocation(*places_of(store, [0])[0].tolist())
    assert place == (0, *SIZES[0], 3, 4)


def test_another_process_object_finds_and_adds(tmp_path: Path) -> None:
    filled(tmp_path, range(5))
    again = opened(tmp_path)
    assert_holds(again, range(5))
    for _ in again.append(images(range(5, 8))):
        pass
    assert_holds(opened(tmp_path), range(8))
    sizes = [image(number).array.size for number in range(8)]
    assert (again.folder / "arrays.bin").stat().st_size == sum(sizes)


def test_a_source_reads_what_was_added_after_another_had_begun(tmp_path: Path) -> None:
    store = filled(tmp_path, range(5))
    early = source_of(store, range(5))
    assert early.open(0)
    for _ in store.append(images(range(5, 60))):
        pass
    assert_holds(store, range(60))
    for row in range(5):
        np.testing.assert_array_equal(pixels_in(early, row), image(row).array)


@pytest.mark.parametrize("changed", [{"num_bytes": 1}, {"ctime_ns": 1}, {"path": "/other.jpg"}])
def test_a_changed_file_is_not_found_until_it_is_stored_anew(
    tmp_path: Path, changed: dict[str, int]
) -> None:
    store = filled(tmp_path, range(3))
    now = file(1)._replace(**changed)  # type: ignore[arg-type]
    assert store.find([now])[0].tolist() == list(NOT_STORED)
    for _ in store.append([(now, image(7))]):
        pass
    row = StoredSource(store, [Path(now.path)], store.find([now]))
    np.testing.assert_array_equal(pixels_in(row, 0), image(7).array)
    assert missing(store, range(3)) == ([] if "path" in changed else [1])
    assert_holds(store, [0, 2])


def test_forms_owners_and_formats_have_stores_of_their_own(tmp_path: Path) -> None:
    one = filled(tmp_path, range(3))
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
        assert missing(other, range(3)) == [0, 1, 2]


def test_a_source_names_files_and_knows_how_many_there_are(tmp_path: Path) -> None:
    source = source_of(filled(tmp_path, range(3)), [2, 0])
    assert len(source) == 2
    assert [source.get_name(row) for row in range(2)] == [file(2).path, file(0).path]


def test_a_source_travels_without_its_pixels(tmp_path: Path) -> None:
    store = opened(tmp_path)
    large = StoreEntry(np.full((1000, 1000, 3), 7, np.uint8), 1000, 1000)
    for _ in store.append((file(number), large) for number in range(3)):
        pass
    source = source_of(store, range(3))
    assert source.open(1)
    packed = pickle.dumps(source)
    assert len(packed) < 10_000
    np.testing.assert_array_equal(pixels_in(pickle.loads(packed), 2), large.array)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory in /proc")
def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    store = filled(tmp_path, range(3))
    beyond = 1 << 35
    with (store.folder / "arrays.bin").open("r+b") as stream:
        stream.truncate(beyond)  # a hole, which takes no space
    step = beyond // 32
    places = np.array([[number * step, 100, 100, 100, 100] for number in range(1, 31)])
    source = StoredSource(store, [Path("x")] * len(places), places)
    before = resident_bytes()
    for row in range(len(places)):
        assert not source.open(row).crop((0, 0, 100, 100), (50, 50)).any()
    assert resident_bytes() - before < 50_000_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_an_image_that_cannot_be_had_leaves_those_before_it(tmp_path: Path) -> None:
    def some() -> Iterator[tuple[FileStamp, StoreEntry]]:
        yield from images(range(4))
        raise ValueError("no fifth")

    store = opened(tmp_path)
    with pytest.raises(ValueError, match="no fifth"):
        list(store.append(some()))
    assert_holds(store, range(4))
    assert missing(store, range(6)) == [4, 5]


def test_who_stops_half_way_keeps_what_there_is(tmp_path: Path) -> None:
    store = opened(tmp_path)
    some = store.append(images(range(10)))
    for _ in range(4):
        next(some)
    some.close()  # type: ignore[attr-defined]
    assert_holds(store, range(4))
    assert len(missing(store, range(10))) == 6


def append_and_die(root: Path, count: int) -> None:
    store = opened(root)
    for number, _ in enumerate(store.append(images(range(10_000)))):
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [5, 1100])
def test_a_killed_process_leaves_a_store_that_goes_on(tmp_path: Path, count: int) -> None:
    with start_process(append_and_die, tmp_path, count) as child:
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    store = opened(tmp_path)
    numbers = range(count + 200)
    lost = missing(store, numbers)
    assert set(range(count // 1000 * 1000)).isdisjoint(lost)
    assert set(lost) >= set(range(count + 1, count + 200))
    for _ in store.append(images(lost)):
        pass
    assert_holds(store, numbers)
    undisturbed = filled(tmp_path / "undisturbed", numbers)
    assert (store.folder / "arrays.bin").read_bytes() == (
        undisturbed.folder / "arrays.bin"
    ).read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_what_a_truncated_file_has_lost_is_lost_for_good(tmp_path: Path, kept: int) -> None:
    store = filled(tmp_path, range(8))
    end = sum(image(number).array.size for number in range(kept))
    with (store.folder / "arrays.bin").open("r+b") as stream:
        stream.truncate(end + (2 if kept else 0))
    store = opened(tmp_path)
    assert missing(store, range(8)) == list(range(kept, 8))
    # the file grows over the places of all that was lost
    for _ in store.append(images([5, *range(100, 130)])):
        pass
    assert missing(store, range(8)) == [number for number in range(kept, 8) if number != 5]
    assert_holds(store, [*range(kept), 5, *range(100, 130)])


def test_a_file_of_pixels_that_is_gone_is_begun_anew(tmp_path: Path) -> None:
    store = filled(tmp_path, range(4))
    (store.folder / "arrays.bin").unlink()
    store = opened(tmp_path)
    assert missing(store, range(4)) == [0, 1, 2, 3]
    for _ in store.append(images(range(2, 6))):
        pass
    assert_holds(store, range(2, 6))
    assert missing(store, range(4)) == [0, 1]


def garbage(index: Path) -> None:
    index.write_bytes(b"garbage" * 1000)


def emptied(index: Path) -> None:
    index.write_bytes(b"")


def cut(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:4096])


def holed(index: Path) -> None:
    data = bytearray(index.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    index.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, emptied, cut, holed])
def test_a_damaged_index_is_begun_anew_and_disturbs_nobody(tmp_path: Path, damage: object) -> None:
    store = filled(tmp_path, range(300))
    reader = source_of(store, range(300))
    with (store.folder / "arrays.bin").open("rb") as in_use:
        assert reader.open(0)
        assert callable(damage)
        damage(store.folder / "index.sqlite")
        again = opened(tmp_path)
        assert len(missing(again, range(300))) == 300
        for _ in again.append(images(range(290, 320))):
            pass
        assert_holds(again, range(290, 320))
        # a mapped file that becomes shorter would end the process that reads it
        assert os.fstat(in_use.fileno()).st_size == sum(image(n).array.size for n in range(300))
    for row in (0, 150, 299):
        np.testing.assert_array_equal(pixels_in(reader, row), image(row).array)
    assert sorted(set(range(300)) - set(missing(opened(tmp_path), range(300)))) == list(
        range(290, 300)
    )


def test_a_full_disk_is_one_error_that_names_the_way_out(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", size="400k") as disk:
        store = filled(disk, range(20))
        large = StoreEntry(np.zeros((400, 400, 3), np.uint8), 400, 400)
        with pytest.raises(StorageError) as caught:
            list(store.append([(file(100), large)]))
        message = str(caught.value)
        assert message.startswith(f"Cannot write {store.folder}: no space is left on the device. ")
        assert "data.cache=PATH" in message
        assert "data.cache=off" in message
        assert "FINETUNE_CACHE" in message
        assert "--output" not in message
        assert_holds(store, range(20))
        assert missing(store, [100]) == [100]
        assert_holds(filled(disk, range(20, 25)), range(25))


@pytest.mark.parametrize("free", [0, 4096, 8192, 40_000])
def test_a_disk_that_is_full_from_the_start_is_the_same_error(tmp_path: Path, free: int) -> None:
    with tiny_disk(tmp_path / "disk", size="128k") as disk:
        (disk / "full").write_bytes(bytes(128 * 1024 - 4096 - free))
        with pytest.raises(StorageError, match=r"no space is left|full.*data\.cache=off"):
            filled(disk / "cache", range(20))


def test_a_place_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(StorageError, match=r"a part of the path is a file\. .*data\.cache=PATH"):
        opened(tmp_path / "cache")


def test_a_place_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("finetune.data.cache.array_store.fcntl.flock", no_locks)
    with pytest.raises(StorageError, match=r"Function not implemented.*data\.cache=off"):
        opened(tmp_path / "cache")


def test_pixels_that_are_not_safe_on_disk_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = filled(tmp_path, range(3))
    monkeypatch.setattr("finetune.data.cache.array_store.os.fsync", fails)
    with pytest.raises(StorageError, match=r"the device failed.*data\.cache=PATH"):
        list(store.append(images(range(3, 6))))
    monkeypatch.undo()
    assert missing(store, range(6)) == [3, 4, 5]
    assert_holds(filled(tmp_path, range(3, 6)), range(6))


def stored_anew(store: PixelStore, numbers: Iterable[int], *, change: int) -> None:
    """Store images as files that have changed ``change`` times."""
    later = [(file(n)._replace(ctime_ns=change), image(n + change)) for n in numbers]
    for _ in store.append(later):
        pass


def test_pixels_of_changed_files_are_dropped_when_they_are_most(tmp_path: Path) -> None:
    store = filled(tmp_path, range(10))
    full = (store.folder / "arrays.bin").stat().st_size
    stored_anew(store, range(5), change=5)
    store.reset_if_mostly_stale()
    assert missing(store, range(5, 10)) == [], "a third of it is waste"
    stored_anew(store, range(10), change=10)
    store.reset_if_mostly_stale()
    places = store.find([file(number)._replace(ctime_ns=10) for number in range(10)])
    assert (places[:, 0] == NOT_STORED.start).all()
    stored_anew(store, range(10), change=10)
    assert (store.folder / "arrays.bin").stat().st_size == full


def test_who_uses_a_store_that_is_begun_anew_keeps_its_pixels_or_is_told(tmp_path: Path) -> None:
    store = filled(tmp_path, range(5))
    source = source_of(store, range(5))
    packed = pickle.dumps(source)
    for change in (5, 10, 15):
        stored_anew(opened(tmp_path), range(5), change=change)
        opened(tmp_path).reset_if_mostly_stale()
    stored_anew(opened(tmp_path), range(5), change=3)
    for row in range(5):
        np.testing.assert_array_equal(pixels_in(source, row), image(row).array)
    with pytest.raises(StorageError, match=r"Another run has begun .*short-64.* --resume"):
        pickle.loads(packed).open(0)


def test_a_copy_whose_store_is_gone_is_told(tmp_path: Path) -> None:
    source = source_of(filled(tmp_path, range(5)), range(5))
    packed = pickle.dumps(source)
    shutil.rmtree(source.store.folder)
    np.testing.assert_array_equal(pixels_in(source, 3), image(3).array)
    with pytest.raises(StorageError, match=r"short-64.* is gone.*--resume"):
        pickle.loads(packed).open(0)


def test_who_waits_for_another_says_so(tmp_path: Path) -> None:
    store, recorder = opened(tmp_path), Recorder()
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


def test_only_one_fills_at_a_time(tmp_path: Path) -> None:
    store, other = opened(tmp_path), opened(tmp_path)
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


def test_files_are_known_by_size_and_by_a_time_that_nothing_sets_back(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    os.utime(path, ns=(5, 1234567890123456789))
    before, gone = read_file_stamps([path, tmp_path / "gone.jpg"])
    assert before == FileStamp(str(path), 5, path.stat().st_ctime_ns)
    assert gone == FileStamp(str(tmp_path / "gone.jpg"), -1, -1)
    time.sleep(0.02)
    path.write_bytes(b"54321")
    os.utime(path, ns=(5, 1234567890123456789))  # as archives and rsync do
    assert read_file_stamps([path]) != [before]


def three_stores(root: Path) -> list[Path]:
    """Make stores that no one uses, of which the second was used longest ago, then the first."""
    folders = []
    for owner, used in (("a", 2_000), ("b", 1_000), ("c", 3_000)):
        store = filled(root, range(100), owner=owner)
        os.utime(store.folder / "arrays.bin", (used, used))
        folders.append(store.folder)
    del store
    return folders


def test_the_store_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folders = three_stores(tmp_path)
    size = measure_store_bytes(folders[0])
    assert size == sum(path.stat().st_size for path in folders[0].iterdir()) > 100_000
    assert evict_to_fit(tmp_path, needed_bytes=0, limit_bytes=3 * size)
    assert evict_to_fit(tmp_path, needed_bytes=size, limit_bytes=4 * size)
    assert [folder.exists() for folder in folders] == [True, True, True]
    assert evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=3 * size)
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert evict_to_fit(tmp_path, needed_bytes=2 * size, limit_bytes=3 * size)
    assert [folder.exists() for folder in folders] == [False, False, True]
    assert not evict_to_fit(tmp_path, needed_bytes=2 * size, limit_bytes=size)
    assert not any(folder.exists() for folder in folders)
    assert measure_store_bytes(folders[0]) == 0


def test_opening_a_store_is_using_it(tmp_path: Path) -> None:
    folders = three_stores(tmp_path)
    size = measure_store_bytes(folders[0])
    assert opened(tmp_path, owner="b").folder == folders[1]
    assert evict_to_fit(tmp_path, needed_bytes=0, limit_bytes=2 * size)
    assert [folder.exists() for folder in folders] == [False, True, True]


@pytest.mark.parametrize("name", ["photos", "short-64", "x-0123456789abcdeg"])
def test_what_is_no_store_stays(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.mkdir()
    (mine / "arrays.bin").write_bytes(bytes(1000))
    assert evict_to_fit(tmp_path, needed_bytes=0, limit_bytes=0)
    assert (mine / "arrays.bin").exists()


def test_a_store_beside_which_something_else_lies_stays(tmp_path: Path) -> None:
    folders = three_stores(tmp_path)
    (folders[1] / "thesis.tex").touch()
    evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    assert [folder.exists() for folder in folders] == [False, True, False]


def test_room_where_there_is_nothing_yet(tmp_path: Path) -> None:
    assert evict_to_fit(tmp_path / "new", needed_bytes=5, limit_bytes=5)
    assert not evict_to_fit(tmp_path / "new", needed_bytes=6, limit_bytes=5)


def use_store(root: Path, ready: Event) -> None:
    store = opened(root, owner="b")
    ready.set()
    time.sleep(60)
    del store


def test_a_store_that_a_living_process_uses_stays(tmp_path: Path) -> None:
    folders = three_stores(tmp_path)
    ready = get_fork_context().Event()
    with start_process(use_store, tmp_path, ready) as child:
        assert ready.wait(60)
        assert not evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
        assert [folder.exists() for folder in folders] == [False, True, False]
        child.kill()
        child.join(10)
        assert not evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
        assert not folders[1].exists()


def test_a_store_that_this_process_uses_stays_as_long_as_it_is_used(tmp_path: Path) -> None:
    store = filled(tmp_path, range(10))
    source = source_of(store, range(10))
    folder = store.folder
    del store
    assert not evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    np.testing.assert_array_equal(pixels_in(source, 3), image(3).array)
    del source
    evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    assert not folder.exists()


def clear(root: Path, together: Barrier) -> None:
    together.wait(60)
    assert not evict_to_fit(root, needed_bytes=1, limit_bytes=0)


def test_two_processes_make_room_at_once(tmp_path: Path) -> None:
    for owner in range(12):
        filled(tmp_path, range(3), owner=str(owner))
    together = get_fork_context().Barrier(2)
    with start_process(clear, tmp_path, together) as one, start_process(clear, tmp_path, together) as other:
        for child in (one, other):
            child.join(60)
            assert child.exitcode == 0
    assert list(tmp_path.glob("*/*")) == []


def clear_until(root: Path, ready: Event, done: Event) -> None:
    ready.set()
    while not done.is_set():
        evict_to_fit(root, needed_bytes=1, limit_bytes=0)


def test_a_store_is_whole_or_new_however_its_removal_falls(tmp_path: Path) -> None:
    ready, done = get_fork_context().Event(), get_fork_context().Event()
    with start_process(clear_until, tmp_path, ready, done) as child:
        assert ready.wait(60)
        new, end = 0, time.monotonic() + 60
        while new < 6:
            assert time.monotonic() < end, "nothing is removed in between"
            store = opened(tmp_path)
            lost = missing(store, range(3))
            assert lost in ([], [0, 1, 2])
            new += bool(lost)
            for _ in store.append(images(lost)):
                pass
            assert_holds(store, range(3))
            del store
        done.set()
        child.join(60)
        assert child.exitcode == 0


@pytest.mark.parametrize("gone", ["arrays.bin", "index.sqlite", "in-use.lock"])
def test_what_an_ended_removal_left_is_begun_anew_or_removed(tmp_path: Path, gone: str) -> None:
    folder = filled(tmp_path, range(5)).folder
    (folder / gone).unlink()
    store = opened(tmp_path)
    for _ in store.append(images(missing(store, range(5)))):
        pass
    assert_holds(store, range(5))
    (folder / gone).unlink()
    del store
    evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    assert not (folder / "arrays.bin").exists()


def test_the_index_is_plain_sqlite(tmp_path: Path) -> None:
    store = filled(tmp_path, range(3))
    with sqlite3.connect(store.folder / "index.sqlite") as index:
        rows = index.execute("SELECT path, bytes, ctime_ns FROM arrays ORDER BY path").fetchall()
    index.close()
    assert rows == [tuple(file(number)) for number in range(3)]

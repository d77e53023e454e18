"""Tests of cache eviction."""

import os
import time
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np
import pytest

from finetune.data.cache.eviction import evict_to_fit, measure_store_bytes
from tests.data.cache.stores import (
    assert_contains,
    create_filled_store,
    list_missing,
    make_entries,
    make_entry,
    make_source,
    open_store,
    read_pixels,
)
from tests.support.processes import get_fork_context, start_process


def create_three_stores(root: Path) -> list[Path]:
    """Create unused stores; the second was used longest ago, then the first."""
    folders = []
    for owner, used in (("a", 2_000), ("b", 1_000), ("c", 3_000)):
        store = create_filled_store(root, range(100), owner=owner)
        os.utime(store.folder / "arrays.bin", (used, used))
        folders.append(store.folder)
    del store
    return folders


def test_evict_removes_least_recently_used_first(tmp_path: Path) -> None:
    folders = create_three_stores(tmp_path)
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


def test_evict_opening_store_counts_as_use(tmp_path: Path) -> None:
    folders = create_three_stores(tmp_path)
    size = measure_store_bytes(folders[0])
    assert open_store(tmp_path, owner="b").folder == folders[1]
    assert evict_to_fit(tmp_path, needed_bytes=0, limit_bytes=2 * size)
    assert [folder.exists() for folder in folders] == [False, True, True]


@pytest.mark.parametrize("name", ["photos", "short-64", "x-0123456789abcdeg"])
def test_evict_other_folders_stay(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.mkdir()
    (mine / "arrays.bin").write_bytes(bytes(1000))
    assert evict_to_fit(tmp_path, needed_bytes=0, limit_bytes=0)
    assert (mine / "arrays.bin").exists()


def test_evict_store_with_foreign_file_stays(tmp_path: Path) -> None:
    folders = create_three_stores(tmp_path)
    (folders[1] / "thesis.tex").touch()
    evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    assert [folder.exists() for folder in folders] == [False, True, False]


def test_evict_in_missing_root(tmp_path: Path) -> None:
    assert evict_to_fit(tmp_path / "new", needed_bytes=5, limit_bytes=5)
    assert not evict_to_fit(tmp_path / "new", needed_bytes=6, limit_bytes=5)


def use_store(root: Path, ready: Event) -> None:
    store = open_store(root, owner="b")
    ready.set()
    time.sleep(60)
    del store


def test_evict_store_used_by_other_process_stays(tmp_path: Path) -> None:
    folders = create_three_stores(tmp_path)
    ready = get_fork_context().Event()
    with start_process(use_store, tmp_path, ready) as child:
        assert ready.wait(60)
        assert not evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
        assert [folder.exists() for folder in folders] == [False, True, False]
        child.kill()
        child.join(10)
        assert not evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
        assert not folders[1].exists()


def test_evict_store_used_by_this_process_stays(tmp_path: Path) -> None:
    store = create_filled_store(tmp_path, range(10))
    source = make_source(store, range(10))
    folder = store.folder
    del store
    assert not evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    np.testing.assert_array_equal(read_pixels(source, 3), make_entry(3).array)
    del source
    evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    assert not folder.exists()


def evict_all(root: Path, together: Barrier) -> None:
    together.wait(60)
    assert not evict_to_fit(root, needed_bytes=1, limit_bytes=0)


def test_evict_two_processes_at_once(tmp_path: Path) -> None:
    for owner in range(12):
        create_filled_store(tmp_path, range(3), owner=str(owner))
    together = get_fork_context().Barrier(2)
    with (
        start_process(evict_all, tmp_path, together) as one,
        start_process(evict_all, tmp_path, together) as other,
    ):
        for child in (one, other):
            child.join(60)
            assert child.exitcode == 0
    assert list(tmp_path.glob("*/*")) == []


def evict_until(root: Path, ready: Event, done: Event) -> None:
    ready.set()
    while not done.is_set():
        evict_to_fit(root, needed_bytes=1, limit_bytes=0)


def test_evict_during_opening_leaves_complete_or_new_store(tmp_path: Path) -> None:
    ready, done = get_fork_context().Event(), get_fork_context().Event()
    with start_process(evict_until, tmp_path, ready, done) as child:
        assert ready.wait(60)
        new, end = 0, time.monotonic() + 60
        while new < 6:
            assert time.monotonic() < end, "the other process removes nothing"
            store = open_store(tmp_path)
            lost = list_missing(store, range(3))
            assert lost in ([], [0, 1, 2])
            new += bool(lost)
            for _ in store.append(make_entries(lost)):
                pass
            assert_contains(store, range(3))
            del store
        done.set()
        child.join(60)
        assert child.exitcode == 0


@pytest.mark.parametrize("gone", ["arrays.bin", "index.sqlite", "in-use.lock"])
def test_store_partly_removed_is_rebuilt_or_evicted(tmp_path: Path, gone: str) -> None:
    folder = create_filled_store(tmp_path, range(5)).folder
    (folder / gone).unlink()
    store = open_store(tmp_path)
    for _ in store.append(make_entries(list_missing(store, range(5)))):
        pass
    assert_contains(store, range(5))
    (folder / gone).unlink()
    del store
    evict_to_fit(tmp_path, needed_bytes=1, limit_bytes=0)
    assert not (folder / "arrays.bin").exists()

"""Every image is looked at once, in order, and what was seen is kept where it can be."""

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.audit import fingerprint_table as looks_module
from finetune.audit.fingerprint import FINGERPRINT, compute_fingerprint
from finetune.audit.fingerprint_table import FingerprintTable, fingerprint_files
from finetune.data.cache.array_store import ArrayStore
from finetune.types import RejectedFile, Sample
from tests.support.helpers import Recorder, everything, noise, tiny_disk
from tests.support.pictures import scene

Found = tuple[list[Sample], FingerprintTable, list[RejectedFile]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of names of files that are looked at from now on."""
    names: list[str] = []

    def watched(path: Path, *, max_pixels: int) -> NDArray[Any]:
        names.append(path.name)
        return compute_fingerprint(path, max_pixels=max_pixels)

    monkeypatch.setattr(looks_module, "compute_fingerprint", watched)
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of five images of different widths."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(5):
        scene(number, width=20 + number, height=20).save(root / f"{number}.png")
    return root


def samples_of(*names: object) -> list[Sample]:
    return [Sample(f"{name}.png", "x") for name in names]


def look(
    root: Path,
    samples: list[Sample],
    *,
    stores: Path | None = None,
    max_pixels: int = 10_000,
    limit_bytes: int = 10**9,
    reporter: Recorder | None = None,
) -> Found:
    return fingerprint_files(
        root,
        samples,
        max_pixels=max_pixels,
        stores_dir=stores,
        limit_bytes=limit_bytes,
        reporter=reporter or Recorder(),
    )


def widths(found: Found) -> list[int]:
    return [int(width) for width in found[1].read_column("width")]


class Counter(Recorder):
    """Counts what it is told of."""

    total = told = 0

    def start(self, task: str, total: int) -> None:
        self.total = total

    def advance(self, steps: int = 1) -> None:
        self.told += steps


@pytest.mark.parametrize("is_kept", [True, False])
def test_images_keep_their_order_and_the_others_their_reasons(
    root: Path, tmp_path: Path, is_kept: bool
) -> None:
    (root / "bad.png").write_text("no image")
    samples = samples_of(3, "bad", 0, "gone", 4)
    stores = tmp_path / "stores" if is_kept else None
    for _ in range(2):
        counter = Counter()
        found = look(root, samples, stores=stores, reporter=counter)
        assert found[0] == [samples[0], samples[2], samples[4]]
        assert widths(found) == [23, 20, 24]
        assert found[2] == [
            RejectedFile("bad.png", "not an image, whatever its name says"),
            RejectedFile("gone.png", "does not exist"),
        ]
        assert counter.told == counter.total == len(samples)


def test_what_is_kept_is_what_was_seen(root: Path, tmp_path: Path) -> None:
    samples = samples_of(4, 1, 2)
    for _ in range(2):
        _, looks, _ = look(root, samples, stores=tmp_path / "stores")
        assert len(looks) == 3
        expected = [compute_fingerprint(root / sample.path) for sample in samples]
        for name in FINGERPRINT.names or ():
            np.testing.assert_array_equal(
                looks.read_column(name), np.stack([one[name] for one in expected])
            )
        rows = np.array([2, 0])
        np.testing.assert_array_equal(
            looks.read_thumbnails(rows), np.stack([expected[row]["thumbnail"] for row in rows])
        )
        assert looks.read_thumbnails(rows).dtype == np.float32
        assert looks.compute_shorter_sides(np.array([0, 1, 2])).tolist() == [20, 20, 20]


def test_a_file_is_looked_at_again_only_when_it_has_changed(
    root: Path, tmp_path: Path, opened: list[str]
) -> None:
    stores = tmp_path / "stores"
    look(root, samples_of(0, 1, 2), stores=stores)
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    opened.clear()
    assert widths(look(root, samples_of(2, 1, 0), stores=stores)) == [22, 21, 20]
    assert opened == []
    scene(9, width=77, height=20).save(root / "1.png")
    assert widths(look(root, samples_of(0, 1, 2, 3), stores=stores)) == [20, 77, 22, 23]
    assert sorted(opened) == ["1.png", "3.png"]


def test_a_smaller_limit_leaves_out_what_was_kept(root: Path, tmp_path: Path) -> None:
    stores, samples = tmp_path / "stores", samples_of(0, 1, 2, 3)
    look(root, samples, stores=stores)
    good, _, bad = found = look(root, samples, stores=stores, max_pixels=21 * 20)
    assert good == samples[:2]
    assert widths(found) == [20, 21]
    assert [entry.path for entry in bad] == ["2.png", "3.png"]
    assert all(entry.reason.startswith("too large: 2") for entry in bad)
    assert look(root, samples, stores=stores)[0] == samples


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def _works_and_leaves_nothing(found: Found, temporary: Path) -> None:
    assert widths(found) == [20, 21, 22]
    assert everything(temporary) != []
    kept = found[1]
    del found
    assert kept.read_column("width").tolist() == [20, 21, 22], (
        "the folder lives as long as it is used"
    )


def test_without_a_store_nothing_is_left_behind(root: Path, temporary: Path) -> None:
    _works_and_leaves_nothing(look(root, samples_of(0, 1, 2)), temporary)
    gc.collect()
    assert everything(temporary) == []


def test_a_store_that_cannot_be_made_is_done_without(
    root: Path, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    found = look(root, samples_of(0, 1, 2), stores=tmp_path / "file" / "stores")
    _works_and_leaves_nothing(found, temporary)
    del found
    gc.collect()
    assert everything(temporary) == []


def test_looks_that_the_limit_does_not_allow_are_not_kept(
    root: Path, tmp_path: Path, temporary: Path, opened: list[str]
) -> None:
    stores = tmp_path / "stores"
    for _ in range(2):
        found = look(root, samples_of(0, 1, 2), stores=stores, limit_bytes=100)
        _works_and_leaves_nothing(found, temporary)
        del found
        gc.collect()
        assert everything(temporary) == []
    assert len(opened) == 6
    assert (
        sum(file.stat().st_size for file in stores.rglob("*")) < 100 + FINGERPRINT.itemsize + 30_000
    )


def test_looks_that_fit_are_found_again_though_they_would_not_fit_twice(
    root: Path, tmp_path: Path, opened: list[str]
) -> None:
    stores = tmp_path / "stores"
    look(root, samples_of(0, 1, 2, 3, 4), stores=stores)
    used = sum(file.stat().st_size for file in stores.rglob("*") if file.is_file())
    opened.clear()
    look(root, samples_of(0, 1, 2, 3, 4), stores=stores, limit_bytes=used + FINGERPRINT.itemsize)
    assert opened == []


def test_a_disk_that_is_full_is_no_reason_to_fail(
    root: Path, tmp_path: Path, temporary: Path
) -> None:
    with tiny_disk(tmp_path / "disk", size="4k") as stores:
        found = look(root, samples_of(0, 1, 2), stores=stores)
        _works_and_leaves_nothing(found, temporary)


def test_a_store_that_another_process_fills_is_waited_for(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, entered, go_on = tmp_path / "stores", threading.Event(), threading.Event()

    def slow(path: Path, *, max_pixels: int) -> NDArray[Any]:
        entered.set()
        assert go_on.wait(60)
        return compute_fingerprint(path, max_pixels=max_pixels)

    monkeypatch.setattr(looks_module, "compute_fingerprint", slow)
    results: dict[str, Found] = {}

    def run(name: str, samples: list[Sample], reporter: Recorder) -> threading.Thread:
        def target() -> None:
            results[name] = look(root, samples, stores=stores, reporter=reporter)

        thread = threading.Thread(target=target)
        thread.start()
        return thread

    class Told(Recorder):
        def note(self, message: str) -> None:
            super().note(message)
            go_on.set()

    first = run("first", samples_of(0, 1, 2), Recorder())
    assert entered.wait(60)
    told = Told()
    second = run("second", samples_of(2, 3, 4), told)
    first.join(60)
    second.join(60)
    assert widths(results["first"]) == [20, 21, 22]
    assert widths(results["second"]) == [22, 23, 24]
    assert len(told.notes) == 1
    assert "Another process makes the looks" in told.notes[0]


def test_a_store_whose_end_is_half_written_is_read(root: Path, tmp_path: Path) -> None:
    """As another process that goes on filling it leaves it between two writes."""
    stores = tmp_path / "stores"
    look(root, samples_of(0, 1, 2), stores=stores)
    real = ArrayStore.memory_map

    def grown(self: ArrayStore) -> tuple[NDArray[np.uint8], int]:
        with (self.folder / "arrays.bin").open("ab") as stream:
            stream.write(bytes(FINGERPRINT.itemsize // 2))
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayStore, "memory_map", grown)
        assert widths(look(root, samples_of(2, 0), stores=stores)) == [22, 20]
    assert widths(look(root, samples_of(2, 0, 4), stores=stores)) == [22, 20, 24]


def test_looks_stay_readable_after_their_store_is_begun_anew(root: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    _, looks, _ = look(root, samples_of(0, 1, 2), stores=stores)
    for _ in range(3):  # over half of what is kept becomes waste
        for number in range(3):
            noise(seed=number, width=60 + number, height=9).save(root / f"{number}.png")
        again = look(root, samples_of(0, 1, 2), stores=stores)
    assert widths(again) == [60, 61, 62]
    assert looks.read_column("width").tolist() == [20, 21, 22]


def test_a_removed_store_is_made_again(root: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    found = look(root, samples_of(0, 1), stores=stores)
    shutil.rmtree(stores)
    assert widths(found) == [20, 21], "it is mapped"
    assert widths(look(root, samples_of(1, 0), stores=stores)) == [21, 20]


def test_two_folders_do_not_share_a_store(root: Path, tmp_path: Path, opened: list[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    stores = tmp_path / "stores"
    look(root, samples_of(0), stores=stores)
    look(other, samples_of(0), stores=stores)
    assert opened == ["0.png", "0.png"]
    assert len(list(stores.glob("looks-1-*"))) == 2


def test_nothing_to_look_at(tmp_path: Path) -> None:
    for stores in (None, tmp_path / "stores"):
        good, looks, bad = look(tmp_path, [], stores=stores)
        assert (good, len(looks), bad) == ([], 0, [])
        assert looks.read_column("width").tolist() == []
        good, looks, bad = look(tmp_path, samples_of("gone"), stores=stores)
        assert (good, len(looks), len(bad)) == ([], 0, 1)


def test_columns_of_more_images_than_a_chunk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks_module, "_CHUNK_SIZE", 1)
    for number in range(40):
        os.link(root / f"{number % 5}.png", root / f"more{number}.png")
    names = [f"more{number}" for number in range(40)]
    found = look(root, samples_of(*names), stores=tmp_path / "stores")
    assert widths(found) == [20 + number % 5 for number in range(40)]

"""Fingerprints are computed once per image, in order, and stored if possible."""

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.audit import fingerprint_table as module
from finetune.audit.fingerprint import FINGERPRINT, compute_fingerprint
from finetune.audit.fingerprint_table import FingerprintTable, fingerprint_files
from finetune.data.cache.array_store import ArrayStore
from finetune.data.images.decode import check_image
from finetune.types import ReadOptions, RejectedFile, Sample
from tests.support.helpers import RecordingReporter, create_noise, list_tree, mount_tiny_disk
from tests.support.pictures import create_scene

Result = tuple[list[Sample], FingerprintTable, list[RejectedFile]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of names of files whose fingerprint is computed from now on."""
    names: list[str] = []

    def record(path: Path, *, options: ReadOptions) -> NDArray[Any]:
        names.append(path.name)
        return compute_fingerprint(path, options=options)

    monkeypatch.setattr(module, "compute_fingerprint", record)
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of five images of different widths."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(5):
        create_scene(number, width=20 + number, height=20).save(root / f"{number}.png")
    return root


def samples_of(*names: object) -> list[Sample]:
    return [Sample(f"{name}.png", "x") for name in names]


def fingerprint(
    root: Path,
    samples: list[Sample],
    *,
    stores: Path | None = None,
    options: ReadOptions = ReadOptions(max_pixels=10_000),  # noqa: B008 - frozen
    limit_bytes: int = 10**9,
    reporter: RecordingReporter | None = None,
) -> Result:
    return fingerprint_files(
        root,
        samples,
        options=options,
        stores_dir=stores,
        limit_bytes=limit_bytes,
        reporter=reporter or RecordingReporter(),
    )


def widths(result: Result) -> list[int]:
    return [int(width) for width in result[1].read_column("width")]


class Counter(RecordingReporter):
    """Reporter that counts steps."""

    total = num_steps = 0

    def start(self, task: str, total: int) -> None:
        self.total = total

    def advance(self, steps: int = 1) -> None:
        self.num_steps += steps


@pytest.mark.parametrize("is_kept", [True, False])
def test_fingerprint_files_keeps_order_and_reasons(
    root: Path, tmp_path: Path, is_kept: bool
) -> None:
    (root / "bad.png").write_text("no image")
    samples = samples_of(3, "bad", 0, "gone", 4)
    stores = tmp_path / "stores" if is_kept else None
    for _ in range(2):
        counter = Counter()
        found = fingerprint(root, samples, stores=stores, reporter=counter)
        assert found[0] == [samples[0], samples[2], samples[4]]
        assert widths(found) == [23, 20, 24]
        assert found[2] == [
            RejectedFile("bad.png", check_image(root / "bad.png") or ""),
            RejectedFile("gone.png", "does not exist"),
        ]
        assert counter.num_steps == counter.total == len(samples)


def test_fingerprint_table_reads_what_was_computed(root: Path, tmp_path: Path) -> None:
    samples = samples_of(4, 1, 2)
    for _ in range(2):
        _, table, _ = fingerprint(root, samples, stores=tmp_path / "stores")
        assert len(table) == 3
        expected = [compute_fingerprint(root / sample.path) for sample in samples]
        for name in FINGERPRINT.names or ():
            np.testing.assert_array_equal(
                table.read_column(name), np.stack([one[name] for one in expected])
            )
        rows = np.array([2, 0])
        np.testing.assert_array_equal(
            table.read_thumbnails(rows), np.stack([expected[row]["thumbnail"] for row in rows])
        )
        assert table.read_thumbnails(rows).dtype == np.float32
        assert table.compute_shorter_sides(np.array([0, 1, 2])).tolist() == [20, 20, 20]


def test_fingerprint_files_opens_only_changed_files_again(
    root: Path, tmp_path: Path, opened: list[str]
) -> None:
    stores = tmp_path / "stores"
    fingerprint(root, samples_of(0, 1, 2), stores=stores)
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    opened.clear()
    assert widths(fingerprint(root, samples_of(2, 1, 0), stores=stores)) == [22, 21, 20]
    assert opened == []
    create_scene(9, width=77, height=20).save(root / "1.png")
    assert widths(fingerprint(root, samples_of(0, 1, 2, 3), stores=stores)) == [20, 77, 22, 23]
    assert sorted(opened) == ["1.png", "3.png"]


def test_fingerprint_files_smaller_max_pixels_rejects_stored_images(
    root: Path, tmp_path: Path
) -> None:
    stores, samples = tmp_path / "stores", samples_of(0, 1, 2, 3)
    fingerprint(root, samples, stores=stores)
    readable, _, rejected = result = fingerprint(
        root, samples, stores=stores, options=ReadOptions(max_pixels=21 * 20)
    )
    assert readable == samples[:2]
    assert widths(result) == [20, 21]
    assert [entry.path for entry in rejected] == ["2.png", "3.png"]
    assert all(entry.reason.startswith("too large: 2") for entry in rejected)
    assert fingerprint(root, samples, stores=stores)[0] == samples


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def check_temporary_store(found: Result, temporary: Path) -> None:
    assert widths(found) == [20, 21, 22]
    assert list_tree(temporary) != []
    table = found[1]
    del found
    assert table.read_column("width").tolist() == [20, 21, 22], "the folder exists while in use"


def test_fingerprint_files_without_store_leaves_no_file(root: Path, temporary: Path) -> None:
    check_temporary_store(fingerprint(root, samples_of(0, 1, 2)), temporary)
    gc.collect()
    assert list_tree(temporary) == []


def test_fingerprint_files_unwritable_store_uses_a_temporary_one(
    root: Path, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    found = fingerprint(root, samples_of(0, 1, 2), stores=tmp_path / "file" / "stores")
    check_temporary_store(found, temporary)
    del found
    gc.collect()
    assert list_tree(temporary) == []


def test_fingerprint_files_limit_bytes_exceeded_stores_nothing(
    root: Path, tmp_path: Path, temporary: Path, opened: list[str]
) -> None:
    stores = tmp_path / "stores"
    for _ in range(2):
        found = fingerprint(root, samples_of(0, 1, 2), stores=stores, limit_bytes=100)
        check_temporary_store(found, temporary)
        del found
        gc.collect()
        assert list_tree(temporary) == []
    assert len(opened) == 6
    assert (
        sum(file.stat().st_size for file in stores.rglob("*")) < 100 + FINGERPRINT.itemsize + 30_000
    )


def test_fingerprint_files_limit_bytes_counts_stored_records_once(
    root: Path, tmp_path: Path, opened: list[str]
) -> None:
    stores = tmp_path / "stores"
    fingerprint(root, samples_of(0, 1, 2, 3, 4), stores=stores)
    used = sum(file.stat().st_size for file in stores.rglob("*") if file.is_file())
    opened.clear()
    fingerprint(
        root, samples_of(0, 1, 2, 3, 4), stores=stores, limit_bytes=used + FINGERPRINT.itemsize
    )
    assert opened == []


def test_fingerprint_files_full_disk_uses_a_temporary_store(
    root: Path, tmp_path: Path, temporary: Path
) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="4k") as stores:
        found = fingerprint(root, samples_of(0, 1, 2), stores=stores)
        check_temporary_store(found, temporary)


def test_fingerprint_files_waits_for_another_process(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, entered, may_continue = tmp_path / "stores", threading.Event(), threading.Event()

    def slow(path: Path, *, options: ReadOptions) -> NDArray[Any]:
        entered.set()
        assert may_continue.wait(60)
        return compute_fingerprint(path, options=options)

    monkeypatch.setattr(module, "compute_fingerprint", slow)
    results: dict[str, Result] = {}

    def run(name: str, samples: list[Sample], reporter: RecordingReporter) -> threading.Thread:
        def target() -> None:
            results[name] = fingerprint(root, samples, stores=stores, reporter=reporter)

        thread = threading.Thread(target=target)
        thread.start()
        return thread

    class Notified(RecordingReporter):
        def note(self, message: str) -> None:
            super().note(message)
            may_continue.set()

    first = run("first", samples_of(0, 1, 2), RecordingReporter())
    assert entered.wait(60)
    notified = Notified()
    second = run("second", samples_of(2, 3, 4), notified)
    first.join(60)
    second.join(60)
    assert widths(results["first"]) == [20, 21, 22]
    assert widths(results["second"]) == [22, 23, 24]
    assert len(notified.notes) == 1
    assert "fingerprints" in notified.notes[0]
    assert str(stores) in notified.notes[0]


def test_fingerprint_table_half_written_record_is_ignored(root: Path, tmp_path: Path) -> None:
    """As another process that is filling it leaves it between two writes."""
    stores = tmp_path / "stores"
    fingerprint(root, samples_of(0, 1, 2), stores=stores)
    real = ArrayStore.memory_map

    def grown(self: ArrayStore) -> tuple[NDArray[np.uint8], int]:
        with (self.folder / "arrays.bin").open("ab") as stream:
            stream.write(bytes(FINGERPRINT.itemsize // 2))
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayStore, "memory_map", grown)
        assert widths(fingerprint(root, samples_of(2, 0), stores=stores)) == [22, 20]
    assert widths(fingerprint(root, samples_of(2, 0, 4), stores=stores)) == [22, 20, 24]


def test_fingerprint_table_stays_readable_after_reset(root: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    _, table, _ = fingerprint(root, samples_of(0, 1, 2), stores=stores)
    for _ in range(3):  # over half of the records become stale
        for number in range(3):
            create_noise(seed=number, width=60 + number, height=9).save(root / f"{number}.png")
        again = fingerprint(root, samples_of(0, 1, 2), stores=stores)
    assert widths(again) == [60, 61, 62]
    assert table.read_column("width").tolist() == [20, 21, 22]


def test_fingerprint_files_removed_store_is_created_again(root: Path, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    found = fingerprint(root, samples_of(0, 1), stores=stores)
    shutil.rmtree(stores)
    assert widths(found) == [20, 21], "the store is memory-mapped"
    assert widths(fingerprint(root, samples_of(1, 0), stores=stores)) == [21, 20]


def test_fingerprint_files_two_roots_have_two_stores(
    root: Path, tmp_path: Path, opened: list[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    stores = tmp_path / "stores"
    fingerprint(root, samples_of(0), stores=stores)
    fingerprint(other, samples_of(0), stores=stores)
    assert opened == ["0.png", "0.png"]
    assert len(list(stores.glob("fingerprints-2-*"))) == 2


def test_fingerprint_files_no_samples(tmp_path: Path) -> None:
    for stores in (None, tmp_path / "stores"):
        readable, table, rejected = fingerprint(tmp_path, [], stores=stores)
        assert (readable, len(table), rejected) == ([], 0, [])
        assert table.read_column("width").tolist() == []
        readable, table, rejected = fingerprint(tmp_path, samples_of("gone"), stores=stores)
        assert (readable, len(table), len(rejected)) == ([], 0, 1)


def test_read_column_in_several_chunks(root: Path, tmp_path: Path) -> None:
    for number in range(40):
        os.link(root / f"{number % 5}.png", root / f"more{number}.png")
    names = [f"more{number}" for number in range(40)]
    _, table, _ = fingerprint(root, samples_of(*names), stores=tmp_path / "stores")
    expected = [20 + number % 5 for number in range(40)]
    assert table.read_column("width", chunk_size=16).tolist() == expected

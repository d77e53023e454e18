"""Tests of filling stores: each image is decoded once, and equals Pillow's resizing."""

import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.cache.array_store import StoreEntry
from finetune.data.cache.pixel_store import PixelStore, StoredSource
from finetune.data.cache.pixel_writer import (
    DecodingSource,
    decode_resized,
    decode_transformed,
    estimate_store_bytes,
    fill_store,
)
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import DataError, StorageError
from finetune.types import PreprocessSpec, ReadOptions, Reporter
from tests.support.helpers import create_noise, create_smooth_image, mount_tiny_disk
from tests.support.pictures import RecordingImage, compute_psnr, write_jpeg
from tests.support.processes import get_fork_context, start_process

MAX_PIXELS = 10**8
SMALL = partial(decode_resized, shorter_side=20, options=ReadOptions(max_pixels=MAX_PIXELS))
BILINEAR = Image.Resampling.BILINEAR


class ProgressRecorder(Reporter):
    """Reporter that records the calls of its progress bar."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def start(self, task: str, total: int) -> None:
        self.calls.append(("start", total))

    def advance(self, steps: int = 1) -> None:
        self.calls.append(("advance", steps))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return 12 images of several shapes."""
    (tmp_path / "photos").mkdir()
    files = [tmp_path / "photos" / f"{number:02}.png" for number in range(12)]
    for number, file in enumerate(files):
        create_noise(seed=number, width=40 + number, height=52 - number).save(file)
    return files


def open_store(root: Path) -> PixelStore:
    return PixelStore(root / "stores", tag="short-20", owner="photos")


def fill(
    store: PixelStore,
    paths: Sequence[Path],
    decode: Callable[[Path], StoreEntry] = SMALL,
    *,
    num_threads: int = 2,
    reporter: Reporter | None = None,
) -> StoredSource:
    locations = fill_store(
        store, paths, decode, num_threads=num_threads, reporter=reporter or Reporter()
    )
    return StoredSource(store, paths, locations)


def resize_with_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        scale = 20 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return np.asarray(image.resize(size, BILINEAR))


def assert_filled(source: StoredSource, paths: Sequence[Path]) -> None:
    """Check that the rows of a source are these images, shrunk to a shorter side of 20."""
    assert len(source) == len(paths)
    for row, path in enumerate(paths):
        expected = resize_with_pillow(path)
        assert min(expected.shape[:2]) == 20
        lazy_image = source.open(row)
        with Image.open(path) as image:
            assert (lazy_image.width, lazy_image.height) == image.size
        actual = np.asarray(lazy_image.to_pil()).astype(int)
        np.testing.assert_allclose(actual, expected.astype(int), atol=1)
        assert source.get_name(row) == str(path)


def make_counting_decoder(decoded: list[str]) -> Callable[[Path], StoreEntry]:
    def decode(path: Path) -> StoreEntry:
        decoded.append(path.name)
        return SMALL(path)

    return decode


def test_fill_store_decodes_each_image_once_in_order(paths: list[Path], tmp_path: Path) -> None:
    decoded: list[str] = []
    progress = ProgressRecorder()
    store = open_store(tmp_path)
    assert_filled(fill(store, paths, make_counting_decoder(decoded), reporter=progress), paths)
    assert sorted(decoded) == [path.name for path in paths]
    assert progress.calls == [("start", 12), *[("advance", 1)] * 12, ("finish", None)]
    no_progress = ProgressRecorder()
    assert_filled(
        fill(open_store(tmp_path), paths, make_counting_decoder(decoded), reporter=no_progress),
        paths,
    )
    assert len(decoded) == 12
    assert no_progress.calls == []


def test_fill_store_uses_images_of_earlier_run_in_any_order(
    paths: list[Path], tmp_path: Path
) -> None:
    decoded: list[str] = []
    fill(open_store(tmp_path), paths[3:9], make_counting_decoder(decoded))
    assert_filled(
        fill(open_store(tmp_path), paths[::-1], make_counting_decoder(decoded)), paths[::-1]
    )
    assert sorted(decoded) == [path.name for path in paths]


def test_fill_store_decodes_only_changed_files_again(paths: list[Path], tmp_path: Path) -> None:
    fill(open_store(tmp_path), paths)
    create_noise(seed=99, width=44, height=48).save(paths[4])
    later = paths[7].stat()
    os.utime(paths[7], ns=(later.st_atime_ns, later.st_mtime_ns + 1))
    decoded: list[str] = []
    assert_filled(fill(open_store(tmp_path), paths, make_counting_decoder(decoded)), paths)
    assert sorted(decoded) == [paths[4].name, paths[7].name]


def test_fill_store_repeated_path_gives_repeated_row(paths: list[Path], tmp_path: Path) -> None:
    twice = [paths[0], paths[1], paths[0]]
    assert_filled(fill(open_store(tmp_path), twice), twice)


def test_fill_store_unreadable_file_raises_data_error_and_closes_progress(
    paths: list[Path], tmp_path: Path
) -> None:
    data = paths[6].read_bytes()
    paths[6].write_bytes(data[: len(data) // 2])
    progress = ProgressRecorder()
    with pytest.raises(DataError, match=r"06\.png: truncated PNG\."):
        fill(open_store(tmp_path), paths, reporter=progress)
    assert progress.calls[-1] == ("finish", None)
    paths[6].write_bytes(data)
    decoded: list[str] = []
    assert_filled(fill(open_store(tmp_path), paths, make_counting_decoder(decoded)), paths)
    assert sorted(decoded) == [path.name for path in paths[6:]]


def test_fill_store_missing_file_raises_data_error(paths: list[Path], tmp_path: Path) -> None:
    paths[2].unlink()
    with pytest.raises(DataError, match=r"02\.png: does not exist"):
        fill(open_store(tmp_path), paths)


def test_fill_store_bounds_images_in_memory(tmp_path: Path) -> None:
    lock = threading.Lock()
    num_pending, max_pending = 0, 0

    def decode(path: Path) -> StoreEntry:
        nonlocal num_pending, max_pending
        with lock:
            num_pending += 1
            max_pending = max(max_pending, num_pending)
        return StoreEntry(np.zeros((1, 1, 3), np.uint8), 1, 1)

    class SlowReporter(Reporter):
        def advance(self, steps: int = 1) -> None:
            nonlocal num_pending
            time.sleep(0.002)
            with lock:
                num_pending -= 1

    files = [tmp_path / f"{number}.png" for number in range(100)]
    fill(open_store(tmp_path), files, decode, num_threads=3, reporter=SlowReporter())
    assert 3 <= max_pending <= 4 * 3 + 1
    assert num_pending == 0


def test_fill_store_uses_all_threads_and_restores_torch_threads(
    paths: list[Path], tmp_path: Path
) -> None:
    num_torch_threads = torch.get_num_threads()
    together = threading.Barrier(3, timeout=20)
    num_inner_threads = set()

    def decode(path: Path) -> StoreEntry:
        num_inner_threads.add(torch.get_num_threads())
        together.wait()  # no thread continues before three are decoding
        return SMALL(path)

    fill(open_store(tmp_path), paths, decode, num_threads=3)
    assert num_inner_threads == {1}
    assert torch.get_num_threads() == num_torch_threads

    def fails(path: Path) -> StoreEntry:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        fill(open_store(tmp_path), [tmp_path / "x.png"], fails)
    assert torch.get_num_threads() == num_torch_threads


def test_fill_store_full_disk_raises_storage_error(paths: list[Path], tmp_path: Path) -> None:
    def large(path: Path) -> StoreEntry:
        return StoreEntry(np.zeros((200, 300, 3), np.uint8), 200, 300)

    with mount_tiny_disk(tmp_path / "disk", size="600k") as disk:
        progress = ProgressRecorder()
        with pytest.raises(
            StorageError, match=r"(no space is left|disk is full).*data\.cache=PATH"
        ):
            fill(open_store(disk), paths, large, reporter=progress)
        assert progress.calls[-1] == ("finish", None)
        shutil.rmtree(disk / "stores")
        assert_filled(fill(open_store(disk), paths), paths)


def decode_slowly_or_die(log: Path, deadly: str, path: Path) -> StoreEntry:
    """Decode an image and log its name; the process is killed at ``deadly``."""
    if path.name == deadly:
        time.sleep(0.2)  # others are in progress and not synced yet
        os.kill(os.getpid(), signal.SIGKILL)
    stored = SMALL(path)
    with log.open("a") as stream:
        stream.write(path.name + "\n")
    return stored


def fill_until_dead(root: Path, paths: list[Path], deadly: str) -> None:
    fill(open_store(root), paths, partial(decode_slowly_or_die, root / "log.txt", deadly))


@pytest.mark.runs
def test_fill_store_after_killed_process_equals_undisturbed_store(
    paths: list[Path], tmp_path: Path
) -> None:
    with start_process(fill_until_dead, tmp_path, paths, "08.png") as child:
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "log.txt").read_text()
    store = open_store(tmp_path)
    assert_filled(fill(store, paths), paths)
    undisturbed = open_store(tmp_path / "undisturbed")
    fill(undisturbed, paths)
    assert (store.folder / "arrays.bin").read_bytes() == (
        undisturbed.folder / "arrays.bin"
    ).read_bytes()


def decode_and_log(log: Path, path: Path) -> StoreEntry:
    time.sleep(0.01)
    stored = SMALL(path)
    with log.open("a") as stream:
        stream.write(f"{path.name}\n")
    return stored


def fill_and_send(root: Path, paths: list[Path], connection: Connection) -> None:
    source = fill(open_store(root), paths, partial(decode_and_log, root / "log.txt"))
    connection.send([np.asarray(source.open(row).to_pil()) for row in range(len(source))])


@pytest.mark.runs
def test_fill_store_two_processes_decode_each_image_once(paths: list[Path], tmp_path: Path) -> None:
    one, other = (get_fork_context().Pipe(duplex=False) for _ in range(2))
    with (
        start_process(fill_and_send, tmp_path, paths, one[1]),
        start_process(fill_and_send, tmp_path, paths[::-1], other[1]),
    ):
        received = []
        for receiver, _ in (one, other):
            assert receiver.poll(60)
            received.append(receiver.recv())
    for end in (*one, *other):
        end.close()
    assert sorted((tmp_path / "log.txt").read_text().split()) == [path.name for path in paths]
    for actual in (received[0], received[1][::-1]):
        for pixels, path in zip(actual, paths, strict=True):
            np.testing.assert_allclose(
                pixels.astype(int), resize_with_pillow(path).astype(int), atol=1
            )


def test_decoding_source_equals_stored_source(paths: list[Path], tmp_path: Path) -> None:
    stored, decoding = fill(open_store(tmp_path), paths), DecodingSource(paths, SMALL)
    assert len(decoding) == len(stored)
    copied = pickle.loads(pickle.dumps(decoding))
    for row in range(len(paths)):
        assert decoding.get_name(row) == stored.get_name(row)
        expected = stored.open(row)
        for lazy_image in (decoding.open(row), copied.open(row)):
            assert (lazy_image.height, lazy_image.width) == (expected.height, expected.width)
            np.testing.assert_array_equal(
                np.asarray(lazy_image.to_pil()), np.asarray(expected.to_pil())
            )
    paths[1].write_bytes(b"")
    with pytest.raises(DataError, match=r"^empty file"):
        decoding.open(1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_decode_resized_jpeg_applies_orientation(tmp_path: Path, orientation: int) -> None:
    image = create_smooth_image(width=640, height=480)
    file = write_jpeg(tmp_path / "x.jpg", image, orientation=orientation, quality=92)
    stored = decode_resized(file, shorter_side=60, options=ReadOptions(max_pixels=MAX_PIXELS))
    is_rotated = orientation == 6
    assert (stored.full_rows, stored.full_columns) == ((640, 480) if is_rotated else (480, 640))
    with Image.open(file) as opened_file:
        upright = {1: 0, 3: 180, 6: 270}[orientation]
        expected = opened_file.rotate(upright, expand=True).resize(
            (60, 80) if is_rotated else (80, 60), BILINEAR
        )
    assert stored.array.shape == np.asarray(expected).shape
    assert compute_psnr(stored.array, np.asarray(expected)) >= 40


@pytest.mark.parametrize("side", [30, 31, 1000])
def test_decode_resized_small_image_is_unchanged(tmp_path: Path, side: int) -> None:
    image = create_noise(width=45, height=30)
    image.save(tmp_path / "x.png")
    stored = decode_resized(
        tmp_path / "x.png", shorter_side=side, options=ReadOptions(max_pixels=MAX_PIXELS)
    )
    np.testing.assert_array_equal(stored.array, np.asarray(image))
    assert (stored.full_rows, stored.full_columns) == (30, 45)


def test_decode_resized_thin_image_keeps_one_pixel(tmp_path: Path) -> None:
    create_noise(width=1000, height=2).save(tmp_path / "x.png")
    stored = decode_resized(
        tmp_path / "x.png", shorter_side=1, options=ReadOptions(max_pixels=MAX_PIXELS)
    )
    assert stored.array.shape == (1, 500, 3)


def test_decode_transformed_equals_eval_transform(tmp_path: Path) -> None:
    spec = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
    transform = EvalTransform(spec)
    file = write_jpeg(tmp_path / "x.jpg", create_smooth_image(width=150, height=100), orientation=6)
    stored = decode_transformed(
        file, transform=transform, options=ReadOptions(max_pixels=MAX_PIXELS)
    )
    with Image.open(file) as image:
        upright = image.rotate(270, expand=True)
    np.testing.assert_array_equal(stored.array, transform(RecordingImage(upright)).pixels)
    assert (stored.full_rows, stored.full_columns) == (32, 32)


@pytest.mark.parametrize(
    "decode", [SMALL, partial(decode_resized, shorter_side=20, options=ReadOptions(max_pixels=50))]
)
def test_decode_max_pixels_raises_data_error(
    tmp_path: Path, decode: Callable[[Path], StoreEntry]
) -> None:
    file = write_jpeg(tmp_path / "x.jpg", create_noise(width=10, height=10))
    if decode is SMALL:
        assert decode(file).array.shape == (10, 10, 3)
        return
    with pytest.raises(DataError, match="too large: 10x10"):
        decode(file)
    transform = EvalTransform(PreprocessSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(DataError, match="too large: 10x10"):
        decode_transformed(file, transform=transform, options=ReadOptions(max_pixels=50))


@pytest.mark.parametrize("side", [10, 45, 500])
def test_estimate_store_bytes_from_sample_is_close(tmp_path: Path, side: int) -> None:
    files: list[Path] = []
    for number in range(450):  # every second one is sampled
        file = tmp_path / f"{number}.png"
        if number < 8:
            create_noise(width=60 + number * 5, height=40 + number).save(file)
        else:
            file.hardlink_to(files[number % 8])
        files.append(file)
    stored = [
        decode_resized(file, shorter_side=side, options=ReadOptions(max_pixels=MAX_PIXELS))
        for file in files[:8]
    ]
    exact = sum(stored[number % 8].array.size for number in range(450))
    assert estimate_store_bytes(files, shorter_side=side) == pytest.approx(exact, rel=0.05)


def test_estimate_store_bytes_ignores_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("Dear diary")
    create_noise(width=20, height=10).save(tmp_path / "x.png")
    good, bad, gone = tmp_path / "x.png", tmp_path / "text.png", tmp_path / "gone.png"
    assert estimate_store_bytes([good, bad, gone], shorter_side=100) == 3 * 3 * 20 * 10
    assert estimate_store_bytes([bad, gone], shorter_side=100) == 0
    assert estimate_store_bytes([], shorter_side=100) == 0

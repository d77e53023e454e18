"""Each image is decoded once, whoever asks and whatever ends it, to what Pillow would show."""

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
from finetune.types import PreprocessSpec, Reporter
from tests.support.helpers import noise, smooth, tiny_disk
from tests.support.pictures import RecordingImage, psnr, write_jpeg
from tests.support.processes import get_fork_context, start_process

MAX_PIXELS = 10**8
SMALL = partial(decode_resized, shorter_side=20, max_pixels=MAX_PIXELS)
BILINEAR = Image.Resampling.BILINEAR


class Heard(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def start(self, task: str, total: int) -> None:
        self.told.append(("start", total))

    def advance(self, steps: int = 1) -> None:
        self.told.append(("advance", steps))

    def finish(self) -> None:
        self.told.append(("finish", None))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Return 12 images of several shapes."""
    (tmp_path / "photos").mkdir()
    files = [tmp_path / "photos" / f"{number:02}.png" for number in range(12)]
    for number, file in enumerate(files):
        noise(seed=number, width=40 + number, height=52 - number).save(file)
    return files


def opened(root: Path) -> PixelStore:
    return PixelStore(root / "stores", tag="short-20", owner="photos")


def fill(
    store: PixelStore,
    paths: Sequence[Path],
    decode: Callable[[Path], StoreEntry] = SMALL,
    *,
    num_threads: int = 2,
    reporter: Reporter | None = None,
) -> StoredSource:
    places = fill_store(
        store, paths, decode, num_threads=num_threads, reporter=reporter or Reporter()
    )
    return StoredSource(store, paths, places)


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        scale = 20 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return np.asarray(image.resize(size, BILINEAR))


def assert_filled(source: StoredSource, paths: Sequence[Path]) -> None:
    """Fail unless the rows of a source are these images, shrunk to a shorter side of 20."""
    assert len(source) == len(paths)
    for row, path in enumerate(paths):
        expected = by_pillow(path)
        assert min(expected.shape[:2]) == 20
        picture = source.open(row)
        with Image.open(path) as image:
            assert (picture.width, picture.height) == image.size
        found = np.asarray(picture.to_pil()).astype(int)
        np.testing.assert_allclose(found, expected.astype(int), atol=1)
        assert source.get_name(row) == str(path)


def counting(seen: list[str]) -> Callable[[Path], StoreEntry]:
    def decode(path: Path) -> StoreEntry:
        seen.append(path.name)
        return SMALL(path)

    return decode


def test_all_images_are_stored_in_order_and_only_once(paths: list[Path], tmp_path: Path) -> None:
    seen: list[str] = []
    heard = Heard()
    store = opened(tmp_path)
    assert_filled(fill(store, paths, counting(seen), reporter=heard), paths)
    assert sorted(seen) == [path.name for path in paths]
    assert heard.told == [("start", 12), *[("advance", 1)] * 12, ("finish", None)]
    nothing = Heard()
    assert_filled(fill(opened(tmp_path), paths, counting(seen), reporter=nothing), paths)
    assert len(seen) == 12
    assert nothing.told == []


def test_what_another_run_stored_is_used_whatever_its_order(
    paths: list[Path], tmp_path: Path
) -> None:
    seen: list[str] = []
    fill(opened(tmp_path), paths[3:9], counting(seen))
    assert_filled(fill(opened(tmp_path), paths[::-1], counting(seen)), paths[::-1])
    assert sorted(seen) == [path.name for path in paths]


def test_a_changed_file_alone_is_decoded_anew(paths: list[Path], tmp_path: Path) -> None:
    fill(opened(tmp_path), paths)
    noise(seed=99, width=44, height=48).save(paths[4])
    later = paths[7].stat()
    os.utime(paths[7], ns=(later.st_atime_ns, later.st_mtime_ns + 1))
    seen: list[str] = []
    assert_filled(fill(opened(tmp_path), paths, counting(seen)), paths)
    assert sorted(seen) == [paths[4].name, paths[7].name]


def test_an_image_twice_in_a_list_is_there_twice(paths: list[Path], tmp_path: Path) -> None:
    twice = [paths[0], paths[1], paths[0]]
    assert_filled(fill(opened(tmp_path), twice), twice)


def test_an_unreadable_file_is_named_and_the_bar_ends(paths: list[Path], tmp_path: Path) -> None:
    data = paths[6].read_bytes()
    paths[6].write_bytes(data[: len(data) // 2])
    heard = Heard()
    with pytest.raises(DataError, match=r"06\.png: truncated\. It read well before; restore it"):
        fill(opened(tmp_path), paths, reporter=heard)
    assert heard.told[-1] == ("finish", None)
    paths[6].write_bytes(data)
    seen: list[str] = []
    assert_filled(fill(opened(tmp_path), paths, counting(seen)), paths)
    assert sorted(seen) == [path.name for path in paths[6:]]


def test_a_file_that_is_gone_is_named(paths: list[Path], tmp_path: Path) -> None:
    paths[2].unlink()
    with pytest.raises(DataError, match=r"02\.png: does not exist"):
        fill(opened(tmp_path), paths)


def test_few_images_are_in_memory_at_once(tmp_path: Path) -> None:
    lock = threading.Lock()
    under_way, most = 0, 0

    def decode(path: Path) -> StoreEntry:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return StoreEntry(np.zeros((1, 1, 3), np.uint8), 1, 1)

    class Slow(Reporter):
        def advance(self, steps: int = 1) -> None:
            nonlocal under_way
            time.sleep(0.002)
            with lock:
                under_way -= 1

    files = [tmp_path / f"{number}.png" for number in range(100)]
    fill(opened(tmp_path), files, decode, num_threads=3, reporter=Slow())
    assert 3 <= most <= 4 * 3 + 1
    assert under_way == 0


def test_all_threads_decode_and_torchs_own_are_left_as_they_were(
    paths: list[Path], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    together = threading.Barrier(3, timeout=20)
    inside = set()

    def decode(path: Path) -> StoreEntry:
        inside.add(torch.get_num_threads())
        together.wait()  # nobody goes on before three are at it
        return SMALL(path)

    fill(opened(tmp_path), paths, decode, num_threads=3)
    assert inside == {1}
    assert torch.get_num_threads() == threads

    def fails(path: Path) -> StoreEntry:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        fill(opened(tmp_path), [tmp_path / "x.png"], fails)
    assert torch.get_num_threads() == threads


def test_a_full_disk_is_one_error(paths: list[Path], tmp_path: Path) -> None:
    def large(path: Path) -> StoreEntry:
        return StoreEntry(np.zeros((200, 300, 3), np.uint8), 200, 300)

    with tiny_disk(tmp_path / "disk", size="600k") as disk:
        heard = Heard()
        with pytest.raises(
            StorageError, match=r"(no space is left|disk is full).*data\.cache=PATH"
        ):
            fill(opened(disk), paths, large, reporter=heard)
        assert heard.told[-1] == ("finish", None)
        shutil.rmtree(disk / "stores")
        assert_filled(fill(opened(disk), paths), paths)


def decode_slowly_or_die(log: Path, deadly: str, path: Path) -> StoreEntry:
    """Decode an image and write its name to a log; the process ends with the deadly one."""
    if path.name == deadly:
        time.sleep(0.2)  # others shall be under way and waiting to be synced
        os.kill(os.getpid(), signal.SIGKILL)
    stored = SMALL(path)
    with log.open("a") as stream:
        stream.write(path.name + "\n")
    return stored


def fill_until_dead(root: Path, paths: list[Path], deadly: str) -> None:
    fill(opened(root), paths, partial(decode_slowly_or_die, root / "log.txt", deadly))


def test_a_killed_process_leaves_a_store_that_ends_as_an_undisturbed_one(
    paths: list[Path], tmp_path: Path
) -> None:
    with start_process(fill_until_dead, tmp_path, paths, "08.png") as child:
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "log.txt").read_text()
    store = opened(tmp_path)
    assert_filled(fill(store, paths), paths)
    undisturbed = opened(tmp_path / "undisturbed")
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


def fill_and_answer(root: Path, paths: list[Path], answer: Connection) -> None:
    source = fill(opened(root), paths, partial(decode_and_log, root / "log.txt"))
    answer.send([np.asarray(source.open(row).to_pil()) for row in range(len(source))])


def test_two_processes_decode_each_image_once_and_both_have_all(
    paths: list[Path], tmp_path: Path
) -> None:
    one, other = (get_fork_context().Pipe(duplex=False) for _ in range(2))
    with (
        start_process(fill_and_answer, tmp_path, paths, one[1]),
        start_process(fill_and_answer, tmp_path, paths[::-1], other[1]),
    ):
        answers = []
        for receiver, _ in (one, other):
            assert receiver.poll(60)
            answers.append(receiver.recv())
    for end in (*one, *other):
        end.close()
    assert sorted((tmp_path / "log.txt").read_text().split()) == [path.name for path in paths]
    for found in (answers[0], answers[1][::-1]):
        for pixels, path in zip(found, paths, strict=True):
            np.testing.assert_allclose(pixels.astype(int), by_pillow(path).astype(int), atol=1)


def test_without_a_store_the_same_pixels_are_made_each_time(
    paths: list[Path], tmp_path: Path
) -> None:
    stored, made = fill(opened(tmp_path), paths), DecodingSource(paths, SMALL)
    assert len(made) == len(stored)
    copied = pickle.loads(pickle.dumps(made))
    for row in range(len(paths)):
        assert made.get_name(row) == stored.get_name(row)
        expected = stored.open(row)
        for picture in (made.open(row), copied.open(row)):
            assert (picture.height, picture.width) == (expected.height, expected.width)
            np.testing.assert_array_equal(
                np.asarray(picture.to_pil()), np.asarray(expected.to_pil())
            )
    paths[1].write_bytes(b"")
    with pytest.raises(DataError, match=r"^empty file"):
        made.open(1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_is_shrunk_as_it_was_held(tmp_path: Path, orientation: int) -> None:
    image = smooth(width=640, height=480)
    file = write_jpeg(tmp_path / "x.jpg", image, orientation=orientation, quality=92)
    stored = decode_resized(file, shorter_side=60, max_pixels=MAX_PIXELS)
    turned = orientation == 6
    assert (stored.full_rows, stored.full_columns) == ((640, 480) if turned else (480, 640))
    with Image.open(file) as opened_file:
        upright = {1: 0, 3: 180, 6: 270}[orientation]
        expected = opened_file.rotate(upright, expand=True).resize(
            (60, 80) if turned else (80, 60), BILINEAR
        )
    assert stored.array.shape == np.asarray(expected).shape
    assert psnr(stored.array, np.asarray(expected)) >= 40


@pytest.mark.parametrize("side", [30, 31, 1000])
def test_a_small_image_is_stored_as_it_is(tmp_path: Path, side: int) -> None:
    image = noise(width=45, height=30)
    image.save(tmp_path / "x.png")
    stored = decode_resized(tmp_path / "x.png", shorter_side=side, max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(stored.array, np.asarray(image))
    assert (stored.full_rows, stored.full_columns) == (30, 45)


def test_a_thin_image_keeps_a_pixel(tmp_path: Path) -> None:
    noise(width=1000, height=2).save(tmp_path / "x.png")
    stored = decode_resized(tmp_path / "x.png", shorter_side=1, max_pixels=MAX_PIXELS)
    assert stored.array.shape == (1, 500, 3)


def test_what_is_ready_is_what_evaluation_sees(tmp_path: Path) -> None:
    spec = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
    transform = EvalTransform(spec)
    file = write_jpeg(tmp_path / "x.jpg", smooth(width=150, height=100), orientation=6)
    stored = decode_transformed(file, transform=transform, max_pixels=MAX_PIXELS)
    with Image.open(file) as image:
        upright = image.rotate(270, expand=True)
    np.testing.assert_array_equal(stored.array, transform(RecordingImage(upright)).pixels)
    assert (stored.full_rows, stored.full_columns) == (32, 32)


@pytest.mark.parametrize("decode", [SMALL, partial(decode_resized, shorter_side=20, max_pixels=50)])
def test_a_limit_on_pixels_is_kept(tmp_path: Path, decode: Callable[[Path], StoreEntry]) -> None:
    file = write_jpeg(tmp_path / "x.jpg", noise(width=10, height=10))
    if decode is SMALL:
        assert decode(file).array.shape == (10, 10, 3)
        return
    with pytest.raises(DataError, match="too large: 10x10"):
        decode(file)
    transform = EvalTransform(PreprocessSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(DataError, match="too large: 10x10"):
        decode_transformed(file, transform=transform, max_pixels=50)


@pytest.mark.parametrize("side", [10, 45, 500])
def test_the_size_is_estimated_from_a_part(tmp_path: Path, side: int) -> None:
    files: list[Path] = []
    for number in range(450):  # of which every second is looked at
        file = tmp_path / f"{number}.png"
        if number < 8:
            noise(width=60 + number * 5, height=40 + number).save(file)
        else:
            file.hardlink_to(files[number % 8])
        files.append(file)
    stored = [decode_resized(file, shorter_side=side, max_pixels=MAX_PIXELS) for file in files[:8]]
    exact = sum(stored[number % 8].array.size for number in range(450))
    assert estimate_store_bytes(files, shorter_side=side) == pytest.approx(exact, rel=0.05)


def test_what_cannot_be_read_is_not_estimated(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("Dear diary")
    noise(width=20, height=10).save(tmp_path / "x.png")
    good, bad, gone = tmp_path / "x.png", tmp_path / "text.png", tmp_path / "gone.png"
    assert estimate_store_bytes([good, bad, gone], shorter_side=100) == 3 * 3 * 20 * 10
    assert estimate_store_bytes([bad, gone], shorter_side=100) == 0
    assert estimate_store_bytes([], shorter_side=100) == 0

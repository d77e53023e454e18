"""Tests of the memory that threads reserve, and of images that are never in memory twice."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.images import decode as module
from finetune.data.images import lazy_image as lazy_module
from finetune.data.images.decode import check_image, open_image
from finetune.data.images.lazy_image import ArrayImage, PillowImage
from finetune.data.images.memory import MIN_RESERVED_BYTES, MemoryBudget
from tests.support.helpers import create_noise, create_smooth_image
from tests.support.image_kinds import encode
from tests.support.pictures import ORIENTATION, write_jpeg


class Owner:
    """Object that holds memory."""


def test_memory_budget_threads_never_exceed_the_limit() -> None:
    budget = MemoryBudget(3 * MIN_RESERVED_BYTES)
    lock, used, largest = threading.Lock(), 0, 0

    def decode() -> None:
        nonlocal used, largest
        for _ in range(20):
            owner = Owner()
            budget.reserve(owner, MIN_RESERVED_BYTES)
            with lock:
                used += 1
                largest = max(largest, used)
            with lock:
                used -= 1
            del owner

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert 1 <= largest <= 3


def test_memory_budget_single_large_image_is_not_refused() -> None:
    budget = MemoryBudget(1)
    first, second = Owner(), Owner()
    budget.reserve(first, 10 * MIN_RESERVED_BYTES)
    budget.reserve(second, 10 * MIN_RESERVED_BYTES)  # of the same thread, which would wait forever
    waiting = threading.Thread(target=lambda: budget.reserve(Owner(), MIN_RESERVED_BYTES))
    waiting.start()
    waiting.join(timeout=0.2)
    assert waiting.is_alive()
    del first, second
    gc.collect()
    waiting.join(timeout=60)
    assert not waiting.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_memory_budget_of_a_forked_process_does_not_count_inherited_images() -> None:
    script = """
        import os, signal
        from finetune.data.images.memory import BUDGET, MIN_RESERVED_BYTES

        class Owner: pass

        inherited = Owner()
        BUDGET.reserve(inherited, 5 * MIN_RESERVED_BYTES)
        if child := os.fork():
            raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        signal.alarm(20)  # ends the process if it waits for memory
        del inherited
        BUDGET.reserve(Owner(), 6 * MIN_RESERVED_BYTES)
        os._exit(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0


def write_large(folder: Path) -> list[Path]:
    """Write images of several modes that are upright after a rotation."""
    image = create_smooth_image(width=320, height=200)
    alpha = image.convert("RGBA")
    alpha.putalpha(create_noise(width=320, height=200).convert("L"))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    files = []
    for name, picture in (
        ("rgb.png", image),
        ("alpha.png", alpha),
        ("palette.png", image.quantize(32)),
        ("x.webp", alpha),
        ("x.bmp", image),
    ):
        file = folder / name
        picture.save(file, exif=exif, lossless=True)
        files.append(file)
    small = encode(image.crop((0, 0, 300, 150)).quantize(32), "GIF")
    canvas = bytearray(small)
    canvas[6:10] = (320).to_bytes(2, "little") + (200).to_bytes(2, "little")
    (folder / "x.gif").write_bytes(canvas)
    return [*files, folder / "x.gif"]


@pytest.mark.runs
def test_large_image_gives_the_crops_of_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in write_large(tmp_path):
        ordinary = open_image(file)
        with monkeypatch.context() as patch:
            patch.setattr(module, "LARGE_PIXELS", 10_000)
            patch.setattr(lazy_module, "LARGE_PIXELS", 10_000)
            patch.setattr(lazy_module, "_WHOLE_PIXELS", 6_000)
            patch.setattr(lazy_module, "STRIP_PIXELS", 3_000)
            large = open_image(file)
            assert isinstance(ordinary, ArrayImage)
            assert isinstance(large, PillowImage)
            whole, grey = large.to_pil(), large.to_grey(8)
            for box, size in (((3, 5, 103, 105), (100, 100)), ((0, 0, 40, 30), (60, 80))):
                difference = large.crop(box, size).astype(int) - ordinary.crop(box, size)
                assert np.abs(difference).max() <= 1  # rounded before and after the rotation
            box = (0, 0, large.width, large.height)
            difference = large.crop(box, (20, 20)).astype(int) - ordinary.crop(box, (20, 20))
            assert np.abs(difference).mean() < 6
        assert (large.height, large.width) == (ordinary.height, ordinary.width)
        assert whole.width * whole.height <= 6_000
        reference = ordinary.to_pil().resize(whole.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(whole).astype(int) - np.asarray(reference)).mean() < 6
        assert grey.mode == "L"


def test_large_jpeg_is_decoded_at_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = create_smooth_image(width=320, height=200)
    file = write_jpeg(tmp_path / "x.jpg", image, orientation=6)
    monkeypatch.setattr(lazy_module, "LARGE_PIXELS", 10_000)
    monkeypatch.setattr(lazy_module, "_WHOLE_PIXELS", 6_000)
    whole = open_image(file).to_pil()
    assert whole.size == (50, 80)
    upright = image.rotate(-90, expand=True).resize(whole.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(whole).astype(int) - np.asarray(upright)).mean() < 3


def test_check_image_progressive_jpeg_that_needs_too_much_memory_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = create_smooth_image(width=320, height=200)
    plain = write_jpeg(tmp_path / "plain.jpg", image)
    progressive = write_jpeg(tmp_path / "progressive.jpg", image, progressive=True)
    monkeypatch.setattr("finetune.data.images.jpeg._MAX_COEFFICIENT_BYTES", 100_000)
    assert check_image(plain) is None
    assert (check_image(progressive) or "").startswith("too large: a progressive JPEG of 320x200")


@pytest.mark.parametrize(("suffix", "file_format"), [("webp", "WEBP"), ("avif", "AVIF")])
def test_check_image_format_that_needs_too_much_memory_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, file_format: str
) -> None:
    file = tmp_path / f"x.{suffix}"
    file.write_bytes(encode(create_smooth_image(width=320, height=200), file_format))
    assert check_image(file) is None
    monkeypatch.setattr(module, "MAX_DECODE_BYTES", 320 * 200 * 16 - 1)
    assert (check_image(file) or "").startswith("too large: 320x200 is 0 megapixels; ")


def test_open_image_large_jpeg_2000_is_decoded_at_half_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = create_smooth_image(width=320, height=200)
    file = tmp_path / "x.jp2"
    file.write_bytes(encode(image, "JPEG2000"))
    monkeypatch.setattr(module, "MAX_DECODE_BYTES", 320 * 200 * 25 - 1)
    half = open_image(file)
    assert (half.height, half.width) == (100, 160)
    reference = image.resize((160, 100), Image.Resampling.BOX)
    assert np.abs(np.asarray(half.to_pil()).astype(int) - np.asarray(reference)).mean() < 4

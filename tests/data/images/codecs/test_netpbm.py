"""PGM and PPM files of more than 8 bits are scaled by the maxval that they state."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.data.images.bit_depth import SampleConverter
from finetune.data.images.codecs import netpbm
from finetune.data.images.decode import check_image, open_image
from finetune.data.images.resample import Pixels
from finetune.types import PixelRange, ReadOptions

HEIGHT, WIDTH = 13, 17


def write_netpbm(path: Path, kind: str, maxval: int, values: NDArray[Any]) -> Path:
    body = values.astype(">u2").tobytes()
    if kind in ("P2", "P3"):
        body = "\n".join(str(value) for value in values.ravel().tolist()).encode()
    path.write_bytes(f"{kind}\n# 1 2 3\n{WIDTH} {HEIGHT}\n{maxval}\n".encode() + body)
    return path


def read_pixels(path: Path, pixel_range: PixelRange | None = None) -> NDArray[np.uint8]:
    image = open_image(path, options=ReadOptions(pixel_range=pixel_range))
    return np.asarray(image.to_pil())


@pytest.mark.parametrize(("kind", "num_samples"), [("P2", 1), ("P3", 3), ("P5", 1), ("P6", 3)])
@pytest.mark.parametrize("maxval", [65_535, 4095, 1000, 256])
def test_open_image_netpbm_is_scaled_by_its_maxval(
    tmp_path: Path, kind: str, num_samples: int, maxval: int
) -> None:
    values = np.random.default_rng(0).integers(0, maxval + 1, (HEIGHT, WIDTH, num_samples))
    path = write_netpbm(tmp_path / "a.pnm", kind, maxval, values)
    expected = np.broadcast_to(values * 256 // (maxval + 1), (HEIGHT, WIDTH, 3))
    assert np.array_equal(read_pixels(path), expected)
    # 65,535 is the largest maxval and says nothing; others are kept whatever the dataset's range is
    is_stated = maxval < 65_535
    assert open_image(path).max_value == (0 if is_stated else values.max())
    in_range = read_pixels(path, PixelRange(0, 16_383))
    assert np.array_equal(in_range, expected) == is_stated


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_check_image_netpbm_cut_file_is_rejected(tmp_path: Path, kind: str) -> None:
    path = write_netpbm(tmp_path / "a.pnm", kind, 4095, np.full((HEIGHT, WIDTH, 3), 4000))
    assert check_image(path) is None
    path.write_bytes(path.read_bytes()[: 50 if kind in ("P2", "P5") else -50])
    assert check_image(path) == "truncated PNM"


def test_open_image_pfm_needs_a_range(tmp_path: Path) -> None:
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype="<f4").reshape(HEIGHT, WIDTH)
    path = tmp_path / "a.pgm"
    path.write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + values[::-1].tobytes())
    reason = check_image(path)
    assert reason is not None
    assert reason.startswith("32-bit float pixels have no agreed range; set data.pixel_range")
    grey = read_pixels(path, PixelRange(0, 1))[..., 0]
    assert np.abs(grey / 255 - values).max() < 0.002


@pytest.mark.parametrize("chunk_values", [5, 40, 10_000])
def test_open_image_pfm_is_read_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_values: int
) -> None:
    monkeypatch.setattr(netpbm, "_CHUNK_VALUES", chunk_values)
    largest = 0
    convert = SampleConverter.convert

    def record(converter: SampleConverter, samples: NDArray[Any]) -> Pixels:
        nonlocal largest
        largest = max(largest, samples.size)
        return convert(converter, samples)

    monkeypatch.setattr(SampleConverter, "convert", record)
    values = np.random.default_rng(0).random((HEIGHT, WIDTH), np.float32)
    path = tmp_path / "a.pfm"
    data = f"Pf\n{WIDTH} {HEIGHT}\n1.0\n".encode() + values[::-1].astype(">f4").tobytes()
    path.write_bytes(data)
    grey = read_pixels(path, PixelRange(0, 1))[..., 0]
    assert np.array_equal(grey, np.floor(values * 255.0 + 0.5).astype(np.uint8))
    assert largest <= chunk_values
    path.write_bytes(data[:-1])
    assert check_image(path, options=ReadOptions(pixel_range=PixelRange(0, 1))) == "truncated PFM"

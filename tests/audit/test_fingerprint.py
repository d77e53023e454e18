"""Fingerprints measure the upright image and reject the files that training rejects."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.audit.fingerprint import FINGERPRINT, compute_fingerprint, decode_greyscale
from finetune.audit.near_duplicates import BLANK_CONTRAST
from finetune.data.images.decode import check_image, decode_image
from finetune.errors import DataError
from finetune.types import ReadOptions
from tests.support.helpers import create_noise
from tests.support.pictures import create_scene, write_jpeg


def test_compute_fingerprint_describes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    create_scene(1, width=90, height=60).save(file)
    fingerprint = compute_fingerprint(file)
    assert fingerprint.dtype == FINGERPRINT
    assert fingerprint.shape == ()
    assert (
        bytes(fingerprint["digest"]) == hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    )
    assert fingerprint["num_bytes"] == file.stat().st_size
    assert [fingerprint[name].item() for name in ("width", "height", "mode")] == [90, 60, b"RGB"]


def test_compute_fingerprint_opens_a_jpeg_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jpeg(tmp_path / "a.jpg", create_scene(1), orientation=1)
    opened: list[Any] = []
    open_file = io.open

    def record(path: Any, *args: Any, **options: Any) -> Any:
        opened.append(path)
        return open_file(path, *args, **options)

    monkeypatch.setattr(io, "open", record)  # pathlib opens files by it
    fingerprint = compute_fingerprint(file)
    assert opened == [file]
    data = file.read_bytes()
    assert bytes(fingerprint["digest"]) == hashlib.blake2b(data, digest_size=16).digest()
    assert fingerprint["num_bytes"] == len(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compute_fingerprint_uses_the_upright_image(tmp_path: Path, orientation: int) -> None:
    file = write_jpeg(tmp_path / "a.jpg", create_scene(1), orientation=orientation, quality=95)
    fingerprint = compute_fingerprint(file)
    upright = decode_image(file)
    assert (fingerprint["width"].item(), fingerprint["height"].item()) == upright.size
    expected = np.asarray(upright.convert("L").resize((32, 32), Image.Resampling.BOX), float)
    assert np.abs(fingerprint["thumbnail"] - expected).mean() < 6
    fine = np.asarray(upright.convert("L").resize((64, 64), Image.Resampling.BOX), float)
    pixels = decode_greyscale(file, 64)
    assert pixels.shape == (64, 64)
    assert np.abs(pixels - fine).mean() < 6


def _sixteen_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("name", "mode", "convert"),
    [
        ("a.png", "L", lambda image: image.convert("L")),
        ("a.png", "1", lambda image: image.convert("1")),
        ("a.png", "P", lambda image: image.convert("P")),
        ("a.png", "RGBA", lambda image: image.convert("RGBA")),
        ("a.png", "LA", lambda image: image.convert("LA")),
        ("a.jpg", "L", lambda image: image.convert("L")),
        ("a.jpg", "CMYK", lambda image: image.convert("CMYK")),
        ("a.png", "I;16", _sixteen_bit),
        ("a.webp", "RGB", lambda image: image),
        ("a.gif", "P", lambda image: image.convert("P")),
    ],
)
def test_compute_fingerprint_all_modes_measure_alike(
    tmp_path: Path, name: str, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> None:
    create_scene(2).save(tmp_path / "plain.png")
    convert(create_scene(2)).save(tmp_path / name)
    plain, fingerprint = (
        compute_fingerprint(tmp_path / "plain.png"),
        compute_fingerprint(tmp_path / name),
    )
    assert fingerprint["mode"].item().decode() == mode
    one, other = plain["thumbnail"].astype(float), fingerprint["thumbnail"].astype(float)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


def test_compute_fingerprint_transparency_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (compute_fingerprint(tmp_path / "a.png")["thumbnail"] == 255).all()


def _bytes_of(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


_JPEG = _bytes_of(create_noise(width=300, height=200), "JPEG")
_PNG = _bytes_of(create_noise(width=300, height=200), "PNG")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.jpg", b""),
        ("text.jpg", b"no image"),
        ("truncated.jpg", _JPEG[: len(_JPEG) // 2]),
        ("last bytes.jpg", _JPEG[:-200]),
        ("head.jpg", _JPEG[:20]),
        ("truncated.png", _PNG[: len(_PNG) // 2]),
        ("damaged.png", _PNG[:500] + bytes(64) + _PNG[564:]),
        ("float.tif", _bytes_of(Image.new("F", (9, 9), 0.5), "TIFF")),
        ("whole.jpg", _JPEG),
        ("whole.png", _PNG),
    ],
)
@pytest.mark.parametrize(
    "options", [ReadOptions(max_pixels=60_000), ReadOptions(max_pixels=59_999)]
)
def test_compute_fingerprint_rejects_with_the_reason_of_check_image(
    tmp_path: Path, name: str, data: bytes, options: ReadOptions
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    expected = check_image(file, options=options)
    if expected is None:
        assert compute_fingerprint(file, options=options)["width"] == 300
        return
    with pytest.raises(DataError) as caught:
        compute_fingerprint(file, options=options)
    assert str(caught.value) == expected


def test_compute_fingerprint_missing_file_raises_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^does not exist$"):
        compute_fingerprint(tmp_path / "a.png")


def test_compute_fingerprint_decompression_bomb_raises_data_error(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    for options in (ReadOptions(), ReadOptions(max_pixels=10**9)):
        expected = check_image(tmp_path / "a.png", options=options)
        assert expected is not None
        with pytest.raises(DataError) as caught:
            compute_fingerprint(tmp_path / "a.png", options=options)
        assert str(caught.value) == expected


def measure(tmp_path: Path, image: Image.Image) -> dict[str, float]:
    image.save(tmp_path / "a.png")
    fingerprint = compute_fingerprint(tmp_path / "a.png")
    return {name: float(fingerprint[name]) for name in ("dark", "bright", "contrast", "sharpness")}


@pytest.mark.parametrize("level", [0, 77, 255])
def test_compute_fingerprint_blank_image_has_no_contrast_and_no_sharpness(
    tmp_path: Path, level: int
) -> None:
    found = measure(tmp_path, Image.new("L", (50, 70), level))
    assert found["dark"] == found["bright"] == pytest.approx(level / 255)
    assert found["contrast"] == found["sharpness"] == 0 < BLANK_CONTRAST


def test_compute_fingerprint_ramp_has_known_percentiles(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 1280).round().astype(np.uint8), (128, 1))
    found = measure(tmp_path, Image.fromarray(ramp))
    assert found["dark"] == pytest.approx(0.05, abs=0.01)
    assert found["bright"] == pytest.approx(0.95, abs=0.01)
    assert found["contrast"] == pytest.approx(0.99, abs=0.02)
    assert found["sharpness"] == pytest.approx(1 / 127, abs=1.1 / 255)  # a grey level


def test_compute_fingerprint_small_object_has_contrast(tmp_path: Path) -> None:
    image = Image.new("L", (200, 200), 240)
    image.paste(20, (90, 90, 110, 110))
    assert measure(tmp_path, image)["contrast"] > 0.5


@pytest.mark.parametrize("side", [128, 500])
@pytest.mark.parametrize("seed", [1, 2])
def test_compute_fingerprint_blur_lowers_sharpness_at_any_size(
    tmp_path: Path, side: int, seed: int
) -> None:
    image = create_scene(seed, width=side, height=side)
    sharp = measure(tmp_path, image)["sharpness"]
    some = measure(tmp_path, image.filter(ImageFilter.GaussianBlur(side / 128)))["sharpness"]
    much = measure(tmp_path, image.filter(ImageFilter.GaussianBlur(side / 40)))["sharpness"]
    assert sharp > 0.3
    assert sharp > some > much
    assert much < 0.15


def test_compute_fingerprint_dimming_lowers_contrast_not_sharpness(
    tmp_path: Path,
) -> None:
    image = create_scene(3)
    whole = measure(tmp_path, image)
    dim = measure(tmp_path, image.point(lambda level: level // 2))
    assert dim["contrast"] == pytest.approx(whole["contrast"] / 2, abs=0.02)
    assert dim["sharpness"] == pytest.approx(whole["sharpness"], rel=0.1)

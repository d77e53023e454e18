"""Tests of lazy images: pixels and crops equal Pillow's."""

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.data.images.decode import check_image, decode_image, open_image
from finetune.data.images.jpeg import LazyJpeg
from finetune.data.images.lazy_image import ArrayImage
from finetune.data.images.resample import Box, Interpolation, Pixels, resize
from finetune.errors import DataError
from finetune.types import ReadOptions
from tests.data.images.test_decode import BROKEN
from tests.support.helpers import ROOT, create_noise, create_smooth_image
from tests.support.pictures import ORIENTATION, compute_psnr, record_decoded_shapes, write_jpeg

PHOTOS = ROOT.parent / "shared" / "data"
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ORIENTATIONS = range(1, 9)


def by_pillow(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def assert_equals_pillow(file: Path, *, kind: type) -> None:
    """Check that the image has a type and is bit-identical to Pillow's."""
    expected = np.asarray(by_pillow(file))
    lazy_image = open_image(file)
    assert type(lazy_image) is kind
    assert (lazy_image.height, lazy_image.width) == expected.shape[:2]
    assert lazy_image.to_pil().mode == "RGB"
    np.testing.assert_array_equal(np.asarray(lazy_image.to_pil()), expected)


@pytest.mark.parametrize("size", [(64, 48), (61, 45), (7, 3), (1, 1)])
@pytest.mark.parametrize("quality", [25, 75, 95, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"subsampling": 2, "progressive": True},
        {"subsampling": 2, "restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_lazy_jpeg_is_bit_identical_to_pillow(
    tmp_path: Path, size: tuple[int, int], quality: int, options: dict[str, Any]
) -> None:
    image = create_noise(width=size[0], height=size[1])
    file = write_jpeg(tmp_path / "x.jpg", image, quality=quality, **options)
    assert_equals_pillow(file, kind=LazyJpeg)


@pytest.mark.parametrize("progressive", [False, True])
def test_lazy_jpeg_gray_is_bit_identical_to_pillow(tmp_path: Path, progressive: bool) -> None:
    gray = create_noise(width=61, height=45).convert("L")
    file = write_jpeg(tmp_path / "x.jpg", gray, progressive=progressive)
    assert_equals_pillow(file, kind=LazyJpeg)


def test_lazy_jpeg_multi_picture_file_gives_first(tmp_path: Path) -> None:
    first, second = create_smooth_image(width=40, height=30), create_noise(width=40, height=30)
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert_equals_pillow(tmp_path / "x.jpg", kind=LazyJpeg)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(61, 45), (45, 61)])
def test_lazy_jpeg_applies_orientation(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    image = create_smooth_image(width=size[0], height=size[1])
    file = write_jpeg(tmp_path / "x.jpg", image, orientation=orientation)
    assert_equals_pillow(file, kind=LazyJpeg)


def tiff(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """Return EXIF data of (tag, type, count, 4 bytes of value)."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


SHORT, ASCII, LONG = 3, 2, 4
SIX = struct.pack("<HH", 6, 0)
EXIFS = {
    "turned": (tiff([(ORIENTATION, SHORT, 1, SIX)]), True),
    "of another type": (tiff([(ORIENTATION, LONG, 1, struct.pack("<I", 6))]), True),
    # Pillow fails to write a number that is stored as text
    "turned, beside invalid tag": (
        tiff([(ORIENTATION, SHORT, 1, SIX), (0x0120, ASCII, 2, b"a\0\0\0")]),
        True,
    ),
    "a text": (tiff([(ORIENTATION, ASCII, 2, b"6\0\0\0")]), False),
    # Pillow warns and takes the first one
    "two numbers": (tiff([(ORIENTATION, SHORT, 2, struct.pack("<HH", 6, 6))]), True),
    "zero": (tiff([(ORIENTATION, SHORT, 1, bytes(4))]), False),
    "nine": (tiff([(ORIENTATION, SHORT, 1, struct.pack("<HH", 9, 0))]), False),
    "no TIFF": (b"Dear diary,", False),
    "empty": (b"", False),
    "none": (None, False),
}


@pytest.mark.parametrize("name", EXIFS)
def test_lazy_jpeg_only_valid_exif_orientation_is_applied(tmp_path: Path, name: str) -> None:
    exif, turned = EXIFS[name]
    image = create_smooth_image(width=40, height=30)
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=b"" if exif is None else b"Exif\0\0" + exif)
    (tmp_path / "x.jpg").write_bytes(stream.getvalue())
    stored = np.asarray(Image.open(stream))
    # 6: the camera's right side is up
    expected = np.rot90(stored, -1) if turned else stored
    lazy_image = open_image(tmp_path / "x.jpg")
    assert type(lazy_image) is LazyJpeg
    np.testing.assert_array_equal(np.asarray(lazy_image.to_pil()), expected)
    np.testing.assert_array_equal(np.asarray(decode_image(tmp_path / "x.jpg")), expected)


def test_lazy_jpeg_applies_xmp_orientation(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    create_smooth_image(width=40, height=30).save(tmp_path / "x.jpg", xmp=xmp)
    assert by_pillow(tmp_path / "x.jpg").size == (30, 40)
    assert_equals_pillow(tmp_path / "x.jpg", kind=LazyJpeg)


def test_lazy_jpeg_finds_exif_behind_long_segments(tmp_path: Path) -> None:
    image = create_smooth_image(width=40, height=30)
    file = write_jpeg(tmp_path / "x.jpg", image, orientation=6)
    data = file.read_bytes()
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000)
    file.write_bytes(data[:2] + 4 * profile + data[2:])
    assert by_pillow(file).size == (30, 40)
    assert_equals_pillow(file, kind=LazyJpeg)


def to_upright_box(file: Path, box: Box) -> Box:
    """Return a box of the stored image in the upright one, by Pillow."""
    with Image.open(file) as image:
        mask = Image.new("L", image.size)
        mask.paste(255, box)
        mask.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        upright = ImageOps.exif_transpose(mask).getbbox()
    assert upright is not None
    return upright


def crop_by_pillow(
    image: Image.Image, box: Box, size: tuple[int, int], mode: Interpolation = "bilinear"
) -> Pixels:
    return np.asarray(image.crop(box).resize(size[::-1], FILTERS[mode]))


# boxes of the stored image, aligned to its 8-pixel blocks: all of it, the middle and a corner
BOXES = [(0, 0, 640, 480), (64, 104, 448, 392), (392, 288, 648, 488)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_lazy_jpeg_crop_is_close_to_pillow(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jpeg(
        tmp_path / "x.jpg",
        create_smooth_image(width=648, height=488),
        orientation=orientation,
        quality=92,
    )
    shapes = record_decoded_shapes(monkeypatch)
    upright = by_pillow(file)
    for scale, box in itertools.product((1, 2, 4, 8), BOXES):
        left, top, right, bottom = turned = to_upright_box(file, box)
        height, width = bottom - top, right - left
        # nearly half of the largest size for this scale
        size = (int(height / scale / 1.9), int(width / scale / 1.9))
        actual = open_image(file).crop(turned, size)
        assert actual.flags.c_contiguous
        assert actual.dtype == np.uint8
        assert shapes.pop() == (-(-488 // scale), -(-648 // scale), 3)
        expected = crop_by_pillow(upright, turned, size)
        assert expected.std() > 15
        assert compute_psnr(actual, expected) >= 40, (scale, box)
        # a different crop of the same image is far away
        assert compute_psnr(expected[::-1], expected) < 30


@pytest.mark.parametrize("orientation", [1, 6])
def test_lazy_jpeg_crop_at_full_scale_equals_pillow(tmp_path: Path, orientation: int) -> None:
    file = write_jpeg(
        tmp_path / "x.jpg", create_noise(width=61, height=45), orientation=orientation
    )
    upright = by_pillow(file)
    random = np.random.default_rng(0)
    for _ in range(20):
        left, top = random.integers(0, 20, 2).tolist()
        width, height = random.integers(5, 25, 2).tolist()
        box = (left, top, left + width, top + height)
        size = (height, width)
        np.testing.assert_array_equal(
            open_image(file).crop(box, size), np.asarray(upright.crop(box))
        )


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_lazy_jpeg_crop_is_never_decoded_below_requested_size(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jpeg(
        tmp_path / "x.jpg", create_noise(width=203, height=157), orientation=orientation, quality=30
    )
    lazy_image = open_image(file)
    shapes: list[tuple[tuple[int, ...], tuple[int, int]]] = []

    def watched(pixels: Pixels, size: tuple[int, int], mode: Interpolation) -> Pixels:
        shapes.append((pixels.shape[:2], size))
        return resize(pixels, size, mode)

    monkeypatch.setattr("finetune.data.images.jpeg.resize", watched)
    decoded = record_decoded_shapes(monkeypatch)
    random = np.random.default_rng(1)
    full = 0
    for _ in range(400):
        left, top = random.integers(0, 100, 2).tolist()
        rows, columns = random.integers(1, 40, 2).tolist()
        width = random.integers(columns, lazy_image.width - left + 1)
        height = random.integers(rows, lazy_image.height - top + 1)
        lazy_image.crop((left, top, left + int(width), top + int(height)), (rows, columns))
        decoded_size, requested = shapes.pop()
        assert decoded_size[0] >= requested[0]
        assert decoded_size[1] >= requested[1]
        full += decoded.pop()[:2] == (157, 203)
    assert 40 < full < 360, "some crops must be decoded at full size, and some not"


def test_lazy_jpeg_crop_rounds_both_edges_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # at scale 1/8 the box spans 1.5 to 4.5, which is 3 pixels and not 2
    file = write_jpeg(tmp_path / "x.jpg", create_smooth_image(width=64, height=64))
    shapes: list[tuple[int, ...]] = []

    def watched(pixels: Pixels, size: tuple[int, int], mode: Interpolation) -> Pixels:
        shapes.append(pixels.shape)
        return resize(pixels, size, mode)

    monkeypatch.setattr("finetune.data.images.jpeg.resize", watched)
    open_image(file).crop((12, 12, 36, 36), (3, 3))
    assert shapes == [(3, 3, 3)]


def test_lazy_jpeg_crop_is_never_upscaled_from_reduced_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jpeg(tmp_path / "x.jpg", create_smooth_image(width=400, height=200))
    shapes = record_decoded_shapes(monkeypatch)
    lazy_image = open_image(file)
    cases = {
        (100, 100): 2,  # of 200 x 200 pixels
        (101, 100): 1,
        (100, 101): 1,
        (50, 50): 4,
        (51, 50): 2,
        (25, 25): 8,
        (26, 25): 4,
        (3, 3): 8,
        (300, 300): 1,
    }
    for size, scale in cases.items():
        assert lazy_image.crop((40, 0, 240, 200), size).shape == (*size, 3)
        assert shapes.pop() == (200 // scale, 400 // scale, 3)


def saved(image: Image.Image, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


def test_open_image_other_than_plain_jpeg_uses_pillow(tmp_path: Path) -> None:
    image = create_noise(width=31, height=22)
    cmyk = saved(image.convert("CMYK"), tmp_path / "cmyk.jpg")
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    deep = np.asarray(image).astype(np.uint16) * 257
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    Image.fromarray(deep[..., 0]).save(tmp_path / "deep_grey.png")
    files = [
        cmyk,
        saved(image, tmp_path / "rgb.png"),
        saved(image, tmp_path / "name.jpg", format="PNG"),
        saved(alpha, tmp_path / "alpha.png"),
        saved(image.quantize(16), tmp_path / "palette.png"),
        saved(image, tmp_path / "x.webp", lossless=True),
        saved(image, tmp_path / "x.gif"),
        tmp_path / "deep.png",
        tmp_path / "deep_grey.png",
    ]
    for file in files:
        lazy_image = open_image(file)
        assert type(lazy_image) is ArrayImage, file
        expected = decode_image(file)
        assert (lazy_image.height, lazy_image.width) == (22, 31)
        np.testing.assert_array_equal(np.asarray(lazy_image.to_pil()), np.asarray(expected))
        np.testing.assert_array_equal(
            lazy_image.crop((3, 2, 13, 12), (10, 10)), np.asarray(expected.crop((3, 2, 13, 12)))
        )


@pytest.mark.parametrize("name", BROKEN)
def test_open_image_broken_file_gives_reason_of_decode_image(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    options = ReadOptions(max_pixels=3_000 if name == "large.png" else 1_000_000)
    with pytest.raises(DataError) as expected:
        decode_image(tmp_path / name, options=options)
    for use in ("full", "crop"):
        with pytest.raises(DataError, match=f"^{reason}") as caught:
            read(tmp_path / name, use, options=options)
        assert str(caught.value) == str(expected.value)


def read(file: Path, use: str, *, options: ReadOptions) -> object:
    lazy_image = open_image(file, options=options)
    return lazy_image.to_pil() if use == "full" else lazy_image.crop((0, 0, 8, 8), (2, 2))


def test_open_image_large_jpeg_raises_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jpeg(tmp_path / "x.jpg", create_noise(width=64, height=48))
    assert open_image(file, options=ReadOptions(max_pixels=64 * 48)).height == 48
    shapes = record_decoded_shapes(monkeypatch)
    with pytest.raises(DataError) as caught:
        open_image(file, options=ReadOptions(max_pixels=64 * 48 - 1))
    with pytest.raises(DataError) as expected:
        decode_image(file, options=ReadOptions(max_pixels=64 * 48 - 1))
    assert str(caught.value) == str(expected.value)
    assert shapes == []


def test_lazy_jpeg_damage_that_pillow_tolerates_is_tolerated(tmp_path: Path) -> None:
    file = write_jpeg(tmp_path / "x.jpg", create_smooth_image(width=400, height=300), orientation=6)
    data = file.read_bytes()
    file.write_bytes(data[:-2] + bytes(20) + data[-2:])  # "20 extraneous bytes before marker"
    expected = by_pillow(file)
    lazy_image = open_image(file)
    np.testing.assert_array_equal(np.asarray(lazy_image.to_pil()), np.asarray(expected))
    box = (0, 0, 300, 400)
    np.testing.assert_allclose(
        lazy_image.crop(box, (40, 30)).astype(int), crop_by_pillow(expected, box, (40, 30)), atol=1
    )


def test_array_image_crop_of_shrunk_image_uses_stored_pixels() -> None:
    small = create_smooth_image(width=200, height=150)
    lazy_image = ArrayImage(np.asarray(small), height=600, width=800)
    actual = lazy_image.crop((80, 40, 480, 360), (32, 40))
    expected = crop_by_pillow(small, (20, 10, 120, 90), (32, 40))
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), atol=1)
    np.testing.assert_array_equal(np.asarray(lazy_image.to_pil()), np.asarray(small))
    for box in ((0, 0, 1, 1), (799, 599, 800, 600), (797, 0, 800, 600)):
        assert lazy_image.crop(box, (2, 3)).shape == (2, 3, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_open_image_jpeg_closed_after_half_a_scan_is_truncated(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    for mode in ("RGB", "L", "CMYK"):
        image = create_noise(width=200, height=160).convert(mode)
        file = write_jpeg(tmp_path / "x.jpg", image, **options)
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
        for use in ("full", "crop"):
            with pytest.raises(DataError, match=r"^truncated JPEG$"):
                read(file, use, options=ReadOptions())
        assert check_image(file) == "truncated JPEG"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="shared photos are missing")
@pytest.mark.parametrize("folder", ["hymenoptera/train/ants", "trashnet/glass"])
def test_lazy_jpeg_real_photos_are_bit_identical_and_crops_close(folder: str) -> None:
    files = sorted((PHOTOS / folder).glob("*.jpg"))[::9][:12]
    assert len(files) == 12
    for file in files:
        assert_equals_pillow(file, kind=LazyJpeg)
        lazy_image, upright = open_image(file), by_pillow(file)
        box = (16, 8, upright.width // 8 * 8, upright.height // 8 * 8)
        for side in (96, 48, 24):
            actual = lazy_image.crop(box, (side, side))
            assert compute_psnr(actual, crop_by_pillow(upright, box, (side, side))) > 30

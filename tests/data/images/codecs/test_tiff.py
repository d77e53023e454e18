"""TIFF files of every layout that tifffile writes are read as tifffile reads them, or rejected."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.codecs import tiff as module
from finetune.data.images.decode import check_image, open_image
from finetune.types import PixelRange, ReadOptions

HEIGHT, WIDTH = 21, 35
Array = NDArray[Any]
BY_IMAGECODECS = {
    "webp": "WebP", "jpeg2000": "JPEG 2000", "jpegxl": "JPEG XL", "lerc": "LERC", "png": "PNG",
    "jpegxr": "JPEG XR",
}  # fmt: skip
"""Compression and its name in messages."""
COMPRESSION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "webp": {"lossless": True},
    "jpegxl": {"lossless": True, "effort": 1},
    "lzma": {"level": 0},
    "jpegxr": {"level": 100},
    "jpeg": {"level": 100},
}


@dataclass(frozen=True)
class Layout:
    """Layout of a TIFF file, by the arguments of ``tifffile.imwrite``."""

    num_samples: int
    dtype: str
    photometric: str
    extra: str | None
    planar: str
    compression: str | None
    predictor: bool
    is_tiled: bool
    byte_order: Literal["<", ">"]
    is_big: bool = False


def create_samples(layout: Layout) -> Array:
    """Return samples of shape (H, W, samples), different in each sample."""
    across, down = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    planes = [across * 7, down * 12, 255 - across * 5, 40 + down * 9, across + down]
    values = np.stack(planes[: layout.num_samples], axis=-1)
    if layout.dtype == "u2":  # not only multiples of 257
        values = values * 257 + np.where(values > 100, -30, 17)
    samples = values.astype(layout.dtype)
    if layout.extra == "assocalpha":
        largest = np.iinfo(samples.dtype).max
        samples[..., :-1] = samples[..., :-1] * (samples[..., -1:] / largest)
    return samples


def write(path: Path, layout: Layout) -> bool:
    """Write a file; return whether tifffile can."""
    data = create_samples(layout)
    arguments: dict[str, Any] = {}
    if layout.num_samples == 1:
        data = data[..., 0]
    else:
        arguments["planarconfig"] = layout.planar
        data = np.moveaxis(data, -1, 0) if layout.planar == "separate" else data
    if layout.extra is not None:
        num_extra = 2 if layout.num_samples == 5 else 1
        arguments["extrasamples"] = [layout.extra] * num_extra
    try:
        tifffile.imwrite(
            path,
            np.ascontiguousarray(data),
            photometric=layout.photometric,
            compression=layout.compression,
            compressionargs=dict(COMPRESSION_ARGUMENTS.get(layout.compression or "", {})),
            predictor=layout.predictor or None,
            tile=(16, 16) if layout.is_tiled else None,
            rowsperstrip=None if layout.is_tiled else 10,
            byteorder=layout.byte_order,
            bigtiff=layout.is_big,
            metadata=None,
            **arguments,
        )
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return False
    return True


def compute_reference(path: Path, layout: Layout) -> Array:
    """Return tifffile's own array of a file as RGB from 0 to 255, float, on white."""
    with tifffile.TiffFile(path) as file:
        array = file.pages.first.asarray()
    if layout.planar == "separate" and layout.num_samples > 1:
        array = np.moveaxis(array, 0, -1)
    values = array.reshape(HEIGHT, WIDTH, -1) / np.iinfo(array.dtype).max
    if layout.photometric == "separated":
        return np.asarray(255 * (1 - values[..., :3]) * (1 - values[..., 3:4]))
    num_colors = 3 if layout.photometric == "rgb" else 1
    color, alpha = values[..., :num_colors], values[..., num_colors : num_colors + 1]
    if layout.photometric == "miniswhite":
        color = 1 - color
    if layout.extra == "unassalpha":
        color = color * alpha + 1 - alpha
    elif layout.extra == "assocalpha":
        color = color + 1 - alpha
    return np.asarray(255 * np.clip(np.broadcast_to(color, (HEIGHT, WIDTH, 3)), 0, 1))


def iter_layouts(compression: str | None, *, predictor: bool = False) -> Iterator[Layout]:
    kinds: list[tuple[int, str, str | None]] = [
        (1, "minisblack", None),
        (1, "miniswhite", None),
        (3, "rgb", None),
    ]
    kinds += [(4, "separated", None), (5, "rgb", "unspecified")]
    for kind in ("unspecified", "assocalpha", "unassalpha"):
        kinds += [(2, "minisblack", kind), (2, "miniswhite", kind), (4, "rgb", kind)]
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for (num_samples, photometric, extra), dtype, planar, is_tiled, byte_order in itertools.product(
        kinds, ("u1", "u2"), ("contig", "separate"), (False, True), orders
    ):
        if num_samples == 1 and planar == "separate":
            continue
        layout = Layout(
            num_samples, dtype, photometric, extra, planar, compression, predictor,
            is_tiled, byte_order,
        )  # fmt: skip
        yield layout
        if compression in (None, "lzw") and not is_tiled:
            yield Layout(**{**vars(layout), "is_big": True})


def list_pairs(layouts: list[Layout]) -> set[tuple[tuple[str, Any], ...]]:
    """Return all pairs of properties that layouts have."""
    return {pair for layout in layouts for pair in itertools.combinations(vars(layout).items(), 2)}


def compute_error(path: Path, layout: Layout) -> float:
    pixels = np.asarray(open_image(path).to_pil(), np.float64)
    return float(np.abs(pixels - compute_reference(path, layout)).max())


@pytest.mark.runs
@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        (None, False),
        *itertools.product(("deflate", "lzw", "zstd", "lzma"), (False, True)),
        ("packbits", False),
    ],
)
def test_open_image_tiff_layouts_are_read_as_by_tifffile(
    tmp_path: Path, compression: str | None, predictor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_imagecodecs", lambda: False)
    path, num_read = tmp_path / "a.tif", 0
    layouts = list(iter_layouts(compression, predictor=predictor))
    step = 1 if compression is None else 5
    assert list_pairs(layouts[::step]) == list_pairs(layouts)
    for layout in layouts[::step]:
        if write(path, layout):
            assert compute_error(path, layout) < 2, layout
            num_read += 1
    assert num_read >= 140 // step


@pytest.mark.runs
@pytest.mark.parametrize("compression", BY_IMAGECODECS)
def test_open_image_tiff_other_compressions_need_imagecodecs(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, num_read = tmp_path / "a.tif", 0
    for layout in itertools.islice(iter_layouts(compression), None, None, 3):
        if not write(path, layout):
            continue
        with monkeypatch.context() as patch:
            patch.setattr(module, "has_imagecodecs", lambda: False)
            reason = check_image(path)
        assert reason is not None, layout
        assert reason.startswith(f"TIFF compressed by {BY_IMAGECODECS[compression]}, which needs")
        assert "finetune-vision[tiff]" in reason
        assert compute_error(path, layout) < 2, layout
        num_read += 1
    assert num_read >= 5


@pytest.mark.runs
def test_open_image_tiff_jpeg_is_read_without_imagecodecs_where_pillow_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_imagecodecs", lambda: False)
    path, num_read, reasons = tmp_path / "a.tif", 0, set()
    for layout in iter_layouts("jpeg"):
        if not write(path, layout):
            continue
        reason = check_image(path)
        if reason is None:
            assert compute_error(path, layout) < 2.6, layout
            num_read += 1
        else:
            reasons.add(reason.partition(",")[0])
    assert num_read >= 60
    assert reasons == {"TIFF compressed by JPEG", "TIFF with YCbCr colours"}


def pack_bits(values: Array, num_bits: int) -> bytes:
    """Return rows of values of some bits each, the highest first, each row filled to a byte."""
    shifts = np.arange(num_bits)[::-1]
    bits = (values[..., None] >> shifts & 1).reshape(len(values), -1)
    return np.packbits(bits.astype(np.uint8), axis=1).tobytes()


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 6, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_open_image_tiff_packed_bits_are_scaled_to_eight(
    tmp_path: Path, num_bits: int, photometric: str
) -> None:
    values = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 3 % 2**num_bits
    dtype = np.uint8 if num_bits <= 8 else np.uint16
    tifffile.imwrite(
        tmp_path / "a.tif", iter([pack_bits(values, num_bits)]), shape=values.shape, dtype=dtype,
        bitspersample=num_bits, photometric=photometric, rowsperstrip=HEIGHT, metadata=None,
    )  # fmt: skip
    grey = np.asarray(open_image(tmp_path / "a.tif").to_pil())[..., 0]
    expected = values * (255 / (2**num_bits - 1))
    expected = 255 - expected if photometric == "miniswhite" else expected
    assert np.abs(grey - expected).max() <= 1


@pytest.mark.parametrize("scale", [1, 257])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_open_image_tiff_colour_map_of_8_or_16_bits(
    tmp_path: Path, scale: int, compression: str | None
) -> None:
    rows = np.arange(256, dtype=np.uint16)
    colour_map = np.stack([rows, rows[::-1], rows ^ 85]) * scale
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tifffile.imwrite(
        tmp_path / "a.tif", indices, photometric="palette", colormap=colour_map.astype(np.uint16),
        compression=compression, metadata=None,
    )  # fmt: skip
    pixels = np.asarray(open_image(tmp_path / "a.tif").to_pil())
    assert np.array_equal(pixels.reshape(256, 3), (colour_map // scale).T)


def read_grey(path: Path, pixel_range: PixelRange | None) -> Array:
    """Return the first channel of an image that is read with a range."""
    image = open_image(path, options=ReadOptions(pixel_range=pixel_range))
    return np.asarray(image.to_pil())[..., 0]


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("predictor", [False, True])
def test_open_image_tiff_values_without_agreed_range_need_one(
    tmp_path: Path, dtype: str, predictor: bool
) -> None:
    path, values = tmp_path / "a.tif", (np.arange(63).reshape(7, 9) * 2).astype(dtype)
    tifffile.imwrite(
        path, values, photometric="minisblack", metadata=None,
        compression="deflate" if predictor else None, predictor=predictor or None, byteorder=">",
    )  # fmt: skip
    reason = check_image(path)
    assert reason is not None
    assert "no agreed range; set data.pixel_range" in reason
    grey = read_grey(path, PixelRange(0, 124))
    assert np.abs(grey - values.astype(float) * 255 / 124).max() <= 0.5
    grey = read_grey(path, PixelRange(20, 60))
    assert grey[values <= 20].max() == 0
    assert grey[values >= 60].min() == 255


def test_open_image_tiff_floats_that_a_range_makes_black_are_rejected(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 63, dtype=np.float32).reshape(7, 9)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", metadata=None)
    reason = check_image(tmp_path / "a.tif", options=ReadOptions(pixel_range=PixelRange(0, 4095)))
    assert reason is not None
    assert "float pixels are black in the range of data.pixel_range" in reason


@pytest.mark.parametrize(
    ("stated", "largest", "pixel_range", "scale"),
    [
        (4095, 4095, None, 16),
        (4095, 4095, PixelRange(0, 65_535), 16),  # the file knows better
        (4095, 65_535, None, 256),  # the statement is wrong
        (40_000, 40_000, None, 256),  # a statistic of the image, no number of bits
        (None, 4095, None, 256),
        (None, 4095, PixelRange(0, 4095), 16),
        (4095, 4095, PixelRange(0, 2000), 2001 / 256),  # a window
    ],
)
def test_open_image_tiff_max_sample_value_states_bits(
    tmp_path: Path, stated: int | None, largest: int, pixel_range: PixelRange | None, scale: float
) -> None:
    values = np.linspace(0, largest, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    tags = [] if stated is None else [(281, "H", 1, stated, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", extratags=tags, metadata=None
    )
    image = open_image(tmp_path / "a.tif", options=ReadOptions(pixel_range=pixel_range))
    expected = np.minimum(values / scale, 255).astype(np.uint8)
    assert np.array_equal(np.asarray(image.to_pil())[..., 0], expected)
    assert image.max_value == (0 if stated == 4095 and largest == 4095 else largest)


@pytest.mark.parametrize("orientation", range(10))
def test_open_image_tiff_orientation_is_applied_to_16_bits(
    tmp_path: Path, orientation: int
) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 80
    plain = Image.fromarray((values >> 8).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain.save(tmp_path / "plain.png", exif=exif)
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", extratags=[tag], metadata=None
    )
    assert np.array_equal(
        np.asarray(open_image(tmp_path / "a.tif").to_pil()),
        np.asarray(open_image(tmp_path / "plain.png").to_pil()),
    )


def write_truncated(path: Path, **arguments: Any) -> None:
    rows = np.random.default_rng(0).integers(0, 65_535, (64, 64), dtype=np.uint16)
    tifffile.imwrite(path, rows, photometric="minisblack", metadata=None, **arguments)
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("write_file", "expected"),
    [
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((9, 9, 13), np.uint16), photometric="minisblack",
                planarconfig="contig",
            ),
            "TIFF of 13 bands of 16 bits",
        ),
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((9, 9, 3), np.uint8), photometric="minisblack",
                planarconfig="contig",
            ),
            "TIFF of 3 bands of 8 bits",
        ),
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((9, 9, 3), np.uint8), photometric="cielab"
            ),
            "CIELab colours",
        ),
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((9, 9), np.complex64), photometric="minisblack"
            ),
            "complex numbers",
        ),
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((16, 16, 16), np.uint16), photometric="minisblack",
                volumetric=True, tile=(16, 16, 16),
            ),
            "volume of 16 slices",
        ),
        (write_truncated, "truncated"),
        (lambda path: write_truncated(path, compression="deflate"), "truncated"),
        (lambda path: write_truncated(path, compression="lzw"), "truncated|damaged"),
        (lambda path: path.write_bytes(b"II*\0\xff\0\0\0" + bytes(20)), "truncated TIFF"),
        (lambda path: path.write_bytes(b"II*\0\x08\0\0\0\xff\xff" + bytes(20)), "TIFF"),
    ],
)  # fmt: skip
def test_check_image_tiff_reason_names_the_layout_or_the_damage(
    tmp_path: Path, write_file: Any, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_file(tmp_path / "a.tif")
    reason = check_image(tmp_path / "a.tif")
    assert reason is not None
    assert any(part in reason for part in expected.split("|")), reason
    assert capfd.readouterr() == ("", "")


def test_check_image_tiff_too_many_pixels_are_rejected_before_decoding(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 50), np.uint16), photometric="minisblack")
    reason = check_image(tmp_path / "a.tif", options=ReadOptions(max_pixels=2_499))
    assert reason is not None
    assert reason.startswith("too large: 50x50")

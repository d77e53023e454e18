"""Channels and bits of images: every format against numpy, Pillow and tifffile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from finetune.data.images.decode import check_image, open_image
from finetune.data.images.lazy_image import ArrayImage
from finetune.data.images.multichannel import (
    MultichannelImage,
    Planes,
    build_stored_image,
    get_whole_image,
)
from finetune.data.images.resample import resize
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.data.transforms.presets import AUGMENTATIONS, create_train_transform
from finetune.errors import DataError
from finetune.types import Draw, PixelRange, PreprocessSpec, ReadOptions

HEIGHT, WIDTH = 20, 30
RANDOM = np.random.default_rng(7)
RGBA = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65_536, (HEIGHT, WIDTH, 6), dtype=np.uint16)


def _read(path: Path, channels: int, depth: int = 8, **options: Any) -> NDArray[Any]:
    given = ReadOptions(num_channels=channels, bit_depth=depth, **options)
    image = open_image(path, options=given)
    assert isinstance(image, MultichannelImage)
    assert check_image(path, options=given) is None
    assert image.pixels.shape[2] == channels
    assert image.pixels.dtype == (np.uint8 if depth == 8 else np.uint16)
    return image.pixels


def _flatten(rgba: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(rgba)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def test_channels_of_png_with_opacity(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGBA).save(path)
    luma = np.asarray(Image.fromarray(RGBA[..., :3]).convert("L"))

    assert np.array_equal(_read(path, 4), RGBA)
    assert np.array_equal(_read(path, 2), np.stack([luma, RGBA[..., 3]], axis=2))
    assert np.array_equal(_read(path, 1)[..., 0], np.asarray(_flatten(RGBA).convert("L")))
    assert np.array_equal(_read(path, 4, 16), RGBA.astype(np.uint16) * 257)
    assert type(open_image(path)) is ArrayImage, "RGB of 8 bits is read as before"


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp"])
def test_images_without_opacity_are_opaque(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGBA[..., :3]).save(path)
    rgb = np.asarray(open_image(path).to_pil())

    pixels = _read(path, 4)

    assert np.array_equal(pixels[..., :3], rgb)
    assert (pixels[..., 3] == 255).all()
    assert np.array_equal(_read(path, 1)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))


def test_transparent_colours_of_palettes_and_keys_have_no_opacity(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    grey[0] = 200
    Image.fromarray(grey).save(tmp_path / "key.png", transparency=200)
    palette = Image.fromarray(grey // 200, "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.gif", transparency=1)

    for name in ("key.png", "palette.gif"):
        opacity = _read(tmp_path / name, 4)[..., 3]
        assert (opacity[0] == 0).all(), name
        assert (opacity[1:] == 255).all(), name


def test_orientation_applies_to_all_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGBA).save(path, exif=exif)
    assert np.array_equal(_read(path, 4), np.rot90(RGBA, -1))


@pytest.mark.parametrize("order", ["RGBA", "RGB", "L"])
def test_png_of_16_bits_keeps_them(tmp_path: Path, order: str) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.png"
    rgb, alpha, grey = DEEP[..., :3], DEEP[..., 3], DEEP[..., 4]
    arrays = {"RGBA": np.dstack([rgb[..., ::-1], alpha]), "RGB": rgb[..., ::-1], "L": grey}
    assert cv2.imwrite(str(path), arrays[order])

    if order == "L":
        assert np.array_equal(_read(path, 1, 16)[..., 0], grey)
        assert np.array_equal(_read(path, 3, 16), np.repeat(grey[..., None], 3, 2))
    elif order == "RGB":
        assert np.array_equal(_read(path, 3, 16), rgb)
        assert (_read(path, 4, 16)[..., 3] == 65_535).all()
    else:
        assert np.array_equal(_read(path, 4, 16), np.dstack([rgb, alpha]))
        opacity = alpha[..., None] / 65_535
        expected = rgb * opacity + 65_535 * (1 - opacity)
        assert np.abs(_read(path, 3, 16) - expected).max() <= 1
        assert np.array_equal(_read(path, 4)[..., :3], rgb >> 8)


LAYOUTS = {
    "side by side": {"planarconfig": "contig", "photometric": "minisblack"},
    "planes": {"planarconfig": "separate", "photometric": "minisblack"},
    "declared as RGB": {"planarconfig": "contig", "photometric": "rgb"},
    "deflate, tiles": {
        "planarconfig": "contig", "photometric": "minisblack", "compression": "zlib",
        "tile": (16, 16), "predictor": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_bands_of_tiff_keep_order_and_values(tmp_path: Path, layout: str, channels: int) -> None:
    if layout == "declared as RGB" and channels < 3:
        pytest.skip("RGB has three bands at least")
    path, bands = tmp_path / "a.tif", DEEP[..., :channels]
    stored = np.moveaxis(bands, 2, 0) if layout == "planes" else bands
    tifffile.imwrite(path, stored, **LAYOUTS[layout])  # type: ignore[arg-type]

    assert np.array_equal(_read(path, channels, 16), bands)
    assert np.array_equal(_read(path, channels), bands >> 8)


@pytest.mark.parametrize("axis", [0, 2])
def test_bands_in_an_axis_of_an_array_or_in_pages(tmp_path: Path, axis: int) -> None:
    """The library takes the first axis of an array for pages, whatever it is."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(DEEP, 2, axis))
    assert np.array_equal(_read(path, 6, 16), DEEP)


def test_pages_of_other_writers_are_bands(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = [Image.fromarray(RGBA[..., i]) for i in range(4)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert np.array_equal(_read(path, 4), RGBA)


def test_floats_keep_their_depth_in_a_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = RANDOM.uniform(-0.2, 1.2, (HEIGHT, WIDTH, 5)).astype(np.float32)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")

    pixels = _read(path, 5, 16, pixel_range=PixelRange(0, 1))

    assert np.abs(pixels / 65_535 - values.clip(0, 1)).max() < 1e-5
    with pytest.raises(DataError, match=r"32-bit float pixels.*data\.pixel_range"):
        open_image(path, options=ReadOptions(num_channels=5))


def test_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = DEEP[..., :4] >> 4
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    options = ReadOptions(num_channels=4, bit_depth=16)
    assert open_image(path, options=options).max_value == values.max(), "for data.pixel_range=auto"
    pixels = _read(path, 4, 16, pixel_range=PixelRange(0, 4095))
    assert np.array_equal(pixels, np.rint(values * (65_535 / 4095)))
    assert len(np.unique(pixels)) == len(np.unique(values)) > 256


@pytest.mark.parametrize(
    ("stored", "channels", "message"),
    [
        (6, 4, r"TIFF of 6 bands, but data\.channels=4"),
        (3, 4, r"TIFF of 3 bands, but data\.channels=4"),
        (1, 6, r"TIFF of 1 band, but data\.channels=6"),
        (6, 1, r"TIFF of 6 bands.*data\.channels=6"),
    ],
)
def test_other_numbers_of_bands_are_named(
    tmp_path: Path, stored: int, channels: int, message: str
) -> None:
    path = tmp_path / "a.tif"
    photometric = "rgb" if stored == 3 else "minisblack"
    array = DEEP[..., :stored] if stored > 1 else DEEP[..., 0]
    tifffile.imwrite(
        path, array, photometric=photometric, planarconfig="contig" if stored > 1 else None
    )
    with pytest.raises(DataError, match=message):
        open_image(path, options=ReadOptions(num_channels=channels))


def test_other_formats_have_no_five_bands(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    reason = check_image(tmp_path / "a.png", options=ReadOptions(num_channels=5))
    assert reason is not None
    assert "data.channels=5 needs a TIFF" in reason


def test_rendering_shows_grey_opacity_and_the_first_bands() -> None:
    def render(pixels: NDArray[Any]) -> NDArray[Any]:
        image = build_stored_image(pixels, height=HEIGHT, width=WIDTH)
        return np.asarray(image.to_pil())

    assert np.array_equal(render(RGBA), np.asarray(_flatten(RGBA)))
    assert np.array_equal(render(RGBA[..., :1]), np.repeat(RGBA[..., :1], 3, 2))
    assert np.array_equal(render(DEEP), (DEEP[..., :3] >> 8).astype(np.uint8))
    grey = build_stored_image(DEEP, height=HEIGHT, width=WIDTH).to_grey(8)
    assert np.abs(np.asarray(grey) - DEEP.mean(2) / 257).max() <= 1.5


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_treats_channels_alike(channels: int, mode: Any) -> None:
    """Each channel is that of an RGB image, up to a level."""
    # overshoots of a bicubic kernel are clipped in 8 bits
    pixels = RANDOM.integers(64, 192, (64, 48, channels), dtype=np.uint8)
    for size in ((20, 25), (90, 80)):
        resized = resize(pixels, size, mode)
        deep = resize(pixels.astype(np.uint16) * 257, size, mode)
        assert deep.dtype == np.uint16
        assert deep.shape == (*size, channels)
        for channel in range(channels):
            rgb = np.repeat(pixels[..., channel : channel + 1], 3, 2)
            same = resize(rgb, size, mode)[..., 0].astype(int)
            assert np.abs(resized[..., channel] - same).max() <= 1
            assert np.abs(deep[..., channel] / 257 - same).max() <= 1.5


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("depth", [8, 16])
def test_evaluation_transform_is_timms_on_each_channel(crop_mode: str, depth: int) -> None:
    from timm.data.transforms_factory import create_transform

    pixels = DEEP[..., :4] if depth == 16 else RGBA
    mean = (0.1, 0.2, 0.3, 0.4)
    spec = PreprocessSpec((4, 16, 16), mean, mean, crop_pct=0.8, crop_mode=crop_mode)
    image = build_stored_image(pixels, height=HEIGHT, width=WIDTH)

    view = EvalTransform(spec)(image).pixels

    assert view.dtype == pixels.dtype
    for channel in range(4):
        transform = create_transform(
            (1, 16, 16), mean=mean[channel : channel + 1], std=(1.0,), crop_pct=0.8,
            crop_mode=crop_mode, interpolation="bicubic",
        )  # fmt: skip
        grey = Image.fromarray(
            (pixels[..., channel] / (257 if depth == 16 else 1)).round().astype(np.uint8)
        )
        expected = (transform(grey)[0] + mean[channel]).numpy() * 255
        found = view[..., channel] / (257 if depth == 16 else 1)
        assert np.abs(found - expected).max() < (1.6 if depth == 16 else 1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_presets_train_on_any_channels(name: str, channels: int, dtype: Any) -> None:
    high = np.iinfo(dtype).max
    pixels = RANDOM.integers(high // 4, high // 2, (40, 50, channels), dtype=dtype)
    spec = PreprocessSpec((channels, 16, 16), (0.5,) * channels, (0.5,) * channels)
    transform = create_train_transform(name, spec=spec, seed=3)
    image = build_stored_image(pixels, height=40, width=50)
    views = [transform(image, Draw(0, epoch, 0)) for epoch in range(8)]

    assert all(view.pixels.shape == (16, 16, channels) for view in views)
    assert all(view.pixels.dtype == dtype for view in views)
    assert transform.has_color_matrix == (name in ("medium", "strong") and channels == 1)
    for view in views:
        if view.color_matrix is not None:
            assert view.color_matrix.shape == (1, 2)
        # the values stay in their range: no other scale, no overflow
        inside = (view.pixels >= high // 4 - high // 20) & (view.pixels <= high // 2 + high // 20)
        assert inside.mean() > (0.6 if name == "strong" else 0.999)
    again = transform(image, Draw(0, 2, 0))
    assert np.array_equal(again.pixels, views[2].pixels)


def test_planes_crop_and_flip_as_pixels_do() -> None:
    whole = get_whole_image(build_stored_image(DEEP, height=HEIGHT, width=WIDTH))
    assert isinstance(whole, Planes)
    assert np.array_equal(whole.to_pixels(), DEEP), "16 bits survive the float images"
    part = whole.crop((3, 2, 11, 9)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(part.to_pixels(), DEEP[2:9, 3:11][:, ::-1])
    assert (part.size, part.width, part.height) == ((8, 7), 8, 7)


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("width", "height"), [(9, 1), (1, 9), (1, 1)])
def test_rendering_of_images_with_a_side_of_one_pixel(
    num_channels: int, width: int, height: int
) -> None:
    pixels = np.full((height, width, num_channels), 255, np.uint8)
    pixels[0, 0, 0] = 7
    image = MultichannelImage(pixels, height=height, width=width)
    shown = image.to_pil()
    assert shown.size == (width, height)
    assert shown.convert("RGB").getpixel((0, 0))[0] == 7  # type: ignore[index]
    assert image.to_grey(8).size == (width, height)

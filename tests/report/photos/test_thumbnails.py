"""Tests of thumbnails: any kind of file, missing ones, and a time that is spent."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from finetune.commands.report.photos.thumbnails import NO_TIME, SIDE_PX, draw_thumbnails
from finetune.commands.report.photos.time_budget import TimeBudget
from finetune.types import ReadOptions


def decode(uri: str) -> Image.Image:
    """Return the picture of a data URI."""
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_thumbnails_keep_aspect_ratio_and_orientation_and_name_missing_files(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (600, 300), "red").save(tmp_path / "wide.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (600, 300), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (9, 7), 200).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    drawn, reasons = draw_thumbnails(
        ["wide.jpg", "turned.jpg", "tiny.png", "gone.png", "broken.png", "wide.jpg"],
        root=tmp_path,
        options=ReadOptions(),
        budget=TimeBudget(60),
    )
    sizes = {path: decode(uri).size for path, uri in drawn.items()}
    assert sizes["wide.jpg"] == (SIDE_PX, SIDE_PX // 2)
    assert sizes["turned.jpg"] == (SIDE_PX // 2, SIDE_PX)
    assert sizes["tiny.png"] == (144, 112)  # enlarged by a whole factor
    red, green, _ = decode(drawn["wide.jpg"]).getpixel((20, 20))  # type: ignore[misc]
    assert red > 240 > 20 > green
    assert reasons["gone.png"] == "file not found"
    assert reasons["broken.png"] not in ("", "file not found")


def test_thumbnails_of_16_bits_and_many_bands_are_renderings(tmp_path: Path) -> None:
    bands = np.zeros((5, 40, 40), np.uint16)
    bands[1] = 65_535
    tifffile.imwrite(
        tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="separate"
    )
    options = ReadOptions(num_channels=5, bit_depth=16)
    drawn, reasons = draw_thumbnails(
        ["bands.tif"], root=tmp_path, options=options, budget=TimeBudget(60)
    )
    assert reasons == {}
    red, green, _ = decode(drawn["bands.tif"]).getpixel((20, 20))  # type: ignore[misc]
    assert green > 240 > 20 > red


def test_thumbnails_stop_when_the_time_is_spent(tmp_path: Path) -> None:
    Image.new("RGB", (60, 60)).save(tmp_path / "one.png")
    drawn, reasons = draw_thumbnails(
        ["one.png"], root=tmp_path, options=ReadOptions(), budget=TimeBudget(0)
    )
    assert drawn == {}
    assert reasons == {"one.png": NO_TIME}

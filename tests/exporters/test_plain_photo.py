"""Tests of photos that are opened by Pillow alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.images.decode import decode_image
from finetune.exporters import reference_preprocessing, timm_writer
from finetune.exporters.plain_photo import open_plain_photo
from finetune.exporters.reference_preprocessing import read_photo
from finetune.exporters.timm_writer import predict_files
from finetune.types import DEFAULT_READ_OPTIONS
from tests.support.calibrated_models import save_calibrated_model, write_kinds_of_photos
from tests.support.pictures import create_scene


def write_unusual_files(folder: Path) -> list[Path]:
    """Write files that finetune reads by choices of its own."""
    folder.mkdir()
    scene = create_scene(1)
    scene.convert("RGBA").save(folder / "opacity.png")
    scene.convert("CMYK").save(folder / "ink.jpg")
    scene.save(folder / "frames.webp", save_all=True, append_images=[scene.rotate(90)])
    scene.save(folder / "strips.tif")
    deep = np.full((8, 8), 40_000, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    return sorted(folder.iterdir())


def test_open_plain_photo_is_that_of_training(tmp_path: Path) -> None:
    files = write_kinds_of_photos(tmp_path / "photos")
    for file in files:
        photo = open_plain_photo(file, DEFAULT_READ_OPTIONS)
        assert photo is not None, file.name
        assert photo.mode == "RGB"
        assert np.array_equal(np.asarray(photo), np.asarray(decode_image(file))), file.name
    turned = open_plain_photo(tmp_path / "photos" / "turned.jpg", DEFAULT_READ_OPTIONS)
    with Image.open(tmp_path / "photos" / "turned.jpg") as stored:
        assert turned is not None
        assert turned.size == stored.size[::-1]


def test_open_plain_photo_leaves_other_files_to_finetune(tmp_path: Path) -> None:
    for file in write_unusual_files(tmp_path / "files"):
        assert open_plain_photo(file, DEFAULT_READ_OPTIONS) is None, file.name


def test_photos_of_exports_are_opened_without_the_code_that_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("opened by finetune")

    files = write_kinds_of_photos(tmp_path / "photos")
    folder = save_calibrated_model(tmp_path / "bundle").source
    for module in (reference_preprocessing, timm_writer):
        monkeypatch.setattr(module, "open_image", fail)
    assert all(read_photo(file, DEFAULT_READ_OPTIONS).ndim == 3 for file in files)
    assert len(predict_files(folder, files)) == len(files)
    (opaque,) = (f for f in write_unusual_files(tmp_path / "files") if f.name == "opacity.png")
    with pytest.raises(AssertionError, match="opened by finetune"):
        read_photo(opaque, DEFAULT_READ_OPTIONS)

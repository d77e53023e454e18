"""Tests of the sheet of augmented training images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.commands.report.photos.augmented_sheet import draw_augmented_sheet
from finetune.data.dataset import ImageDataset
from finetune.data.images.source import FileSource
from finetune.data.transforms.presets import create_train_transform
from finetune.types import PreprocessSpec

SPEC = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center")
COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def build_dataset(folder: Path, preset: str) -> ImageDataset:
    """Return nine images of three classes, one color each."""
    paths = []
    for number in range(9):
        path = folder / f"{number}.png"
        Image.new("RGB", (40, 40), COLORS[number // 3]).save(path)
        paths.append(path)
    transform = create_train_transform(preset, spec=SPEC, seed=0)
    return ImageDataset(FileSource(paths), [number // 3 for number in range(9)], transform)


def read_tiles(sheet: Image.Image, num_rows: int) -> np.ndarray:
    """Return the color in the middle of each tile, shape (rows, 6, 3)."""
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    lefts = [0, *(12 + 116 * column for column in range(1, 6))]
    return np.array([[pixels[116 * r + 50, left + 50] for left in lefts] for r in range(num_rows)])


def test_augmented_sheet_has_an_image_of_each_class_and_changes_of_color(tmp_path: Path) -> None:
    sheet = draw_augmented_sheet(build_dataset(tmp_path, "medium"), SPEC, seed=0, num_images=3)
    assert sheet is not None
    assert sheet.size == (6 * 116 - 4 + 12, 3 * 116 - 4)
    tiles = read_tiles(sheet, 3)
    plain = tiles[:, 0]
    assert sorted(map(tuple, plain.tolist())) == sorted(COLORS)
    # crops and flips of one color are the same color: only the jitter can have changed it
    assert np.abs(tiles[:, 1:] - plain[:, None]).max() > 5
    light = draw_augmented_sheet(build_dataset(tmp_path, "light"), SPEC, seed=0, num_images=3)
    assert light is not None
    tiles = read_tiles(light, 3)
    assert np.abs(tiles - tiles[:, :1]).max() <= 1


def test_augmented_sheet_leaves_out_damaged_files_and_unchanged_images(tmp_path: Path) -> None:
    dataset = build_dataset(tmp_path, "light")
    for number in range(7):
        (tmp_path / f"{number}.png").unlink()
    sheet = draw_augmented_sheet(dataset, SPEC, seed=0)
    assert sheet is not None
    assert sheet.height == 2 * 116 - 4
    assert draw_augmented_sheet(build_dataset(tmp_path, "none"), SPEC, seed=0) is None


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_augmented_sheet_is_always_the_same(tmp_path: Path, is_multi_label: bool) -> None:
    dataset = build_dataset(tmp_path, "strong")
    if is_multi_label:
        dataset = ImageDataset(dataset.source, np.eye(9, 4, dtype=np.float32), dataset.transform)
    one, other = (draw_augmented_sheet(dataset, SPEC, seed=3) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.tobytes() == other.tobytes()

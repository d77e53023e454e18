"""Tests of augmentation presets and of saved pipelines."""

import json
from pathlib import Path

import albumentations as A  # noqa: N812 - the name that its documentation uses
import numpy as np
import pytest
from PIL import Image

from finetune.data.transforms.eval_transform import EvalTransform
from finetune.data.transforms.presets import (
    AUGMENTATIONS,
    Geometry,
    build_digits_pipeline,
    create_train_transform,
    load_pipeline,
    save_pipeline,
)
from finetune.data.transforms.train_transform import TrainTransform
from finetune.errors import ConfigError
from finetune.types import Draw, PreprocessSpec
from tests.support.helpers import create_noise
from tests.support.pictures import RecordingImage

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = PreprocessSpec((3, 32, 32), MEAN, STD)
PHOTO = RecordingImage(create_noise(width=60, height=40))


def test_preset_none_equals_eval_transform() -> None:
    transform = create_train_transform("none", spec=SPEC, seed=0)
    assert not transform.has_color_matrix
    expected = EvalTransform(SPEC)(PHOTO).pixels
    np.testing.assert_array_equal(transform(PHOTO, Draw(1, 2, 3)).pixels, expected)


@pytest.mark.parametrize(
    ("name", "min_fraction", "has_jitter"),
    [("light", 0.5, False), ("medium", 0.35, True), ("strong", 0.2, True)],
)
def test_preset_crop_area_and_color_jitter(
    name: str, min_fraction: float, has_jitter: bool
) -> None:
    lazy_image = RecordingImage(create_noise(width=600, height=600))
    transform = create_train_transform(name, spec=SPEC, seed=0)
    assert transform.has_color_matrix is has_jitter
    changed = 0
    for row in range(300):
        _, matrix = transform(lazy_image, Draw(row, 0, 0))
        changed += matrix is not None and not np.array_equal(matrix, np.eye(3, 4))
    sizes = [
        (right - left) * (bottom - top) / 360_000 for left, top, right, bottom in lazy_image.boxes
    ]
    assert len(sizes) == 300
    assert min_fraction - 0.01 < min(sizes) < min_fraction + 0.05
    assert max(sizes) > 0.9
    assert (changed > 100) is has_jitter


def test_digits_pipeline_never_flips(tmp_path: Path) -> None:
    left = np.zeros((28, 28, 3), np.uint8)
    left[4:24, 4:10] = 255
    save_pipeline(build_digits_pipeline(32), tmp_path / "digits.json")
    transform = create_train_transform(str(tmp_path / "digits.json"), spec=SPEC, seed=0)
    lazy_image = RecordingImage(Image.fromarray(left))
    for row in range(50):
        columns = transform(lazy_image, Draw(row, 0, 0)).pixels.astype(float).sum((0, 2))
        assert columns[:16].sum() > columns[16:].sum()


@pytest.fixture
def pipeline() -> A.Compose:
    return A.Compose([A.RandomResizedCrop((32, 32)), A.HorizontalFlip(), A.ToGray(p=0.3)])


@pytest.mark.parametrize("suffix", ["json", "JSON", "yaml", "yml"])
def test_saved_pipeline_gives_same_views(tmp_path: Path, pipeline: A.Compose, suffix: str) -> None:
    file = tmp_path / f"mine.{suffix}"
    A.save(pipeline, file, data_format="json" if suffix.lower() == "json" else "yaml")
    loaded = create_train_transform(str(file), spec=SPEC, seed=1)
    direct = TrainTransform(pipeline, size=(32, 32), seed=1)
    for row in range(10):
        actual, expected = (each(PHOTO, Draw(row, 0, 0)) for each in (loaded, direct))
        np.testing.assert_array_equal(actual.pixels, expected.pixels)
        assert actual.color_matrix is expected.color_matrix is None


def test_saved_single_step_is_pipeline(tmp_path: Path) -> None:
    A.save(A.RandomResizedCrop((32, 32), p=1), tmp_path / "one.json")
    transform = create_train_transform(str(tmp_path / "one.json"), spec=SPEC, seed=1)
    assert transform(PHOTO, Draw(0, 0, 0)).pixels.shape == (32, 32, 3)


CROP = A.RandomResizedCrop((32, 32))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([CROP, A.Normalize()], "Normalize"),
        ([CROP, A.Sequential([A.Normalize()], p=0.01)], "Normalize"),
        ([CROP, A.OneOf([A.HorizontalFlip(), A.ToFloat()])], "ToFloat"),
        ([A.RandomResizedCrop((16, 16))], r"\(16, 16, 3\).*\(32, 32, 3\)"),
        ([A.SmallestMaxSize(32)], r"RandomResizedCrop\(\(32, 32\)\)"),
        ([A.RandomResizedCrop((32, 32), p=0.5)], r"uint8 of \(32, 32, 3\)"),
        ([A.RandomCrop(500, 500)], "96x64"),
    ],
)
def test_saved_pipeline_with_unusable_output_raises_config_error(
    tmp_path: Path, steps: list[A.BasicTransform], message: str
) -> None:
    A.save(A.Compose(steps), tmp_path / "x.json")
    with pytest.raises(ConfigError, match=rf"augment\.name: .*x\.json.*{message}"):
        create_train_transform(str(tmp_path / "x.json"), spec=SPEC, seed=0)


def saved_with(step: str, **arguments: object) -> str:
    inner = {"__class_fullname__": step, "p": 0.5, **arguments}
    tree = {"__class_fullname__": "Compose", "p": 1.0, "transforms": [inner]}
    return json.dumps({"__version__": "2.0.8", "transform": tree})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", saved_with("GaussNoise", var_limit=[1, 2]), "var_limit"),
        ("x.json", saved_with("NoSuchStep"), "NoSuchStep"),
        ("x.json", "{", "albumentations 2"),
        ("x.json", "[1, 2]", r"x\.json"),
        ("x.yaml", "a: 1", r"albumentations\.save\(pipeline, 'x\.yaml'\)"),
        ("x.yaml", "{", r"x\.yaml"),
        ("x.json", None, r"x\.json does not exist"),
    ],
)
def test_load_pipeline_invalid_file_raises_config_error(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)augment\.name: .*{message}"):
        load_pipeline(tmp_path / name)


def draw_orientations(geometry: Geometry) -> set[bytes]:
    """Return the distinct views of an image with four different quadrants, without crops."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, 16:], pixels[16:, :16], pixels[16:, 16:] = 80, 160, 240
    image = RecordingImage(Image.fromarray(pixels))
    transform = create_train_transform("light", spec=SPEC, seed=0, geometry=geometry)
    return {transform(image, Draw(row, 0, 0)).pixels.tobytes() for row in range(100)}


@pytest.mark.parametrize(
    ("flips", "num_orientations"),
    [
        ({"hflip": False}, 1),
        ({}, 2),
        ({"hflip": False, "vflip": True}, 2),
        ({"vflip": True}, 4),
        ({"hflip": False, "rot90": True}, 4),
        ({"rot90": True}, 8),
    ],
)
def test_geometry_flips_and_turns(flips: dict[str, bool], num_orientations: int) -> None:
    geometry = Geometry(min_crop_scale=1.0, **flips)
    assert len(draw_orientations(geometry)) == num_orientations
    transform = create_train_transform("light", spec=SPEC, seed=0, geometry=geometry)
    assert transform.has_flip is geometry.hflip


@pytest.mark.parametrize("name", ["light", "medium", "strong"])
def test_geometry_crop_scale_replaces_that_of_the_preset(name: str) -> None:
    image = RecordingImage(create_noise(width=100, height=100))
    geometry = Geometry(min_crop_scale=0.8)
    transform = create_train_transform(name, spec=SPEC, seed=0, geometry=geometry)
    for row in range(50):
        transform(image, Draw(row, 0, 0))
    areas = [(right - left) * (bottom - top) / 1e4 for left, top, right, bottom in image.boxes]
    assert 0.78 < min(areas) < 0.9
    assert AUGMENTATIONS[name] is not None


def test_geometry_default_draws_the_same_as_before() -> None:
    image = RecordingImage(create_noise(width=60, height=40))
    for name, scale in (("light", 0.5), ("medium", 0.35), ("strong", 0.2)):
        given = Geometry(hflip=True, min_crop_scale=scale)
        one = create_train_transform(name, spec=SPEC, seed=7)
        other = create_train_transform(name, spec=SPEC, seed=7, geometry=given)
        for row in range(5):
            view, other_view = (t(image, Draw(row, 2, 0)).pixels for t in (one, other))
            np.testing.assert_array_equal(view, other_view)

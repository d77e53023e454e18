"""Tests of evaluation transforms against timm's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from finetune.data.images.decode import open_image
from finetune.data.transforms.eval_transform import (
    EvalTransform,
    FlipPairTransform,
    IdentityTransform,
)
from finetune.models.classifier import normalise
from finetune.types import Draw, PreprocessSpec, ReadOptions
from tests.support.helpers import create_noise, create_smooth_image
from tests.support.pictures import RecordingImage

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = PreprocessSpec((3, 32, 32), MEAN, STD)
PHOTO = RecordingImage(create_noise(width=60, height=40))


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (40, 30), (224, 224), (1000, 33)])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "interpolation"),
    [
        ("center", 0.875, "bilinear"),
        ("center", 1.0, "bicubic"),
        ("squash", 0.9, "bicubic"),
        ("border", 0.9, "lanczos"),
    ],
)
def test_eval_transform_equals_timm(
    size: tuple[int, int], crop_mode: str, crop_pct: float, interpolation: str
) -> None:
    image = create_smooth_image(width=size[0], height=size[1])
    spec = PreprocessSpec((3, 96, 96), MEAN, STD, interpolation, crop_pct, crop_mode)
    reference = create_transform(
        input_size=spec.input_size,
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )(image)
    transform = EvalTransform(spec)
    assert (transform.size, transform.has_color_matrix) == ((96, 96), False)
    pixels, color_matrix = transform(RecordingImage(image))
    assert color_matrix is None
    assert pixels.dtype == np.uint8
    ours = normalise(torch.from_numpy(pixels)[None], mean=MEAN, std=STD)[0]
    # back to [0, 1], where the tolerance of 1/255 holds
    difference = (ours - reference).abs() * torch.tensor(STD).view(3, 1, 1)
    assert difference.mean() < 1 / 255
    assert reference.std() > 0.1


def test_eval_transform_ignores_draw() -> None:
    transform = EvalTransform(SPEC)
    expected = transform(PHOTO).pixels
    for draw in (None, Draw(0, 0, 0), Draw(5, 6, 7)):
        np.testing.assert_array_equal(transform(PHOTO, draw).pixels, expected)


@pytest.mark.parametrize("size", [(61, 80), (80, 61), (64, 64)])
def test_flip_pair_of_flipped_file_gives_same_views(size: tuple[int, int], tmp_path: Path) -> None:
    """Sizes include 40 x 53 pixels, whose centre crop of 32 is not exactly centred."""
    spec = PreprocessSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.8)
    image = create_noise(width=size[0], height=size[1])
    image.save(tmp_path / "a.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    single = EvalTransform(spec)
    both = FlipPairTransform(single)
    assert both.size == (64, 32)
    first, second = (
        open_image(tmp_path / name, options=ReadOptions(max_pixels=10_000))
        for name in ("a.png", "b.png")
    )
    views = both(first).pixels
    assert np.array_equal(views[:32], single(first).pixels)
    assert np.array_equal(views[32:], single(second).pixels)
    assert not np.array_equal(views[:32], views[32:])
    other = both(second).pixels
    assert np.array_equal(other[:32], views[32:])
    assert np.array_equal(other[32:], views[:32])


def test_eval_transform_has_no_flip() -> None:
    assert not EvalTransform(PreprocessSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3)).has_flip


def test_identity_transform_returns_stored_pixels() -> None:
    image = create_noise(width=32, height=24)
    transform = IdentityTransform((24, 32))
    view = transform(RecordingImage(image), Draw(3, 1, 0))
    np.testing.assert_array_equal(view.pixels, np.asarray(image))
    assert view.color_matrix is None
    assert (transform.size, transform.has_color_matrix) == ((24, 32), False)

"""Tests of the transform of rare classes."""

from typing import Any

import numpy as np
import pytest

from finetune.data.images.lazy_image import ArrayImage
from finetune.data.transforms.eval_transform import Transform
from finetune.data.transforms.presets import create_train_transform
from finetune.data.transforms.rare_classes import RareClassTransform
from finetune.types import Draw, PreprocessSpec

SPEC = PreprocessSpec((3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def preset(name: str, **more: Any) -> Transform:
    return create_train_transform(name, spec=SPEC, seed=3, **more)


@pytest.fixture
def lazy_image() -> ArrayImage:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    return ArrayImage(pixels, height=40, width=50)


@pytest.mark.parametrize("sizes", [(), (8, 16)])
def test_rare_class_transform_applies_transform_of_class(
    sizes: tuple[int, ...], lazy_image: ArrayImage
) -> None:
    default, rare = preset("light", sizes=sizes), preset("strong", sizes=sizes)
    both = RareClassTransform(default, rare, is_rare=np.array([False, True]))
    for epoch in (0, 1, 0):
        for row, single in enumerate((default, rare)):
            draw = Draw(row, epoch, 2)
            actual, expected = both(lazy_image, draw), single(lazy_image, draw)
            assert np.array_equal(actual.pixels, expected.pixels)
            assert actual.pixels.shape[:2] == both.get_size(epoch) == single.get_size(epoch)
            matrix = np.eye(3, 4) if expected.color_matrix is None else expected.color_matrix
            assert actual.color_matrix is not None
            np.testing.assert_array_equal(actual.color_matrix, matrix)


def test_rare_class_transform_min_side_serves_both() -> None:
    default, rare = preset("medium"), preset("strong")
    both = RareClassTransform(default, rare, is_rare=np.array([True]))
    assert default.min_side_px is not None
    assert both.min_side_px == rare.min_side_px
    assert rare.min_side_px is not None
    assert rare.min_side_px > default.min_side_px
    assert (both.is_random, both.has_flip, both.has_color_matrix) == (True, True, True)

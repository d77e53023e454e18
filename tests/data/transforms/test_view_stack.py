"""Views for test-time augmentation, against torchvision's crops of timm's resized image."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import FiveCrop, TenCrop

from finetune.data.transforms import bounded_resize
from finetune.data.transforms.eval_transform import EvalTransform, FlipPairTransform
from finetune.data.transforms.view_stack import build_view_stack, compute_sizes
from finetune.types import PreprocessSpec, Tta
from tests.support.helpers import create_noise, create_smooth_image
from tests.support.pictures import RecordingImage

MEAN = (0.5, 0.5, 0.5)
SIZES = [(64, 48), (48, 65), (301, 200), (20, 31), (200, 20)]


def build_spec(
    size: int = 32, *, crop_pct: float = 0.8, crop_mode: str = "center"
) -> PreprocessSpec:
    return PreprocessSpec((3, size, size), MEAN, MEAN, "bicubic", crop_pct, crop_mode)


def cut_views(specs: list[PreprocessSpec], tta: Tta, image: Image.Image) -> list[NDArray[np.uint8]]:
    """Return all views of an image."""
    stack, _ = build_view_stack(specs, tta)
    pixels = stack.transform(RecordingImage(image), None).pixels
    assert pixels.shape == (*stack.transform.size, 3)
    return [pixels[top : top + height, :width] for top, height, width in stack.boxes]


def resize_with_timm(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Return what timm's evaluation transform crops."""
    pipeline = create_transform(
        input_size=spec.input_size, interpolation=spec.interpolation, crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode, normalize=False,
    )  # fmt: skip
    resized: Image.Image = pipeline.transforms[0](image)
    return resized


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.8, "center"), (1.0, "center"), (0.9, "squash")]
)
def test_crops_equal_five_and_ten_crop_of_resized_image(
    size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    spec = build_spec(crop_pct=crop_pct, crop_mode=crop_mode)
    image = create_smooth_image(width=size[0], height=size[1])
    resized = resize_with_timm(image, spec)
    for tta, reference in ((Tta.CROPS, FiveCrop(32)), (Tta.CROPS10, TenCrop(32))):
        views = cut_views([spec], tta, image)
        expected = [np.asarray(crop) for crop in reference(resized)]
        assert len(views) == len(expected)
        for view, crop in zip(views, expected, strict=True):
            np.testing.assert_array_equal(view, crop)


def test_center_crop_of_five_is_single_view() -> None:
    for spec in (build_spec(), build_spec(crop_mode="border", crop_pct=0.9)):
        image = create_noise(width=70, height=51)
        single = EvalTransform(spec)(RecordingImage(image)).pixels
        np.testing.assert_array_equal(cut_views([spec], Tta.NONE, image)[0], single)
        np.testing.assert_array_equal(cut_views([spec], Tta.CROPS, image)[4], single)


def test_crops_of_image_with_border_are_padded() -> None:
    """With crop_mode=border, the longer side is resized, and the shorter one is padded."""
    spec = build_spec(crop_mode="border", crop_pct=0.8)
    image = create_noise(width=80, height=20)
    resized = resize_with_timm(image, spec)
    assert resized.size == (40, 10)
    padded = Image.new("RGB", (40, 32), (128, 128, 128))  # the mean, as timm pads
    padded.paste(resized, (0, 11))
    expected = [np.asarray(crop) for crop in FiveCrop(32)(padded)]
    for view, crop in zip(cut_views([spec], Tta.CROPS, image), expected, strict=True):
        np.testing.assert_array_equal(view, crop)


def test_crops_of_very_long_image_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images whose resized form is too large are cropped before they are enlarged."""
    spec, image = build_spec(), create_smooth_image(width=400, height=20)
    whole = cut_views([spec], Tta.CROPS10, image)
    monkeypatch.setattr(bounded_resize, "MAX_RESIZED_PIXELS", 1000)
    parts = cut_views([spec], Tta.CROPS10, image)
    for one, other in zip(whole, parts, strict=True):
        difference = np.abs(one.astype(int) - other.astype(int))
        assert difference.max() <= 2
    assert np.abs(whole[0].astype(int) - whole[1].astype(int)).max() > 20


def test_hflip_equals_flip_pair() -> None:
    spec, image = build_spec(), create_noise(width=61, height=80)
    expected = FlipPairTransform(EvalTransform(spec))(RecordingImage(image)).pixels
    np.testing.assert_array_equal(np.concatenate(cut_views([spec], Tta.HFLIP, image)), expected)


def test_sizes_are_evaluation_views_of_each_size() -> None:
    spec, image = build_spec(128, crop_pct=0.9), create_noise(width=200, height=170)
    views = cut_views([spec], Tta.SIZES, image)
    assert [view.shape for view in views] == [(112, 112, 3), (128, 128, 3), (144, 144, 3)]
    for view in views:
        own = build_spec(view.shape[0], crop_pct=0.9)
        expected = EvalTransform(own)(RecordingImage(image)).pixels
        np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize(
    ("size", "expected"), [(224, [200, 224, 256]), (32, [28, 32, 36]), (5, [4, 5, 6])]
)
def test_compute_sizes(size: int, expected: list[int]) -> None:
    assert compute_sizes(build_spec(size)) == [(side, side) for side in expected]


def test_models_with_same_preprocessing_share_views() -> None:
    small, large = build_spec(32), build_spec(48)
    other_mean = PreprocessSpec((3, 32, 32), (0.1, 0.2, 0.3), MEAN, "bicubic", 0.8)
    stack, views = build_view_stack([small, large, other_mean, small], Tta.CROPS)
    assert views == [range(5), range(5, 10), range(5), range(5)]
    image = create_noise(width=90, height=70)
    both = cut_views([small, large], Tta.CROPS, image)
    for spec, found in ((small, both[:5]), (large, both[5:])):
        for view, expected in zip(found, cut_views([spec], Tta.CROPS, image), strict=True):
            np.testing.assert_array_equal(view, expected)
    assert len(stack.boxes) == 10

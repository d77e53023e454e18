"""Tests of the preprocessing of photos as a graph, against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.export import Dim

from finetune.data.transforms.bounded_resize import apply_steps
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.exporters.graphs.photo_preprocessing import PhotoPreprocessing
from finetune.types import PreprocessSpec

SPEC = PreprocessSpec((3, 48, 48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES = ((60, 80), (80, 60), (48, 48), (31, 200), (200, 31), (20, 25), (1, 9))


def draw_photo(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture with edges and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    pixels = rng.integers(0, 90, (height, width, 3))
    pixels[..., 0] += 150 * ((rows // 7 + columns // 5) % 2)
    pixels[..., 1] += 160 * columns // width
    pixels[..., 2] += (80 + 80 * np.sin(rows / 3)).astype(int)
    return pixels.clip(0, 255).astype(np.uint8)


def resize_by_pillow(photo: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float64]:
    """Return the pixels that timm's transform gives with Pillow."""
    steps = EvalTransform(spec).steps
    return np.asarray(apply_steps(Image.fromarray(photo), steps), np.float64)


def resize_by_graph(photo: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float64]:
    """Return the pixels that the graph gives."""
    pixels = PhotoPreprocessing(spec)(torch.from_numpy(photo)[None])
    assert pixels.dtype == torch.float32
    return np.asarray(pixels[0].permute(1, 2, 0), np.float64)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming"])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"),
    [("center", 0.875), ("center", 1.0), ("squash", 0.9), ("border", 1.0), ("border", 0.8)],
)
@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
def test_photo_preprocessing_gives_pixels_of_pillow(
    interpolation: str, crop_mode: str, crop_pct: float, size: tuple[int, int]
) -> None:
    spec = PreprocessSpec((3, *size), SPEC.mean, SPEC.std, interpolation, crop_pct, crop_mode)
    for photo_size in SIZES:
        photo = draw_photo(*photo_size)
        difference = np.abs(resize_by_graph(photo, spec) - resize_by_pillow(photo, spec))
        # Pillow may resize the rows first, and both round in between: much where a side alone grows
        assert difference.mean() < (0.6 if crop_mode == "squash" else 0.15), photo_size
        assert difference.max() <= (20 if crop_mode == "squash" else 3), photo_size


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_photo_preprocessing_of_single_pixels_is_mostly_that_of_pillow(interpolation: str) -> None:
    spec = PreprocessSpec((3, 48, 48), SPEC.mean, SPEC.std, interpolation, 0.9)
    photo = draw_photo(61, 83)
    # Pillow adds up positions, so that it takes the other of two equally near pixels
    same = resize_by_graph(photo, spec) == resize_by_pillow(photo, spec)
    assert same.mean() > 0.95


@pytest.mark.parametrize("change", [{"interpolation": "bilinear"}, {"crop_pct": 1.0}])
def test_photo_preprocessing_depends_on_its_settings(change: dict[str, str | float]) -> None:
    photo = draw_photo(60, 80)
    other = PreprocessSpec((3, 48, 48), SPEC.mean, SPEC.std, **change)  # type: ignore[arg-type]
    assert np.abs(resize_by_graph(photo, other) - resize_by_pillow(photo, SPEC)).mean() > 1


@pytest.mark.parametrize("channels", [1, 4])
def test_photo_preprocessing_of_other_channels_resizes_each(channels: int) -> None:
    spec = PreprocessSpec((channels, 48, 48), (0.5,) * channels, (0.5,) * channels)
    photo = np.stack([draw_photo(60, 80, seed=i)[..., 0] for i in range(channels)], axis=2)
    pixels = PhotoPreprocessing(spec)(torch.from_numpy(photo)[None])[0]
    single = PreprocessSpec((3, 48, 48), SPEC.mean, SPEC.std)
    for channel, expected in enumerate(np.moveaxis(photo, 2, 0)):
        grey = resize_by_pillow(np.repeat(expected[..., None], 3, axis=2), single)[..., 0]
        assert np.abs(pixels[channel].numpy() - grey).max() <= 1


def test_photo_preprocessing_program_takes_other_sizes_and_batches() -> None:
    module = PhotoPreprocessing(SPEC)
    example = torch.from_numpy(np.stack([draw_photo(60, 80)] * 2))
    axes = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    program = torch.export.export(module, (example,), dynamic_shapes=(axes,)).module()
    for batch, size in ((1, (33, 90)), (3, (90, 33))):
        photos = torch.from_numpy(np.stack([draw_photo(*size, seed=i) for i in range(batch)]))
        assert torch.equal(program(photos), module(photos))


@pytest.mark.parametrize("change", [{"interpolation": "random"}, {"crop_mode": "tile"}])
def test_photo_preprocessing_unknown_setting_raises_value_error(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        PhotoPreprocessing(PreprocessSpec((3, 48, 48), SPEC.mean, SPEC.std, **change))  # type: ignore[arg-type]

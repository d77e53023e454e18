"""Tests of training transforms: draws, initial crops and preset pipelines."""

import copy
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import albumentations as A  # noqa: N812 - the name that its documentation uses
import cv2
import numpy as np
import pytest
from PIL import Image

from finetune.data.images.decode import open_image
from finetune.data.transforms.color_jitter import ColorJitter
from finetune.data.transforms.eval_transform import Transform
from finetune.data.transforms.presets import AUGMENTATIONS, create_train_transform
from finetune.data.transforms.train_transform import InitialCrop, TrainTransform, find_initial_crop
from finetune.types import Draw, PreprocessSpec
from tests.support.helpers import create_noise, create_smooth_image
from tests.support.pictures import RecordingImage, record_decoded_shapes, write_jpeg

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = PreprocessSpec((3, 32, 32), MEAN, STD)
PHOTO = RecordingImage(create_noise(width=60, height=40))
BILINEAR = Image.Resampling.BILINEAR


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([A.HorizontalFlip(p=0.5)], True),
        ([A.HorizontalFlip(p=0)], False),
        ([A.VerticalFlip(p=1)], False),
        ([A.OneOf([A.HorizontalFlip(p=1), A.GaussianBlur()], p=0.5)], True),
        ([A.OneOf([A.HorizontalFlip(p=1), A.GaussianBlur()], p=0)], False),
        ([A.Sequential([A.SomeOf([A.D4(p=1)], n=1)])], True),
        ([A.SquareSymmetry(p=0.1)], True),
        ([A.Rotate(limit=10)], False),
    ],
)
def test_has_flip_is_true_if_any_step_may_flip(steps: list[Any], expected: bool) -> None:
    pipeline = A.Compose([A.Resize(8, 8), *steps])
    assert TrainTransform(pipeline, size=(8, 8), seed=0).has_flip is expected


def get_view_bytes(transform: Transform, draw: Draw) -> bytes:
    """Return a view of ``PHOTO`` as bytes: its pixels and color matrix."""
    pixels, matrix = transform(PHOTO, draw)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 32, 3)
    assert transform.has_color_matrix == (matrix is not None)
    return pixels.tobytes() + (b"" if matrix is None else matrix.tobytes())


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_view_is_function_of_seed_and_draw(name: str) -> None:
    draws = [Draw(row, epoch, repeat) for row in (0, 5) for epoch in (0, 1) for repeat in (0, 1)]
    first = create_train_transform(name, spec=SPEC, seed=3)
    forth = [get_view_bytes(first, draw) for draw in draws]
    again = create_train_transform(name, spec=SPEC, seed=3)
    assert [get_view_bytes(again, draw) for draw in reversed(draws)][::-1] == forth
    copied = pickle.loads(pickle.dumps(first))  # as for a worker
    assert [get_view_bytes(copied, draw) for draw in draws] == forth
    other_seed = get_view_bytes(create_train_transform(name, spec=SPEC, seed=4), draws[0])
    assert len({*forth, other_seed}) == (1 if name == "none" else 9)


def test_generators_of_draw_equal_fresh_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = A.Compose([A.GaussNoise(p=1), A.ColorJitter(p=0.5)])
    generators: list[tuple[np.random.Generator, random.Random]] = []
    transform = TrainTransform(pipeline, size=(32, 32), seed=7)
    for draw in (Draw(0, 0, 0), Draw(3, 2, 1), Draw(2**31 - 1, 2**20, 2**31 - 1), Draw(0, 0, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(
                pipeline, "set_random_state", lambda *pair: generators.append(copy.deepcopy(pair))
            )
            transform(PHOTO, draw)
        numpy_generator, python_generator = generators.pop()
        key = np.array([7 << 32 | draw.epoch, draw.row << 32 | draw.repeat], np.uint64)
        fresh = np.random.Generator(np.random.Philox(key=key))
        # 32 bits at a time, so that a buffered half of 64 bits would be detected
        np.testing.assert_array_equal(
            numpy_generator.integers(0, 2**32, 9, np.uint32), fresh.integers(0, 2**32, 9, np.uint32)
        )
        np.testing.assert_array_equal(numpy_generator.normal(size=50), fresh.normal(size=50))
        key_bits = (7 << 32 | draw.epoch) << 64 | draw.row << 32 | draw.repeat
        assert python_generator.random() == random.Random(key_bits).random()
        transform(PHOTO, Draw(9, 9, 9))  # advances the generators


def test_views_of_large_rows_epochs_and_seeds_differ() -> None:
    numbers = [0, 1, 2**16, 2**31 - 1]
    views = {
        get_view_bytes(TrainTransform(light(), size=(32, 32), seed=seed), Draw(row, epoch, repeat))
        for seed in numbers
        for row in numbers
        for epoch in numbers
        for repeat in numbers
    }
    assert len(views) == len(numbers) ** 4


def light() -> A.Compose:
    return A.Compose([A.RandomResizedCrop((32, 32)), A.ColorJitter(p=1)])


def test_view_does_not_depend_on_earlier_images() -> None:
    transform = create_train_transform("strong", spec=SPEC, seed=0)
    expected = get_view_bytes(transform, Draw(7, 2, 0))
    for row in range(5):
        transform(RecordingImage(create_noise(seed=row, width=100, height=50)), Draw(row, 2, 0))
    assert get_view_bytes(transform, Draw(7, 2, 0)) == expected


def assert_even(counts: Counter[tuple[object, ...]], cases: int, draws: int) -> None:
    """Check that all cases were drawn equally often, within five standard deviations."""
    fraction = 1 / cases
    assert len(counts) == cases
    for count in counts.values():
        assert abs(count - draws * fraction) < 5 * (draws * fraction * (1 - fraction)) ** 0.5


def test_steps_are_applied_independently() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.OneOf([A.VerticalFlip(p=1)], p=0.5)])
    transform = TrainTransform(flips, size=(2, 2), seed=0)
    views = [transform(RecordingImage(image), Draw(row, 0, 0)).pixels for row in range(800)]
    pixels = np.asarray(image)
    cases = {
        pixels[:: -1 if v else 1, :: -1 if h else 1].tobytes(): (h, v)
        for h in (False, True)
        for v in (False, True)
    }
    assert_even(Counter(cases[view.tobytes()] for view in views), 4, 800)


def test_crop_flip_and_jitter_are_independent() -> None:
    width = 200
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (100, width, 3))
    lazy_image = RecordingImage(Image.fromarray(np.ascontiguousarray(ramp)))
    jitter = ColorJitter(brightness=0.5, contrast=0, saturation=0, hue=0, p=0.5, grayscale_p=0.0)
    pipeline = A.Compose(
        [
            A.RandomResizedCrop((32, 32), scale=(0.2, 0.2), ratio=(1.0, 1.0)),
            A.HorizontalFlip(p=0.5),
        ]
    )
    transform = TrainTransform(pipeline, size=(32, 32), seed=0, jitter=jitter)
    counts: Counter[tuple[object, ...]] = Counter()
    for row in range(800):
        pixels, matrix = transform(lazy_image, Draw(row, 3, 0))
        left, _, right, _ = lazy_image.boxes[-1]
        assert matrix is not None
        changed = not np.array_equal(matrix, np.eye(3, 4))
        counts[left + right < width, bool(pixels[0, 0, 0] > pixels[0, -1, 0]), changed] += 1
    assert_even(counts, 8, 800)


def test_view_shows_box_of_albumentations() -> None:
    image = create_smooth_image(width=200, height=150)
    steps = [A.RandomResizedCrop((40, 60), scale=(0.2, 0.9)), A.HorizontalFlip(p=0.5)]
    pipeline = A.Compose(steps)
    drawn: list[tuple[np.random.Generator, random.Random]] = []
    real = pipeline.set_random_state

    def watched(numbers: np.random.Generator, plain: random.Random) -> None:
        drawn.append(copy.deepcopy((numbers, plain)))
        real(numbers, plain)

    pipeline.set_random_state = watched
    transform = TrainTransform(pipeline, size=(40, 60), seed=8)
    flipped = 0
    for row in range(40):
        lazy_image = RecordingImage(image)
        view = transform(lazy_image, Draw(row, 0, 0)).pixels
        assert lazy_image.num_full_reads == 0
        reference = A.Compose(copy.deepcopy(steps))
        reference.set_random_state(*drawn.pop())
        crop = reference.transforms[0]
        box = crop.get_params_dependent_on_data({"shape": (150, 200, 3)}, {})["crop_coords"]
        assert lazy_image.boxes == [tuple(box)]
        cut = image.crop(box)
        by_pillow = np.asarray(cut.resize((60, 40), BILINEAR))
        by_opencv = crop.apply(np.asarray(image), crop_coords=box)
        assert abs(by_pillow.astype(int) - by_opencv).mean() < 2, "the references must agree"
        is_flipped = abs(view[:, ::-1].astype(int) - by_pillow).max() <= 2
        is_upright = abs(view.astype(int) - by_pillow).max() <= 2
        assert is_flipped != is_upright
        flipped += is_flipped
    assert 8 < flipped < 32


def test_box_of_shrunk_image_equals_box_of_full_image() -> None:
    full = create_smooth_image(width=400, height=300)
    half = RecordingImage(full.resize((200, 150), BILINEAR))
    half.height, half.width = 300, 400
    transform = create_train_transform("light", spec=SPEC, seed=1)
    lazy_image = RecordingImage(full)
    for row in range(10):
        views = [transform(each, Draw(row, 0, 0)).pixels for each in (lazy_image, half)]
        assert abs(views[0].astype(int) - views[1]).max() < 12
    assert half.boxes == lazy_image.boxes


def test_crop_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    transform = create_train_transform("light", spec=SPEC, seed=0)
    view = transform(RecordingImage(Image.fromarray(stripes)), Draw(0, 0, 0)).pixels
    assert abs(view.astype(float) - 127.5).max() < 30


@pytest.mark.parametrize("fraction", [0.2, 1.0])
def test_jpeg_is_decoded_at_scale_of_crop(
    fraction: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jpeg(tmp_path / "x.jpg", create_smooth_image(width=640, height=480))
    decoded = record_decoded_shapes(monkeypatch)
    crop = A.RandomResizedCrop((40, 40), scale=(fraction, fraction), ratio=(1.0, 1.0))
    TrainTransform(A.Compose([crop]), size=(40, 40), seed=0)(open_image(file), Draw(0, 0, 0))
    # 20% of the area is a square of 248 pixels; the largest square has 480
    assert decoded == [(120, 160, 3)] if fraction < 1 else [(60, 80, 3)]


LINEAR, CUBIC = cv2.INTER_LINEAR, cv2.INTER_CUBIC
CROP = A.RandomResizedCrop((20, 30), scale=(0.25, 1.0))
INITIAL_CROPS: list[tuple[A.Compose, tuple[tuple[int, int], str, float] | None]] = [
    (A.Compose([CROP]), ((20, 30), "bilinear", 0.25)),
    (A.Compose([CROP, A.HorizontalFlip()]), ((20, 30), "bilinear", 0.25)),
    (A.Compose([A.RandomResizedCrop((8, 8), interpolation=CUBIC)]), ((8, 8), "bicubic", 0.08)),
    (
        A.Compose([A.RandomResizedCrop((8, 8), interpolation=cv2.INTER_AREA)]),
        ((8, 8), "bilinear", 0.08),
    ),
    (A.Compose([A.Resize(20, 30)]), ((20, 30), "bilinear", 1.0)),
    (A.Compose([A.Resize(9, 8, interpolation=cv2.INTER_LANCZOS4)]), ((9, 8), "bicubic", 1.0)),
    # not always applied, not first, not antialiased, or another step
    (A.Compose([]), None),
    (A.Compose([CROP], p=0.9), None),
    (A.Compose([A.RandomResizedCrop((8, 8), p=0.9)]), None),
    (A.Compose([A.Resize(8, 8, p=0.5)]), None),
    (A.Compose([A.HorizontalFlip(), CROP]), None),
    (A.Compose([A.OneOf([CROP], p=1)]), None),
    (A.Compose([A.Sequential([CROP], p=1)]), None),
    (A.Compose([A.RandomCrop(8, 8)]), None),
    (A.Compose([A.RandomSizedCrop((8, 9), (8, 8))]), None),
    (A.Compose([A.SmallestMaxSize(8)]), None),
    (A.Compose([A.RandomResizedCrop((8, 8), interpolation=cv2.INTER_NEAREST)]), None),
    (A.Compose([A.Resize(8, 8, interpolation=cv2.INTER_NEAREST)]), None),
]


@pytest.mark.parametrize(("pipeline", "expected"), INITIAL_CROPS)
def test_find_initial_crop_requires_crop_and_resize_always(
    pipeline: A.Compose, expected: tuple[tuple[int, int], str, float] | None
) -> None:
    initial_crop = find_initial_crop(pipeline)
    if expected is None:
        assert initial_crop is None
        return
    assert initial_crop is not None
    assert (initial_crop.size, initial_crop.mode, initial_crop.min_area_fraction) == expected
    assert initial_crop.step is pipeline.transforms[0]


@pytest.mark.parametrize(
    "pipeline", [pipeline for pipeline, initial_crop in INITIAL_CROPS if initial_crop is None]
)
def test_pipeline_without_initial_crop_gets_full_image(pipeline: A.Compose) -> None:
    lazy_image = RecordingImage(create_smooth_image(width=60, height=50))
    transform = TrainTransform(pipeline, size=(8, 8), seed=0)
    for row in range(5):
        transform(lazy_image, Draw(row, 0, 0))
    assert lazy_image.boxes == []
    assert lazy_image.num_full_reads == 5


def test_custom_steps_get_full_image() -> None:
    image = create_smooth_image(width=60, height=50)
    cut = TrainTransform(A.Compose([A.CenterCrop(8, 10)]), size=(8, 10), seed=0)
    view = cut(RecordingImage(image), Draw(0, 0, 0)).pixels
    np.testing.assert_array_equal(view, np.asarray(image)[21:29, 25:35])
    whole = TrainTransform(A.Compose([]), size=(50, 60), seed=0)
    view = whole(RecordingImage(image), Draw(0, 0, 0)).pixels
    np.testing.assert_array_equal(view, np.asarray(image))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_pipeline_probability_is_respected(p: float) -> None:
    flip = A.Compose([A.HorizontalFlip(p=1)], p=p)
    transform = TrainTransform(flip, size=(10, 12), seed=0)
    image = create_noise()
    flipped = sum(
        not np.array_equal(
            transform(RecordingImage(image), Draw(row, 0, 0)).pixels, np.asarray(image)
        )
        for row in range(400)
    )
    assert abs(flipped - 400 * p) <= 5 * (400 * p * (1 - p)) ** 0.5


def test_resize_is_initial_crop_of_full_image() -> None:
    image = create_smooth_image(width=64, height=50)
    transform = TrainTransform(A.Compose([A.Resize(20, 30)]), size=(20, 30), seed=0)
    lazy_image = RecordingImage(image)
    view = transform(lazy_image, Draw(0, 0, 0)).pixels
    expected = np.asarray(image.resize((30, 20), BILINEAR))
    assert lazy_image.boxes == [(0, 0, 64, 50)]
    np.testing.assert_allclose(view.astype(int), expected.astype(int), atol=1)


@pytest.mark.parametrize("fraction", [0.001, 0.08, 0.2, 0.35, 0.5, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (32, 48)])
def test_min_side_is_smallest_without_enlarging(fraction: float, size: tuple[int, int]) -> None:
    initial_crop = find_initial_crop(A.Compose([A.RandomResizedCrop(size, scale=(fraction, 1.0))]))
    assert initial_crop is not None
    needed = initial_crop.compute_min_side_px()
    assert isinstance(needed, int)
    assert (needed**2 * fraction) ** 0.5 >= max(size) - 1e-9
    assert ((needed - 1) ** 2 * fraction) ** 0.5 < max(size)


def test_min_side_of_resize_is_its_size() -> None:
    initial_crop = find_initial_crop(A.Compose([A.Resize(20, 30)]))
    assert isinstance(initial_crop, InitialCrop)
    assert initial_crop.compute_min_side_px() == 30


@pytest.mark.parametrize("fraction", [0.0, 1e-6])
def test_min_side_is_limited_to_8192(fraction: float) -> None:
    initial_crop = find_initial_crop(
        A.Compose([A.RandomResizedCrop((32, 32), scale=(fraction, 1.0))])
    )
    assert initial_crop is not None
    assert initial_crop.compute_min_side_px() == 8192


@pytest.mark.parametrize("name", ["light", "medium", "strong"])
def test_presets_accept_read_only_pixels(name: str) -> None:
    image = create_noise(width=32, height=32)
    transform = create_train_transform(name, spec=SPEC, seed=0)
    assert isinstance(transform, TrainTransform)
    lazy_image = RecordingImage(image)
    assert not lazy_image.pixels.flags.writeable
    before = lazy_image.pixels.copy()
    for row in range(30):
        transform(lazy_image, Draw(row, 0, 0))
    np.testing.assert_array_equal(lazy_image.pixels, before)

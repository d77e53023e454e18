"""Tests of the effect of flips, turns and crops on linear heads."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.transforms.eval_transform import EvalTransform, RandomCropsTransform
from finetune.probe.features.augmented_views import HFLIP, ROT90, VFLIP, AugmentedViewSpec
from finetune.probe.invariance import (
    ViewEffect,
    compare_views,
    sample_rows,
)
from finetune.types import PreprocessSpec
from tests.support.helpers import create_noise
from tests.support.pictures import RecordingImage

SPEC = PreprocessSpec((3, 24, 24), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)


def draw_features(num_per_class: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return features of three classes that differ in one direction each, and the labels."""
    random = np.random.default_rng(5)
    labels = np.arange(3 * num_per_class) % 3
    features = random.normal(size=(len(labels), 6)).astype(np.float32)
    features[np.arange(len(labels)), labels] += 4
    return features, labels.astype(np.int64)


def test_compare_views_of_invariant_features_loses_nothing() -> None:
    features, labels = draw_features()
    random = np.random.default_rng(6)
    noisy = features + random.normal(scale=0.01, size=features.shape).astype(np.float32)
    effect = compare_views(features, {HFLIP: noisy}, labels, num_classes=3)[HFLIP]
    assert effect.num_images == 120
    assert effect.accuracy > 0.9
    assert abs(effect.view_accuracy - effect.accuracy) <= 0.02
    assert abs(effect.loss_z_score) < 2.5


def test_compare_views_of_exchanged_classes_loses_their_accuracy() -> None:
    features, labels = draw_features()
    exchanged = features[:, [1, 0, 2, 3, 4, 5]]  # a flip turns class 0 into class 1
    effect = compare_views(features, {HFLIP: exchanged, 0.5: features}, labels, num_classes=3)
    assert effect[HFLIP].view_accuracy == pytest.approx(1 / 3, abs=0.05)
    assert effect[HFLIP].loss_z_score > 8
    assert effect[HFLIP].accuracy_z_score > 8
    assert effect[HFLIP].fitted_z_score > 4, "the heads cannot fit both"
    assert effect[0.5].loss_z_score == effect[0.5].accuracy_z_score == 0


def test_compare_views_of_further_samples_of_the_classes_helps_heads() -> None:
    random = np.random.default_rng(8)
    labels = np.arange(60) % 3
    views = [random.normal(size=(60, 40)).astype(np.float32) for _ in range(3)]
    for view in views:
        view[np.arange(60), labels] += 2
    effect = compare_views(views[0], {ROT90: np.concatenate(views[1:])[:60]}, labels, num_classes=3)
    assert effect[ROT90].fitted_z_score < -2


def test_compare_views_never_judges_an_image_by_a_head_that_was_fitted_to_it() -> None:
    # features without any information: a head that has seen an image would still classify it
    random = np.random.default_rng(7)
    features = random.normal(size=(60, 200)).astype(np.float32)
    labels = np.arange(60) % 2
    effect = compare_views(features, {HFLIP: features}, labels, num_classes=2)[HFLIP]
    assert effect.accuracy < 0.75


def test_view_effect_is_a_paired_comparison() -> None:
    before, after = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.2, 0.5, 0.5])
    right, view_right = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool)
    effect = ViewEffect.from_images((before, after), (right, view_right), before - 0.1)
    changes = after - before
    assert effect.loss_change == pytest.approx(0.1)
    assert effect.loss_z_score == pytest.approx(changes.mean() / (changes.std() / 2))
    assert effect.fitted_change == pytest.approx(-0.1)
    assert effect.fitted_z_score < -10
    assert (effect.accuracy, effect.view_accuracy, effect.num_images) == (0.75, 0.25, 4)
    assert effect.accuracy_z_score == pytest.approx(0.5 / (0.5 / 2))


def test_sample_rows_is_balanced_and_a_function_of_the_seed() -> None:
    labels = np.array([0] * 50 + [1] * 5 + [2] * 20)
    rows = sample_rows(labels, 30, seed=3)
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows])
    assert counts[1] == 5
    assert abs(counts[0] - counts[2]) <= 1
    np.testing.assert_array_equal(rows, sample_rows(labels, 30, seed=3))
    assert not np.array_equal(rows, sample_rows(labels, 30, seed=4))
    np.testing.assert_array_equal(sample_rows(labels, 100, seed=3), np.arange(75))


def test_augmented_views_equal_pillows_flips_and_turns() -> None:
    views = AugmentedViewSpec(flips=(HFLIP, VFLIP, ROT90))
    image = create_noise(width=24, height=24)
    transform = views.build_transform(EvalTransform(SPEC))
    pixels = torch.from_numpy(transform(RecordingImage(image)).pixels)[None]
    turns = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    expected = [image, *map(image.transpose, (*turns, Image.Transpose.ROTATE_90))]
    for view, turned in zip(views.iter_views(pixels), expected, strict=True):
        np.testing.assert_array_equal(view[0].numpy(), np.asarray(turned))
    assert len(views.names) == len(views.keys) + 1 == 4


def test_augmented_view_names_share_the_stores_of_the_probe() -> None:
    # names of stores on disk: the evaluation view and its flip are those of the linear probe
    views = AugmentedViewSpec(flips=(HFLIP, VFLIP, ROT90), crop_areas=(0.35, 0.5))
    assert views.names == (
        "seen", "mirrored", "flipped-vertically", "rotated-90", "crop-of-0.35",
        "crop-of-0.5",
    )  # fmt: skip
    assert views.keys == (HFLIP, VFLIP, ROT90, 0.35, 0.5)


def test_random_crops_have_their_area_and_depend_on_image_and_area_alone() -> None:
    spec = PreprocessSpec((3, 96, 96), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0, crop_mode="squash")
    transform = RandomCropsTransform(EvalTransform(spec), (0.25, 0.8))
    columns, rows = np.meshgrid(np.arange(240), np.arange(200))
    boxes, sizes = set(), []
    for number in range(30):
        pixels = np.stack([columns, rows, np.full_like(rows, number)], axis=2).astype(np.uint8)
        image = RecordingImage(Image.fromarray(pixels))
        views = transform(image).pixels
        np.testing.assert_array_equal(views, transform(image).pixels)
        crops = views[96:192], views[192:288]
        boxes.add(tuple(crops[0].min(axis=(0, 1))))
        extents = [crop.max(axis=(0, 1)).astype(int) - crop.min(axis=(0, 1)) for crop in crops]
        sizes.append([(extent[0] / 240) * (extent[1] / 200) for extent in extents])
        alone = RandomCropsTransform(EvalTransform(spec), (0.8,))(image).pixels
        np.testing.assert_array_equal(alone[96:], crops[1])
    assert len(boxes) == 30
    assert np.abs(np.array(sizes) - (0.25, 0.8)).max() < 0.06

"""Similar neighbours are linked; those in random order are not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.evaluation.grouped_folds import count_groups, encode_groups
from finetune.probe.neighbour_links import MIN_CLASS_SIZE, build_folds, link_similar_neighbours


def make_scenes(
    num_scenes: int, num_frames: int, *, num_classes: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return features, labels and scenes of frames in file order; scenes of a class are alike."""
    random = np.random.default_rng(0)
    scenes = np.repeat(np.arange(num_scenes), num_frames)
    labels = scenes * num_classes // num_scenes
    centres = 3 * random.normal(size=(num_classes, 40))
    features = centres[labels] + random.normal(size=(num_scenes, 40))[scenes]
    features += 0.3 * random.normal(size=features.shape)
    return features.astype(np.float32), labels, scenes


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_link_similar_neighbours_finds_scenes(is_interleaved: bool) -> None:
    features, labels, scenes = make_scenes(60, 5)
    # file order with the classes in turn, as in some CSV files
    order = np.argsort(np.arange(300) % 150, kind="stable") if is_interleaved else np.arange(300)
    groups = link_similar_neighbours(features[order], labels[order])
    for group in np.unique(groups):
        assert len(set(scenes[order][groups == group])) == 1
    assert count_groups(groups) >= 60
    assert len(np.unique(groups)) <= 75


def test_link_similar_neighbours_random_order_links_few() -> None:
    features, labels, _ = make_scenes(600, 1)
    groups = link_similar_neighbours(features, labels)
    assert len(np.unique(groups)) > 570


def test_link_similar_neighbours_identical_images_are_not_linked() -> None:
    groups = link_similar_neighbours(np.ones((100, 3), np.float32), np.zeros(100, np.int64))
    assert len(np.unique(groups)) == 100


def test_build_folds_merges_links_with_groups() -> None:
    features, labels, scenes = make_scenes(60, 5)
    # the first and the last scene of each class belong together, as far as the user knows
    names = ["pair" if scene in (0, 29) else "" for scene in scenes]
    folds = build_folds(features, labels, num_folds=5, groups=encode_groups(names))
    assert len(set(folds.fold_of_image[np.isin(scenes, (0, 29))])) == 1
    assert folds.is_testable.all()
    assert folds.num_groups >= 55


def test_build_folds_class_of_one_scene_is_cut_in_order() -> None:
    features, labels, _ = make_scenes(60, 5)
    video = np.random.default_rng(1).normal(size=(100, 40)).cumsum(axis=0)
    features = np.concatenate([features, video]).astype(np.float32)
    folds = build_folds(features, np.append(labels, np.full(100, 2)), num_folds=5)
    np.testing.assert_array_equal(folds.fold_of_image[300:], np.repeat(np.arange(5), 20))


def test_build_folds_small_class_is_cut_in_order() -> None:
    count = MIN_CLASS_SIZE - 5
    features = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    folds = build_folds(features, np.zeros(count, np.int64), num_folds=5)
    assert (np.diff(folds.fold_of_image) >= 0).all()
    assert folds.num_groups == 0


def test_build_folds_divides_groups_if_nothing_could_be_held_out() -> None:
    labels = np.repeat([0, 1], 10)
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    folds = build_folds(features, labels, num_folds=5, groups=encode_groups([*"a" * 10, *"b" * 10]))
    assert folds.is_testable.all()
    assert folds.num_groups == 0
    assert np.bincount(folds.fold_of_image).tolist() == [4] * 5

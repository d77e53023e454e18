"""Fixed stratified sample of images."""

import numpy as np
import pytest

from finetune.data.stratified_sample import draw_stratified_sample


def count(labels: np.ndarray, rows: np.ndarray) -> list[int]:
    return [int(n) for n in np.bincount(labels[rows], minlength=labels.max() + 1)]


@pytest.mark.parametrize(
    ("counts", "num_images", "expected"),
    [
        ((60, 30, 10), 20, [12, 6, 2]),
        # each class at least once; the images are taken from the class that has most too many
        ((90, 9, 1), 10, [8, 1, 1]),
        ((95, 1, 1, 1, 1, 1), 6, [1, 1, 1, 1, 1, 1]),
        # fewer images than classes: the largest
        ((5, 40, 3, 20), 2, [0, 1, 0, 1]),
        ((7, 5), 3, [2, 1]),
        ((3, 2), 9, [3, 2]),
        ((3, 2), 0, [0, 0]),
    ],
)
def test_sample_has_each_class_in_proportion(
    counts: tuple[int, ...], num_images: int, expected: list[int]
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = draw_stratified_sample(labels, num_images=num_images, seed=5)
    assert count(labels, rows) == expected
    assert np.array_equal(rows, np.unique(rows))


def test_sample_is_a_function_of_the_seed() -> None:
    labels = np.repeat([0, 1], 50)
    first, again, other = (
        draw_stratified_sample(labels, num_images=20, seed=seed).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other

"""Image compute_sizes of all epochs of short runs."""

import pytest

from finetune.training.schedules.image_size import compute_image_size


def compute_sizes(count: int, first: int, last: int) -> list[int]:
    return [compute_image_size(e, num_epochs=count, first=first, last=last) for e in range(count)]


@pytest.mark.parametrize(
    ("count", "first", "last", "expected"),
    [
        (1, 128, 224, [224]),
        (2, 128, 224, [128, 224]),
        (4, 128, 224, [128, 160, 192, 224]),
        (5, 128, 224, [128, 160, 192, 192, 224]),
        (3, 224, 128, [224, 192, 128]),
        (4, 24, 32, [24, 32, 32, 32]),
        (3, 100, 110, [100, 100, 110]),
        (3, 160, 160, [160, 160, 160]),
    ],
)
def test_image_size_interpolates_in_multiples_of_32(
    count: int, first: int, last: int, expected: list[int]
) -> None:
    assert compute_sizes(count, first, last) == expected

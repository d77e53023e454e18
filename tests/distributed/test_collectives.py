"""Rows of all ranks come together once each, in order, the same everywhere."""

import pytest
import torch
from torch import Tensor

from finetune.distributed.collectives import gather_rows
from tests.support.processes import gathered, on_two_ranks


def columns(rows: list[int]) -> list[Tensor]:
    """Return rows with a label and two probabilities that name the row."""
    index = torch.tensor(rows, dtype=torch.int64)
    return [index, index * 10, torch.stack([index + 0.25, index + 0.5], 1).float()]


def test_one_process_sorts_and_drops_repeats() -> None:
    found = gather_rows(*columns([3, 0, 2, 0, 1, 3]))
    for column, expected in zip(found, columns([0, 1, 2, 3]), strict=True):
        assert torch.equal(column, expected)


def test_of_a_repeated_row_the_first_is_kept() -> None:
    index, value = gather_rows(torch.tensor([5, 4, 5]), torch.tensor([1.0, 2.0, 3.0]))
    assert (index.tolist(), value.tolist()) == ([4, 5], [2.0, 1.0])


def test_no_rows_at_all() -> None:
    index, value = gather_rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    assert (index.shape, value.shape) == ((0,), (0, 3))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 2, 4], [1, 3, 0]),  # as DistributedSampler pads five images
        ([4, 1], [3, 2, 0, 4]),  # of unequal lengths
        ([4, 3, 2, 1, 0], []),
    ],
)
def test_two_ranks_hold_each_row_once(first: list[int], second: list[int]) -> None:
    for found in on_two_ranks(gathered, [columns(first), columns(second)]):
        for column, expected in zip(found, columns([0, 1, 2, 3, 4]), strict=True):
            assert torch.equal(column, expected)

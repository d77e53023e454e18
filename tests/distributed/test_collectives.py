"""Collectives: gathered rows, checksums, stop requests and the asynchronous maximum."""

import os
import signal
from datetime import timedelta

import pytest
import torch
from torch import Tensor

from finetune.distributed import signals
from finetune.distributed.collectives import (
    AsyncMaxReducer,
    check_same_on_all_ranks,
    compute_checksum,
    gather_rows,
    sync_stop_request,
)
from finetune.distributed.signals import StopRequest
from finetune.errors import TrainingError
from tests.support.processes import gather_columns, open_group, run_on_ranks


def make_columns(rows: list[int]) -> list[Tensor]:
    """Return an index, labels and two probabilities that identify the row."""
    index = torch.tensor(rows, dtype=torch.int64)
    return [index, index * 10, torch.stack([index + 0.25, index + 0.5], 1).float()]


def test_gather_rows_one_process_sorts_and_drops_repetitions() -> None:
    columns = gather_rows(*make_columns([3, 0, 2, 0, 1, 3]))
    for column, expected in zip(columns, make_columns([0, 1, 2, 3]), strict=True):
        assert torch.equal(column, expected)


def test_gather_rows_repeated_row_keeps_first() -> None:
    index, value = gather_rows(torch.tensor([5, 4, 5]), torch.tensor([1.0, 2.0, 3.0]))
    assert (index.tolist(), value.tolist()) == ([4, 5], [2.0, 1.0])


def test_gather_rows_without_rows_keeps_shapes() -> None:
    index, value = gather_rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    assert (index.shape, value.shape) == ((0,), (0, 3))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 2, 4], [1, 3, 0]),  # as DistributedSampler pads five images
        ([4, 1], [3, 2, 0, 4]),  # different lengths
        ([4, 3, 2, 1, 0], []),
    ],
)
def test_gather_rows_two_ranks_hold_each_row_once(first: list[int], second: list[int]) -> None:
    for columns in run_on_ranks(2, gather_columns, [make_columns(first), make_columns(second)]):
        for column, expected in zip(columns, make_columns([0, 1, 2, 3, 4]), strict=True):
            assert torch.equal(column, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.bool])
def test_compute_checksum_one_changed_element_changes_it(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 2).to(dtype)
    changed = tensor.clone()
    changed[1, 1] = 1
    assert compute_checksum(tensor) == compute_checksum(tensor.T) == 0
    assert compute_checksum(changed) != 0
    assert compute_checksum(changed).dtype == torch.int64


def compare_weights(rank: int) -> str:
    """Return the error of ``check_same_on_all_ranks`` where rank 2 differs in one bit."""
    same, different = torch.ones(4), torch.zeros(2)
    with open_group():
        check_same_on_all_ranks([("same", same), ("different", different)])
        different[0] = 1e-45 * (rank == 2)
        try:
            check_same_on_all_ranks([("same", same), ("different", different)])
        except TrainingError as error:
            return str(error)
    return ""


def test_check_same_on_all_ranks_one_bit_differs_raises_on_every_rank() -> None:
    messages = run_on_ranks(3, compare_weights)
    assert len(set(messages)) == 1
    assert "different (1 of 2 tensors) differs between rank 0 and rank 2" in messages[0]


def reduce_steps(rank: int) -> list[tuple[int, ...] | None]:
    """Return the maxima of three steps, in which rank r reduces (step, r)."""
    with open_group():
        reducer = AsyncMaxReducer(timedelta(seconds=60))
        maxima: list[tuple[int, ...] | None] = [reducer.reduce(step, rank) for step in (5, 6, 7)]
        return [*maxima, reducer.wait(), reducer.wait()]


def test_async_max_reducer_returns_maxima_of_previous_step() -> None:
    for maxima in run_on_ranks(2, reduce_steps):
        assert maxima == [(0, 0), (5, 1), (6, 1), (7, 1), None]


def stop_one_rank(rank: int) -> str:
    """Return the stop request of a rank where rank 1 alone received a signal."""
    try:
        with open_group(), signals.allow_interrupts(), signals.defer():
            if rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            sync_stop_request()
    except StopRequest as request:
        return str(request)
    return ""


def test_sync_stop_request_signal_on_one_rank_raises_on_all() -> None:
    assert run_on_ranks(2, stop_one_rank) == ["SIGUSR1", "SIGUSR1"]

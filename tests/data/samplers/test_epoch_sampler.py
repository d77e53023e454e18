"""Tests of epoch samplers: pure functions of (seed, epoch), the same for any number of ranks."""

from collections import Counter

import numpy as np
import pytest

from finetune.data.samplers.epoch_sampler import EpochSampler, compute_effective_batch_size
from finetune.data.samplers.sampling_weights import (
    SAMPLERS,
    GroupDraws,
    Sampling,
    SamplingSchedule,
    weighted,
)
from finetune.lookup import has_parameter
from finetune.types import Draw

LABELS = np.repeat([0, 1, 2], [70, 25, 5])
WEIGHTS = weighted(LABELS, 3)
NUM_EPOCHS = 4


def make_schedule(name: str) -> SamplingSchedule:
    """Return a sampler of the registry as a function of the epoch."""
    strategy = SAMPLERS[name]
    if not has_parameter(strategy, "epoch"):
        return lambda _: strategy(LABELS, 3)
    return lambda epoch: strategy(LABELS, 3, epoch=epoch, num_epochs=NUM_EPOCHS)


def make_sampler(
    sampling: Sampling | SamplingSchedule = None,
    *,
    epoch: int = 0,
    seed: int = 0,
    num_images: int = 100,
    batch_size: int = 8,
    num_replicas: int = 1,
    rank: int = 0,
) -> EpochSampler:
    sampler = EpochSampler(
        sampling,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        num_replicas=num_replicas,
        rank=rank,
    )
    sampler.set_epoch(epoch)
    return sampler


def split_into_batches(draws: list[Draw], size: int) -> list[list[Draw]]:
    return [draws[start : start + size] for start in range(0, len(draws), size)]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, NUM_EPOCHS - 1])
def test_epoch_sampler_batches_of_ranks_form_global_batches(
    epoch: int, num_replicas: int, name: str
) -> None:
    schedule = make_schedule(name)
    global_batches = split_into_batches(list(make_sampler(schedule, epoch=epoch)), 8)
    num_images = {"oversample": 210, "undersample": 15}.get(name, 100)
    assert len(global_batches) == num_images // 8
    ranks = [
        list(make_sampler(schedule, epoch=epoch, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    local = [split_into_batches(draws, 8 // num_replicas) for draws in ranks]
    assert {len(draws) for draws in ranks} == {
        len(make_sampler(schedule, num_replicas=num_replicas))
    }
    for number, batch in enumerate(global_batches):
        gathered = [draw for rank in local for draw in rank[number]]
        assert sorted(gathered) == sorted(batch)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, NUM_EPOCHS - 1])
def test_epoch_sampler_skip_resumes_same_draws(epoch: int, num_replicas: int, name: str) -> None:
    for rank in range(num_replicas):
        full, resumed = (
            make_sampler(make_schedule(name), epoch=epoch, num_replicas=num_replicas, rank=rank)
            for _ in range(2)
        )
        resumed.skip(8 // num_replicas)
        assert list(resumed) == list(full)[8 // num_replicas :]
        resumed.set_epoch(epoch - 1 if epoch else 1)
        assert len(list(resumed)) == len(resumed)


@pytest.mark.parametrize("name", SAMPLERS)
def test_epoch_sampler_repeat_counts_earlier_draws(name: str) -> None:
    for epoch in range(NUM_EPOCHS):
        draws = list(make_sampler(make_schedule(name), epoch=epoch))
        counts: Counter[int] = Counter()
        for draw in draws:
            assert (draw.epoch, draw.repeat) == (epoch, counts[draw.row])
            counts[draw.row] += 1
        assert len(set(draws)) == len(draws)
        once = make_schedule(name)(epoch) is None or name == "undersample"
        assert (max(counts.values()) == 1) is once


def test_epoch_sampler_calls_schedule_once_per_epoch() -> None:
    epochs: list[int] = []

    def schedule(epoch: int) -> Sampling:
        epochs.append(epoch)
        return WEIGHTS

    list(make_sampler(schedule, epoch=2))
    assert epochs == [0, 2]  # for the length of an epoch, and for the draws


def test_epoch_sampler_epoch_of_other_length_raises_value_error() -> None:
    groups = np.zeros(100, np.int64)
    sampler = make_sampler(lambda epoch: GroupDraws(groups, np.array([50 + epoch])), epoch=1)
    with pytest.raises(ValueError, match=r"epoch 1 .* 51 images.* 50"):
        list(sampler)


def test_epoch_sampler_uniform_draws_each_image_at_most_once() -> None:
    draws = list(make_sampler(num_images=103))
    assert len(draws) == 96
    assert len({draw.row for draw in draws}) == 96
    assert {draw.row for draw in draws} < set(range(103))
    assert [draw.row for draw in draws] != sorted(draw.row for draw in draws)


def test_epoch_sampler_draws_every_image_over_epochs() -> None:
    rows = {draw.row for epoch in range(20) for draw in make_sampler(num_images=103, epoch=epoch)}
    assert rows == set(range(103))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_epoch_sampler_is_function_of_seed_and_epoch(weights: Sampling) -> None:
    sampler = make_sampler(weights)
    first = [draw.row for draw in sampler]
    sampler.set_epoch(1)
    second = [draw.row for draw in sampler]
    assert second == [draw.row for draw in make_sampler(weights, epoch=1)]
    assert first != second
    assert first != [draw.row for draw in make_sampler(weights, seed=1)]
    # (seed 0, epoch 1) and (seed 1, epoch 0) must not be the same order
    assert second != [draw.row for draw in make_sampler(weights, seed=1)]
    assert {draw.epoch for draw in sampler} == {1}


@pytest.mark.parametrize(("name", "power"), [("weighted", 1.0), ("sqrt", 0.5)])
def test_epoch_sampler_weighted_draws_approach_expected_fractions(name: str, power: float) -> None:
    counts = np.bincount(LABELS)
    expected = counts ** (1 - power) / (counts ** (1 - power)).sum()
    schedule = make_schedule(name)
    drawn = np.concatenate(
        [
            LABELS[[draw.row for draw in make_sampler(schedule, epoch=epoch, batch_size=100)]]
            for epoch in range(100)
        ]
    )
    fractions = np.bincount(drawn, minlength=3) / len(drawn)
    # five standard deviations of a fraction over 10,000 draws
    np.testing.assert_allclose(fractions, expected, atol=5 * 0.5 / np.sqrt(len(drawn)))


def test_epoch_sampler_weight_zero_is_never_drawn() -> None:
    weights = np.ones(100)
    weights[:90] = 0.0
    assert {draw.row for draw in make_sampler(weights)} == set(range(90, 100))


@pytest.mark.parametrize(
    ("batch_size", "num_images", "shards", "expected"),
    [(32, 1000, 1, 32), (32, 1000, 4, 32), (32, 20, 1, 20), (32, 30, 4, 28), (8, 8, 8, 8)],
)
def test_effective_batch_size_is_limited_by_images(
    batch_size: int, num_images: int, shards: int, expected: int
) -> None:
    actual = compute_effective_batch_size(batch_size, num_images=num_images, num_shards=shards)
    largest = max(b for b in range(shards, batch_size + 1, shards) if b <= num_images)
    assert actual == expected == largest


@pytest.mark.parametrize(
    ("sampling", "batch_size", "num_replicas", "message"),
    [
        (np.ones(9), 4, 1, r"\(10,\).*\(9,\)"),
        (np.zeros(10), 4, 1, "all be 0"),
        (None, 5, 2, "batch size 5 .* 2 ranks"),
        (None, 12, 2, "12 .* 10 images"),
        (
            GroupDraws(np.zeros(10, np.int64), np.array([6])),
            8,
            2,
            "8 .* 6 images",
        ),
        (None, 0, 1, "batch size 0"),
    ],
)
def test_epoch_sampler_invalid_arguments_raise_value_error(
    sampling: Sampling, batch_size: int, num_replicas: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(sampling, num_images=10, batch_size=batch_size, num_replicas=num_replicas)

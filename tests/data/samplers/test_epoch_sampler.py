"""An epoch is a pure function of (seed, epoch), the same for any number of ranks."""

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


def sampling_of(name: str) -> SamplingSchedule:
    """Return a row of the table as a function of the epoch."""
    row = SAMPLERS[name]
    if not has_parameter(row, "epoch"):
        return lambda _: row(LABELS, 3)
    return lambda epoch: row(LABELS, 3, epoch=epoch, num_epochs=NUM_EPOCHS)


def sampler(
    sampling: Sampling | SamplingSchedule = None,
    *,
    epoch: int = 0,
    seed: int = 0,
    num_images: int = 100,
    batch_size: int = 8,
    num_replicas: int = 1,
    rank: int = 0,
) -> EpochSampler:
    made = EpochSampler(
        sampling,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        num_replicas=num_replicas,
        rank=rank,
    )
    made.set_epoch(epoch)
    return made


def batches(draws: list[Draw], size: int) -> list[list[Draw]]:
    return [draws[start : start + size] for start in range(0, len(draws), size)]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, NUM_EPOCHS - 1])
def test_the_ranks_batches_together_are_the_global_batches(
    epoch: int, num_replicas: int, name: str
) -> None:
    at = sampling_of(name)
    whole = batches(list(sampler(at, epoch=epoch)), 8)
    num_images = {"oversample": 210, "undersample": 15}.get(name, 100)
    assert len(whole) == num_images // 8
    ranks = [
        list(sampler(at, epoch=epoch, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    local = [batches(draws, 8 // num_replicas) for draws in ranks]
    assert {len(draws) for draws in ranks} == {len(sampler(at, num_replicas=num_replicas))}
    for number, batch in enumerate(whole):
        together = [draw for rank in local for draw in rank[number]]
        assert sorted(together) == sorted(batch)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, NUM_EPOCHS - 1])
def test_a_broken_off_epoch_goes_on_with_the_same_draw(
    epoch: int, num_replicas: int, name: str
) -> None:
    for rank in range(num_replicas):
        whole, rest = (
            sampler(sampling_of(name), epoch=epoch, num_replicas=num_replicas, rank=rank)
            for _ in range(2)
        )
        rest.skip(8 // num_replicas)
        assert list(rest) == list(whole)[8 // num_replicas :]
        rest.set_epoch(epoch - 1 if epoch else 1)
        assert len(list(rest)) == len(rest)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_is_named_once_and_counts_the_earlier_ones(name: str) -> None:
    for epoch in range(NUM_EPOCHS):
        draws = list(sampler(sampling_of(name), epoch=epoch))
        seen: Counter[int] = Counter()
        for draw in draws:
            assert (draw.epoch, draw.repeat) == (epoch, seen[draw.row])
            seen[draw.row] += 1
        assert len(set(draws)) == len(draws)
        once = sampling_of(name)(epoch) is None or name == "undersample"
        assert (max(seen.values()) == 1) is once


def test_what_is_drawn_is_asked_for_once_an_epoch() -> None:
    asked: list[int] = []

    def at(epoch: int) -> Sampling:
        asked.append(epoch)
        return WEIGHTS

    made = sampler(at, epoch=2)
    list(made)
    assert asked == [0, 2]  # how long an epoch is, and what is drawn


def test_an_epoch_of_another_length_is_refused() -> None:
    groups = np.zeros(100, np.int64)
    made = sampler(lambda epoch: GroupDraws(groups, np.array([50 + epoch])), epoch=1)
    with pytest.raises(ValueError, match=r"epoch 1 \(.*\) draws 51 images, the first one 50"):
        list(made)


def test_uniform_draws_each_image_at_most_once_in_whole_batches() -> None:
    draws = list(sampler(num_images=103))
    assert len(draws) == 96
    assert len({draw.row for draw in draws}) == 96
    assert {draw.row for draw in draws} < set(range(103))
    assert [draw.row for draw in draws] != sorted(draw.row for draw in draws)


def test_over_the_epochs_no_image_is_left_out() -> None:
    seen = {draw.row for epoch in range(20) for draw in sampler(num_images=103, epoch=epoch)}
    assert seen == set(range(103))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_an_epoch_follows_seed_and_epoch_alone(weights: Sampling) -> None:
    kept = sampler(weights)
    first = [draw.row for draw in kept]
    kept.set_epoch(1)
    second = [draw.row for draw in kept]
    assert second == [draw.row for draw in sampler(weights, epoch=1)]
    assert first != second
    assert first != [draw.row for draw in sampler(weights, seed=1)]
    # (seed 0, epoch 1) and (seed 1, epoch 0) must not be the same order
    assert second != [draw.row for draw in sampler(weights, seed=1)]
    assert {draw.epoch for draw in kept} == {1}


@pytest.mark.parametrize(("name", "power"), [("weighted", 1.0), ("sqrt", 0.5)])
def test_weighted_draws_approach_the_shares_that_the_weights_ask_for(
    name: str, power: float
) -> None:
    counts = np.bincount(LABELS)
    expected = counts ** (1 - power) / (counts ** (1 - power)).sum()
    weights = sampling_of(name)
    drawn = np.concatenate(
        [
            LABELS[[draw.row for draw in sampler(weights, epoch=epoch, batch_size=100)]]
            for epoch in range(100)
        ]
    )
    found = np.bincount(drawn, minlength=3) / len(drawn)
    # five standard deviations of a share over 10,000 draws
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(len(drawn)))


def test_an_image_of_weight_zero_is_never_drawn() -> None:
    weights = np.ones(100)
    weights[:90] = 0.0
    assert {draw.row for draw in sampler(weights)} == set(range(90, 100))


@pytest.mark.parametrize(
    ("batch_size", "num_images", "shards", "expected"),
    [(32, 1000, 1, 32), (32, 1000, 4, 32), (32, 20, 1, 20), (32, 30, 4, 28), (8, 8, 8, 8)],
)
def test_a_batch_shrinks_to_the_images_there_are(
    batch_size: int, num_images: int, shards: int, expected: int
) -> None:
    found = compute_effective_batch_size(batch_size, num_images=num_images, num_shards=shards)
    largest = max(b for b in range(shards, batch_size + 1, shards) if b <= num_images)
    assert found == expected == largest


@pytest.mark.parametrize(
    ("sampling", "batch_size", "num_replicas", "message"),
    [
        (np.ones(9), 4, 1, "10 weights of 0 or more are needed"),
        (np.zeros(10), 4, 1, "must not all be 0"),
        (None, 5, 2, "a global batch of 5 must divide among 2 ranks"),
        (None, 12, 2, "at most the 10 images of an epoch"),
        (
            GroupDraws(np.zeros(10, np.int64), np.array([6])),
            8,
            2,
            "at most the 6 images of an epoch",
        ),
        (None, 0, 1, "a global batch of 0"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(
    sampling: Sampling, batch_size: int, num_replicas: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(sampling, num_images=10, batch_size=batch_size, num_replicas=num_replicas)

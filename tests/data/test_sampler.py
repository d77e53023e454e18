"""An epoch is a pure function of (seed, epoch), the same for any number of ranks."""

from collections import Counter

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from finetune.data.sampler import (
    SAMPLERS,
    EpochSampler,
    Weights,
    effective_batch_size,
    inverse_frequency_weights,
    square_root_weights,
)
from finetune.types import Draw

LABELS = [0] * 70 + [1] * 25 + [2] * 5
WEIGHTS = inverse_frequency_weights(LABELS, 3)


def sampler(
    weights: Weights | None = None,
    *,
    epoch: int = 0,
    seed: int = 0,
    num_images: int = 100,
    batch_size: int = 8,
    num_replicas: int = 1,
    rank: int = 0,
) -> EpochSampler:
    made = EpochSampler(
        weights,
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


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_the_ranks_batches_together_are_the_global_batches(
    weights: Weights | None, num_replicas: int
) -> None:
    whole = batches(list(sampler(weights, epoch=3)), 8)
    assert len(whole) == 100 // 8
    ranks = [
        list(sampler(weights, epoch=3, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    local = [batches(draws, 8 // num_replicas) for draws in ranks]
    assert {len(draws) for draws in ranks} == {len(sampler(weights, num_replicas=num_replicas))}
    for number, batch in enumerate(whole):
        together = [draw for rank in local for draw in rank[number]]
        assert sorted(together) == sorted(batch)


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
def test_an_epoch_follows_seed_and_epoch_alone(weights: Weights | None) -> None:
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


def test_repeats_count_the_earlier_draws_of_an_image_over_all_ranks() -> None:
    draws = list(sampler(WEIGHTS, epoch=2))
    seen: Counter[int] = Counter()
    for draw in draws:
        assert draw.repeat == seen[draw.row]
        seen[draw.row] += 1
    assert max(seen.values()) > 1
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("name", "power"), [("weighted", 1.0), ("sqrt", 0.5)])
def test_weighted_draws_approach_the_shares_that_the_weights_ask_for(
    name: str, power: float
) -> None:
    counts = np.bincount(LABELS)
    expected = counts ** (1 - power) / (counts ** (1 - power)).sum()
    weights = SAMPLERS[name](LABELS, 3)
    drawn = np.concatenate(
        [
            np.asarray(LABELS)[[draw.row for draw in sampler(weights, epoch=epoch, batch_size=100)]]
            for epoch in range(100)
        ]
    )
    found = np.bincount(drawn, minlength=3) / len(drawn)
    # five standard deviations of a share over 10,000 draws
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(len(drawn)))


def test_weights_are_those_of_scikit_learn_up_to_a_factor() -> None:
    balanced = compute_sample_weight("balanced", LABELS)
    np.testing.assert_allclose(WEIGHTS / WEIGHTS.sum(), balanced / balanced.sum())
    roots = square_root_weights(LABELS, 3)
    np.testing.assert_allclose(roots / roots.sum(), balanced**0.5 / (balanced**0.5).sum())
    assert SAMPLERS["uniform"](LABELS, 3) is None
    assert np.isfinite(inverse_frequency_weights([0, 2], 4)).all()


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
    found = effective_batch_size(batch_size, num_images=num_images, shards=shards)
    largest = max(b for b in range(shards, batch_size + 1, shards) if b <= num_images)
    assert found == expected == largest


@pytest.mark.parametrize(
    ("weights", "batch_size", "num_replicas", "message"),
    [
        (np.ones(9), 4, 1, "needs 10 weights"),
        (-np.ones(10), 4, 1, "weights of 0 or more"),
        (np.full(10, np.nan), 4, 1, "weights of 0 or more"),
        (np.zeros(10), 4, 1, "must not all be 0"),
        (None, 5, 2, "a global batch of 5 must divide among 2 ranks"),
        (None, 12, 2, "at most the 10 images"),
        (None, 0, 1, "a global batch of 0"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(
    weights: Weights | None, batch_size: int, num_replicas: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(weights, num_images=10, batch_size=batch_size, num_replicas=num_replicas)

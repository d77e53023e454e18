"""Last layers learn from kept maps what they would learn from the images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.probe.activation_training import (
    LastStageSettings,
    compute_last_stage_logits,
    iter_training_passes,
)
from finetune.probe.extractor import ActivationLayout

CPU = torch.device("cpu")
SHAPE = torch.Size((4, 3, 3))
FORM = ActivationLayout(SHAPE, channels_last=True)
LABELS = np.arange(12) % 3
HOW = LastStageSettings(
    num_passes=3,
    batch_size=5,
    micro_batch_size=5,
    lr_factor=lambda _: 1.0,
    gradient_clip=0.0,
    precision="32-true",
    seed=3,
)


def maps(seed: int = 0) -> NDArray[np.float32]:
    """Return maps in which a channel each says what the image shows, under noise."""
    made = np.random.default_rng(seed).normal(0, 0.5, (12, *SHAPE)).astype(np.float32)
    made[np.arange(12), LABELS] += 1
    return made.reshape(12, -1)


def tail() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def learnt(
    network: nn.Module,
    views: list[NDArray[np.float32]],
    *,
    how: LastStageSettings = HOW,
    weights: NDArray[np.float64] | None = None,
    offset: Tensor | None = None,
    lr: float = 0.1,
) -> list[float]:
    """Return the loss of each epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    shares = np.ones(12) if weights is None else weights
    return list(
        iter_training_passes(
            network,
            optimizer,
            views,
            LABELS,
            shares,
            logit_offset=offset,
            layout=FORM,
            settings=how,
            device=CPU,
        )
    )


def logits(network: nn.Module, of: NDArray[np.float32]) -> Tensor:
    return compute_last_stage_logits(
        network.eval(), of, layout=FORM, batch_size=5, precision="32-true", device=CPU
    )


def test_it_learns_and_says_its_loss() -> None:
    network = tail()
    before = nn.functional.cross_entropy(logits(network, maps()), torch.from_numpy(LABELS))
    losses = learnt(network, [maps()], how=replace(HOW, num_passes=20))
    assert losses[0] == pytest.approx(float(before), rel=0.2)
    assert losses[-1] < 0.5 * losses[0]
    assert (logits(network, maps(1)).argmax(dim=1).numpy() == LABELS).mean() > 0.9


def test_steps_are_those_of_a_plain_loop() -> None:
    network, plain = tail(), tail()
    learnt(network, [maps()], how=replace(HOW, num_passes=1, batch_size=12, micro_batch_size=12))
    of_all, labels = torch.from_numpy(maps()).view(-1, *SHAPE), torch.from_numpy(LABELS)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    loss: Any = nn.functional.cross_entropy(plain(of_all), labels)
    loss.backward()
    optimizer.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_what_is_in_memory_together_makes_no_difference(at_once: int) -> None:
    whole, parted = tail(), tail()
    weights = np.arange(1, 13, dtype=np.float64)
    losses = [
        learnt(
            network, [maps()], how=replace(HOW, batch_size=7, micro_batch_size=at), weights=weights
        )
        for network, at in ((whole, 7), (parted, at_once))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(logits(whole, maps()), logits(parted, maps()), rtol=1e-4, atol=1e-5)


def test_every_step_is_told() -> None:
    steps: list[int] = []
    network = tail()
    passes = iter_training_passes(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        [maps()],
        LABELS,
        np.ones(12),
        layout=FORM,
        settings=HOW,
        device=CPU,
        after_step=lambda: steps.append(len(steps)),
    )
    assert [len(steps) for _ in passes] == [3, 6, 9]


def test_the_same_seed_learns_the_same_bits_and_another_does_not() -> None:
    networks = [tail() for _ in range(3)]
    for network, seed in zip(networks, (3, 3, 4), strict=True):
        learnt(network, [maps(), maps(1)], how=replace(HOW, seed=seed))
    first, again, other = (logits(network, maps()) for network in networks)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_without_weight_teaches_nothing() -> None:
    spoilt = maps()
    spoilt[7] = 50.0
    weights = np.ones(12)
    weights[7] = 0
    networks = [tail(), tail()]
    for network, views in zip(networks, (maps(), spoilt), strict=True):
        learnt(network, [views], weights=weights)
    assert torch.equal(*(logits(network, maps()) for network in networks))


@pytest.mark.parametrize("number", [0, 1])
def test_each_view_is_learnt_from(number: int) -> None:
    views = [maps(), maps()]
    plain, changed = tail(), tail()
    learnt(plain, views)
    views[number] = maps(5)
    learnt(changed, views)
    assert not torch.equal(logits(plain, maps()), logits(changed, maps()))


@pytest.mark.parametrize(
    "change",
    [{"lr_factor": lambda step: float(step == 0)}, {"gradient_clip": 1e-3}],
    ids=["rates", "norms"],
)
def test_rates_and_norms_are_held(change: dict[str, Any]) -> None:
    far = [
        moved_by(replace(HOW, batch_size=12, micro_batch_size=12, **some)) for some in ({}, change)
    ]
    assert 0 < far[1] < 0.6 * far[0]


def moved_by(how: LastStageSettings) -> float:
    """Return how far training moves the weights."""
    network, untrained = tail(), tail()
    learnt(network, [maps()], how=how)
    pairs = zip(network.parameters(), untrained.parameters(), strict=True)
    squares = [(now - then).detach().square().sum() for now, then in pairs]
    return float(torch.stack(squares).sum().sqrt())


def test_logits_come_in_parts_in_order() -> None:
    network = tail().eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(maps()).view(-1, *SHAPE))
    torch.testing.assert_close(logits(network, maps()), expected)


def test_an_offset_is_added_to_the_logits_of_the_loss() -> None:
    network, plain = tail(), tail()
    offset = torch.tensor([-0.1, -1.0, -3.0])
    (found,) = learnt(
        network,
        [maps()],
        how=replace(HOW, num_passes=1, batch_size=12, micro_batch_size=5),
        offset=offset,
    )
    of_all, labels = torch.from_numpy(maps()).view(-1, *SHAPE), torch.from_numpy(LABELS)
    loss: Any = nn.functional.cross_entropy(plain(of_all) + offset, labels)
    loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)

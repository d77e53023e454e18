"""Training of a last stage on cached activations against a plain loop, and its options."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.errors import TrainingError
from finetune.probe.features.extractor import ActivationLayout
from finetune.probe.last_stage_training import (
    LastStageSettings,
    compute_last_stage_logits,
    iter_training_epochs,
)

CPU = torch.device("cpu")
SHAPE = torch.Size((4, 3, 3))
LAYOUT = ActivationLayout(SHAPE, channels_last=True)
LABELS = np.arange(12) % 3
SETTINGS = LastStageSettings(
    num_epochs=3,
    batch_size=5,
    micro_batch_size=5,
    lr_factor=lambda _: 1.0,
    gradient_clip=0.0,
    precision="32-true",
    seed=3,
)


def make_activations(seed: int = 0) -> NDArray[np.float32]:
    """Return noisy activations with one informative channel per class."""
    activations = np.random.default_rng(seed).normal(0, 0.5, (12, *SHAPE)).astype(np.float32)
    activations[np.arange(12), LABELS] += 1
    return activations.reshape(12, -1)


def make_last_stage() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def train_epochs(
    network: nn.Module,
    views: list[NDArray[np.float32]],
    *,
    settings: LastStageSettings = SETTINGS,
    weights: NDArray[np.float64] | None = None,
    offset: Tensor | None = None,
    lr: float = 0.1,
) -> list[float]:
    """Return the loss of each epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    sample_weights = np.ones(12) if weights is None else weights
    return list(
        iter_training_epochs(
            network,
            optimizer,
            views,
            LABELS,
            sample_weights,
            logit_offset=offset,
            layout=LAYOUT,
            settings=settings,
            device=CPU,
        )
    )


def compute_logits(network: nn.Module, activations: NDArray[np.float32]) -> Tensor:
    return compute_last_stage_logits(
        network.eval(), activations, layout=LAYOUT, batch_size=5, precision="32-true", device=CPU
    )


def test_iter_training_epochs_reduces_and_yields_loss() -> None:
    network = make_last_stage()
    before = nn.functional.cross_entropy(
        compute_logits(network, make_activations()), torch.from_numpy(LABELS)
    )
    losses = train_epochs(network, [make_activations()], settings=replace(SETTINGS, num_epochs=20))
    assert losses[0] == pytest.approx(float(before), rel=0.2)
    assert losses[-1] < 0.5 * losses[0]
    assert (
        compute_logits(network, make_activations(1)).argmax(dim=1).numpy() == LABELS
    ).mean() > 0.9


def test_iter_training_epochs_matches_plain_loop() -> None:
    network, plain = make_last_stage(), make_last_stage()
    train_epochs(
        network,
        [make_activations()],
        settings=replace(SETTINGS, num_epochs=1, batch_size=12, micro_batch_size=12),
    )
    activations, labels = (
        torch.from_numpy(make_activations()).view(-1, *SHAPE),
        torch.from_numpy(LABELS),
    )
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    loss: Any = nn.functional.cross_entropy(plain(activations), labels)
    loss.backward()
    optimizer.step()
    for actual, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 7])
def test_iter_training_epochs_result_does_not_depend_on_micro_batch_size(
    micro_batch_size: int,
) -> None:
    whole, split = make_last_stage(), make_last_stage()
    weights = np.arange(1, 13, dtype=np.float64)
    losses = [
        train_epochs(
            network,
            [make_activations()],
            settings=replace(SETTINGS, batch_size=7, micro_batch_size=size),
            weights=weights,
        )
        for network, size in ((whole, 7), (split, micro_batch_size))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(
        compute_logits(whole, make_activations()),
        compute_logits(split, make_activations()),
        rtol=1e-4,
        atol=1e-5,
    )


def test_iter_training_epochs_calls_after_step_once_per_step() -> None:
    steps: list[int] = []
    network = make_last_stage()
    epochs = iter_training_epochs(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        [make_activations()],
        LABELS,
        np.ones(12),
        layout=LAYOUT,
        settings=SETTINGS,
        device=CPU,
        after_step=lambda: steps.append(len(steps)),
    )
    assert [len(steps) for _ in epochs] == [3, 6, 9]


def test_iter_training_epochs_is_bit_identical_for_same_seed_only() -> None:
    networks = [make_last_stage() for _ in range(3)]
    for network, seed in zip(networks, (3, 3, 4), strict=True):
        train_epochs(
            network,
            [make_activations(), make_activations(1)],
            settings=replace(SETTINGS, seed=seed),
        )
    first, again, other = (compute_logits(network, make_activations()) for network in networks)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_iter_training_epochs_ignores_image_of_weight_0() -> None:
    corrupted = make_activations()
    corrupted[7] = 50.0
    weights = np.ones(12)
    weights[7] = 0
    networks = [make_last_stage(), make_last_stage()]
    for network, views in zip(networks, (make_activations(), corrupted), strict=True):
        train_epochs(network, [views], weights=weights)
    assert torch.equal(*(compute_logits(network, make_activations()) for network in networks))


@pytest.mark.parametrize("index", [0, 1])
def test_iter_training_epochs_trains_on_each_view(index: int) -> None:
    views = [make_activations(), make_activations()]
    plain, changed = make_last_stage(), make_last_stage()
    train_epochs(plain, views)
    views[index] = make_activations(5)
    train_epochs(changed, views)
    assert not torch.equal(
        compute_logits(plain, make_activations()), compute_logits(changed, make_activations())
    )


@pytest.mark.parametrize(
    "change",
    [{"lr_factor": lambda step: float(step == 0)}, {"gradient_clip": 1e-3}],
    ids=["lr_factor", "gradient_clip"],
)
def test_iter_training_epochs_applies_lr_factor_and_gradient_clip(change: dict[str, Any]) -> None:
    base = replace(SETTINGS, batch_size=12, micro_batch_size=12)
    assert 0 < measure_update(replace(base, **change)) < 0.6 * measure_update(base)


def measure_update(settings: LastStageSettings) -> float:
    """Return the norm of the difference between trained and initial weights."""
    network, untrained = make_last_stage(), make_last_stage()
    train_epochs(network, [make_activations()], settings=settings)
    pairs = zip(network.parameters(), untrained.parameters(), strict=True)
    squares = [(after - before).detach().square().sum() for after, before in pairs]
    return float(torch.stack(squares).sum().sqrt())


def test_compute_last_stage_logits_in_batches_keeps_order() -> None:
    network = make_last_stage().eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(make_activations()).view(-1, *SHAPE))
    torch.testing.assert_close(compute_logits(network, make_activations()), expected)


def test_iter_training_epochs_adds_logit_offset_in_the_loss() -> None:
    network, plain = make_last_stage(), make_last_stage()
    offset = torch.tensor([-0.1, -1.0, -3.0])
    (mean_loss,) = train_epochs(
        network,
        [make_activations()],
        settings=replace(SETTINGS, num_epochs=1, batch_size=12, micro_batch_size=5),
        offset=offset,
    )
    activations, labels = (
        torch.from_numpy(make_activations()).view(-1, *SHAPE),
        torch.from_numpy(LABELS),
    )
    loss: Any = nn.functional.cross_entropy(plain(activations) + offset, labels)
    loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert mean_loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for actual, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_iter_training_epochs_stops_in_the_step_whose_loss_is_nan() -> None:
    """Before the step changes the weights."""
    activations = make_activations()
    activations[7] = np.nan
    network = make_last_stage()
    before = [parameter.clone() for parameter in network.parameters()]
    settings = replace(SETTINGS, batch_size=12)
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1, step 1 .*optim\.lr"):
        train_epochs(network, [activations], settings=settings)
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_compute_last_stage_logits_of_some_rows() -> None:
    network, activations, rows = make_last_stage(), make_activations(), np.array([0, 3, 4, 11])
    logits = compute_last_stage_logits(
        network, activations, rows=rows, layout=LAYOUT, batch_size=3, precision="32-true",
        device=CPU,
    )  # fmt: skip
    torch.testing.assert_close(logits, compute_logits(network, activations)[rows])

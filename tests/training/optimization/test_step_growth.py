"""Tests of the growth of an optimizer's steps, against the formulas of the optimizers."""

from functools import partial
from typing import Any

import pytest
import torch

from finetune.training.optimization.optimizers import create_optimizer
from finetune.training.optimization.step_growth import estimate_step_growth

GRADIENT = torch.tensor([0.3, -2e-3, 0.04])
NUM_STEPS = 30


def estimate(name: str, *, num_first_steps: int = 4, scale: float = 1.0, **settings: Any) -> float:
    create = partial(create_optimizer, name, fused=False, **settings)
    return estimate_step_growth(scale * GRADIENT, create, num_first_steps=num_first_steps)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_steps_of_adam_do_not_grow(name: str) -> None:
    assert estimate(name) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_steps_of_a_momentum_add_up(momentum: float) -> None:
    sums = [sum(momentum**power for power in range(step)) for step in range(1, NUM_STEPS + 1)]
    expected = sums[-1] / (sum(sums[:4]) / 4)
    assert estimate("sgd", momentum=momentum) == pytest.approx(expected)


def test_first_steps_of_rmsprop_are_too_large() -> None:
    sizes = [(1 - 0.99**step) ** -0.5 for step in range(1, NUM_STEPS + 1)]
    expected = sizes[-1] / (sum(sizes[:4]) / 4)
    assert estimate("rmsprop") == pytest.approx(expected, rel=1e-3)


def test_steps_of_adagrad_shrink() -> None:
    sizes = [step**-0.5 for step in range(1, NUM_STEPS + 1)]
    assert estimate("adagrad", num_first_steps=1) == pytest.approx(sizes[-1])


def test_steps_of_adadelta_grow_with_the_size_of_the_gradients() -> None:
    """Small gradients are divided by the root of ``eps``, so that its steps are those of SGD."""
    assert estimate("adadelta", scale=1e-4) == pytest.approx(1, rel=0.01)
    # an independent loop over Zeiler 2012, algorithm 1
    gradient, squares, deltas = 0.3, 0.0, 0.0
    steps = []
    for _ in range(NUM_STEPS):
        squares = 0.9 * squares + 0.1 * gradient**2
        step = ((deltas + 1e-6) / (squares + 1e-6)) ** 0.5 * gradient
        deltas = 0.9 * deltas + 0.1 * step**2
        steps.append(step)
    create = partial(create_optimizer, "adadelta")
    found = estimate_step_growth(torch.tensor([gradient]), create, num_first_steps=4)
    assert found == pytest.approx(steps[-1] / (sum(steps[:4]) / 4), rel=1e-4)

"""Growth of an optimizer's steps after its first ones, at a constant learning rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_NUM_STEPS = 30
"""Steps that are compared with the first ones: those of the warm-up, after which rates are highest.
The sums of a momentum of 0.9 have reached 0.96 of their limit by then."""


def estimate_step_growth(
    gradient: Tensor,
    create_optimizer: Callable[[list[dict[str, Any]]], Optimizer],
    *,
    num_first_steps: int,
) -> float:
    """Return the size of a later step relative to the mean of the first ones, at equal gradients.

    It is 1 for Adam and AdamW, whose means are corrected for their start at 0. The steps of a
    momentum add up (SGD: 10 / 2.3 after four steps), those of RMSprop are too large as long as its
    mean of squares has not been reached, and those of Adagrad shrink.

    Args:
        gradient: Gradients of some weights, shape (W,), not all zero.
        create_optimizer: Function that builds the optimizer from parameter groups.
        num_first_steps: Number of first steps, 1 or more.
    """
    weights = torch.zeros_like(gradient, dtype=torch.float64, requires_grad=True)
    optimizer = create_optimizer([{"params": [weights], "lr": 1.0, "weight_decay": 0.0}])
    weights.grad = gradient.double()
    first, before = 0.0, weights.detach().clone()
    for step in range(1, max(_NUM_STEPS, num_first_steps) + 1):
        before = weights.detach().clone()
        optimizer.step()
        if step == num_first_steps:
            first = float(weights.detach().norm()) / step
    return float((weights.detach() - before).norm()) / first

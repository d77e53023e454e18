"""Learning-rate compute_factors against hand formulas and torch's own schedulers."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from finetune.lookup import has_parameter
from finetune.training.schedules.learning_rate import (
    LR_SCHEDULES,
    compute_lr_factor,
    constant,
    cosine,
    linear,
)

STEPS = 40


def record_learning_rates(
    make: Callable[[torch.optim.Optimizer], LRScheduler], *, steps: int
) -> list[float]:
    """Return the learning rates that a scheduler of torch sets, starting at 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [float(rate) for rate in rates]


def compute_factors(schedule: Callable[[float], float], **params: Any) -> list[float]:
    settings: dict[str, Any] = {"num_steps": STEPS, "warmup_steps": 0, **params}
    return [compute_lr_factor(step, schedule=schedule, **settings) for step in range(STEPS)]


@pytest.mark.parametrize("final", [0.0, 0.01, 0.5])
def test_cosine_equals_torch_scheduler(final: float) -> None:
    expected = record_learning_rates(
        partial(CosineAnnealingLR, T_max=STEPS, eta_min=final), steps=STEPS
    )
    assert compute_factors(partial(cosine, final_factor=final)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("final", [0.0, 0.01, 0.5])
def test_linear_equals_torch_scheduler(final: float) -> None:
    make = partial(LinearLR, start_factor=1.0, end_factor=final, total_iters=STEPS)
    assert compute_factors(partial(linear, final_factor=final)) == pytest.approx(
        record_learning_rates(make, steps=STEPS), abs=1e-9
    )


def test_schedules_equal_values_by_hand() -> None:
    assert [cosine(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert cosine(1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert cosine(0.5, final_factor=0.2) == pytest.approx(0.6)
    assert [linear(p, final_factor=0.2) for p in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert [constant(p) for p in (0, 0.5, 1)] == [1, 1, 1]


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_lr_schedules_start_at_one_and_never_rise(name: str) -> None:
    end = {"final_factor": 0.1} if has_parameter(LR_SCHEDULES[name], "final_factor") else {}
    schedule = partial(LR_SCHEDULES[name], **end)
    values = [schedule(step / 100) for step in range(101)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1 if name == "constant" else 0.1)


def test_warmup_equals_torch_linear_warmup() -> None:
    make = partial(LinearLR, start_factor=1 / 8, total_iters=7)
    expected = record_learning_rates(make, steps=STEPS)
    assert compute_factors(constant, warmup_steps=8) == pytest.approx(expected, abs=1e-9)


def test_warmup_repeats_at_each_phase_while_schedule_continues() -> None:
    lr_factors = compute_factors(linear, warmup_steps=4, phase_starts=[0, 10, 25])
    for start, end in ((0, 10), (10, 25), (25, STEPS)):
        for step in range(start, end):
            warmup = min(1.0, (step - start + 1) / 4)
            assert lr_factors[step] == pytest.approx(warmup * (1 - step / STEPS)), step


def test_warmup_longer_than_phase_restarts_at_next_phase() -> None:
    lr_factors = compute_factors(constant, warmup_steps=10, phase_starts=[0, 3])
    assert lr_factors[:5] == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.2])


def test_lr_factor_after_last_step_keeps_final_value() -> None:
    factor = compute_lr_factor(
        STEPS + 5, schedule=partial(cosine, final_factor=0.1), num_steps=STEPS, warmup_steps=0
    )
    assert factor == pytest.approx(0.1)

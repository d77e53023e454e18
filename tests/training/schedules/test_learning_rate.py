"""Learning-rate factors against hand formulas and torch's own schedulers."""

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


def rates_of(make: Callable[[torch.optim.Optimizer], LRScheduler], *, steps: int) -> list[float]:
    """Return the learning rates that one of torch's schedulers sets, from a rate of 1 on."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [float(rate) for rate in rates]


def factors(shape: Callable[[float], float], **params: Any) -> list[float]:
    settings: dict[str, Any] = {"num_steps": STEPS, "warmup_steps": 0, **params}
    return [compute_lr_factor(step, schedule=shape, **settings) for step in range(STEPS)]


@pytest.mark.parametrize("final", [0.0, 0.01, 0.5])
def test_cosine_is_torchs(final: float) -> None:
    expected = rates_of(partial(CosineAnnealingLR, T_max=STEPS, eta_min=final), steps=STEPS)
    assert factors(partial(cosine, final_factor=final)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("final", [0.0, 0.01, 0.5])
def test_linear_is_torchs(final: float) -> None:
    make = partial(LinearLR, start_factor=1.0, end_factor=final, total_iters=STEPS)
    assert factors(partial(linear, final_factor=final)) == pytest.approx(
        rates_of(make, steps=STEPS), abs=1e-9
    )


def test_the_shapes_by_hand() -> None:
    assert [cosine(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert cosine(1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert cosine(0.5, final_factor=0.2) == pytest.approx(0.6)
    assert [linear(p, final_factor=0.2) for p in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert [constant(p) for p in (0, 0.5, 1)] == [1, 1, 1]


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_row_starts_at_the_peak_and_stays_in_its_range(name: str) -> None:
    end = {"final_factor": 0.1} if has_parameter(LR_SCHEDULES[name], "final_factor") else {}
    shape = partial(LR_SCHEDULES[name], **end)
    values = [shape(step / 100) for step in range(101)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1 if name == "constant" else 0.1)


def test_the_rise_is_torchs_linear_one() -> None:
    make = partial(LinearLR, start_factor=1 / 8, total_iters=7)
    expected = rates_of(make, steps=STEPS)
    assert factors(constant, warmup_steps=8) == pytest.approx(expected, abs=1e-9)


def test_the_rise_comes_again_at_each_phase_and_the_shape_goes_on() -> None:
    found = factors(linear, warmup_steps=4, phase_starts=[0, 10, 25])
    for start, end in ((0, 10), (10, 25), (25, STEPS)):
        for step in range(start, end):
            rise = min(1.0, (step - start + 1) / 4)
            assert found[step] == pytest.approx(rise * (1 - step / STEPS)), step


def test_phases_shorter_than_the_rise_begin_anew() -> None:
    found = factors(constant, warmup_steps=10, phase_starts=[0, 3])
    assert found[:5] == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.2])


def test_after_the_end_the_last_value_holds() -> None:
    after = compute_lr_factor(
        STEPS + 5, schedule=partial(cosine, final_factor=0.1), num_steps=STEPS, warmup_steps=0
    )
    assert after == pytest.approx(0.1)

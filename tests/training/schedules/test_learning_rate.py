"""Learning-rate factors against hand formulas and torch's own schedulers."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

from finetune.lookup import has_parameter
from finetune.training.schedules.learning_rate import (
    LR_SCHEDULES,
    compute_lr_factor,
    constant,
    cosine,
    exponential,
    inverse_time,
    linear,
    one_cycle,
    one_cycle_momentum,
    step,
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
    given = {"final_factor": 0.1, "num_epochs": 9, "num_steps": 100}
    params = {k: v for k, v in given.items() if has_parameter(LR_SCHEDULES[name], k)}
    values = [LR_SCHEDULES[name](step / 100, **params) for step in range(101)]
    assert max(values) == pytest.approx(1)
    fall = values[29:] if name == "one_cycle" else values
    assert fall[0] == pytest.approx(1)
    assert fall == sorted(fall, reverse=True)
    ends = {"constant": 1, "plateau": 1, "step": 1e-3, "inverse_time": 0.1, "one_cycle": 4e-6}
    assert values[-1] == pytest.approx(ends.get(name, 0.1))


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "every", "gamma"), [(8, 5, 3, 0.1), (30, 7, 1, 0.9), (6, 9, 2, 1)]
)
def test_step_equals_torch_scheduler_stepped_once_an_epoch(
    epochs: int, steps_per_epoch: int, every: int, gamma: float
) -> None:
    rates = record_learning_rates(partial(StepLR, step_size=every, gamma=gamma), steps=epochs)
    expected = [rate for rate in rates for _ in range(steps_per_epoch)]
    num_steps = epochs * steps_per_epoch
    schedule = partial(step, num_epochs=epochs, every=every, gamma=gamma)
    factors = [
        compute_lr_factor(number, schedule=schedule, num_steps=num_steps, warmup_steps=0)
        for number in range(num_steps)
    ]
    assert factors == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (2, 1), (6, 2), (25, 8), (90, 30)])
def test_step_reduces_each_third_of_the_run_by_default(epochs: int, every: int) -> None:
    for epoch in range(epochs):
        assert step(epoch / epochs, num_epochs=epochs) == pytest.approx(0.1 ** (epoch // every))


def test_exponential_equals_torch_scheduler_at_each_epoch_and_falls_between() -> None:
    epochs, steps_per_epoch, gamma = 8, 5, 0.7
    by_epoch = record_learning_rates(partial(ExponentialLR, gamma=gamma), steps=epochs)
    by_step = record_learning_rates(
        partial(ExponentialLR, gamma=gamma ** (1 / steps_per_epoch)), steps=STEPS
    )
    factors = compute_factors(partial(exponential, num_epochs=epochs, gamma=gamma))
    assert factors[::steps_per_epoch] == pytest.approx(by_epoch)
    assert factors == pytest.approx(by_step)


def test_exponential_without_gamma_ends_at_the_final_factor() -> None:
    assert exponential(0.5, num_epochs=7, final_factor=0.01) == pytest.approx(0.1)
    assert exponential(1.0, num_epochs=7, final_factor=0.01) == pytest.approx(0.01)


def test_inverse_time_equals_a_lambda_scheduler_of_torch() -> None:
    make = partial(LambdaLR, lr_lambda=lambda number: 1 / (1 + 2.5 * number / 5))
    expected = record_learning_rates(make, steps=STEPS)
    factors = compute_factors(partial(inverse_time, num_epochs=8, decay=2.5))
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"pct_start": 0.2, "anneal_strategy": "linear"},
        {"pct_start": 0.55, "div_factor": 5.0, "final_div_factor": 30.0},
        {"base_momentum": 0.7, "max_momentum": 0.9},
    ],
)
@pytest.mark.parametrize("num_steps", [11, 40, 101])
def test_one_cycle_equals_torch_scheduler_in_rate_and_momentum(
    params: dict[str, Any], num_steps: int
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=num_steps, **params)
    own = {k: v for k, v in params.items() if has_parameter(one_cycle_momentum, k)}
    for number in range(num_steps):
        progress = number / num_steps
        group = optimizer.param_groups[0]
        rate = one_cycle(progress, num_steps=num_steps, **params)
        assert rate == pytest.approx(float(group["lr"]), abs=1e-9), number
        momentum = one_cycle_momentum(progress, num_steps=num_steps, **own)
        assert momentum == pytest.approx(float(group["momentum"]), abs=1e-9), number
        optimizer.step()
        if number + 1 < num_steps:
            scheduler.step()


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_one_cycle_of_very_few_steps_is_finite(num_steps: int) -> None:
    for number in range(num_steps + 1):
        assert 0 < one_cycle(number / num_steps, num_steps=num_steps) <= 1


def test_warmup_equals_torch_linear_warmup() -> None:
    make = partial(LinearLR, start_factor=1 / 8, total_iters=7)
    expected = record_learning_rates(make, steps=STEPS)
    assert compute_factors(constant, warmup_steps=8) == pytest.approx(expected, abs=1e-9)


def test_warmup_repeats_at_each_phase_while_schedule_continues() -> None:
    lr_factors = compute_factors(linear, warmup_steps=4, phase_starts=[0, 12, 26])
    for start, end in ((0, 12), (12, 26), (26, STEPS)):
        for number in range(start, end):
            warmup = min(1.0, (number - start + 1) / 4)
            assert lr_factors[number] == pytest.approx(warmup * (1 - number / STEPS)), number


def test_warmup_takes_at_most_its_fraction_of_a_short_phase() -> None:
    lr_factors = compute_factors(constant, warmup_steps=10, phase_starts=[0, 10])
    assert lr_factors[:10] == pytest.approx([1 / 3, 2 / 3] + 8 * [1.0])
    assert lr_factors[10:] == pytest.approx([k / 9 for k in range(1, 10)] + 21 * [1.0])


@pytest.mark.parametrize("phase_starts", [[0], [0, 7, 14, 21], [0, 1, 39]])
def test_every_phase_reaches_the_rate_of_the_schedule(phase_starts: list[int]) -> None:
    lr_factors = compute_factors(constant, warmup_steps=12, phase_starts=phase_starts)
    for start, end in pairwise([*phase_starts, STEPS]):
        assert max(lr_factors[start:end]) == 1


@pytest.mark.parametrize("warmup_steps", [1, 7, 12, 29, 40])
def test_warmup_of_one_phase_has_all_its_steps(warmup_steps: int) -> None:
    lr_factors = compute_factors(constant, warmup_steps=warmup_steps)
    assert lr_factors == pytest.approx([min(1, (k + 1) / warmup_steps) for k in range(STEPS)])


def test_lr_factor_after_last_step_keeps_final_value() -> None:
    factor = compute_lr_factor(
        STEPS + 5, schedule=partial(cosine, final_factor=0.1), num_steps=STEPS, warmup_steps=0
    )
    assert factor == pytest.approx(0.1)

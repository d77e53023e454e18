"""State of the scheduler: its warm-up, and the rates of a run that is resumed with more steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from finetune.training.schedules.factor_scheduler import FactorScheduler, LrFactor
from finetune.training.schedules.learning_rate import (
    constant,
    cosine,
    linear,
    one_cycle,
    one_cycle_momentum,
)
from finetune.training.schedules.plateau import PlateauFactor, PlateauSettings

PEAKS = (0.3, 0.07)


def build_optimizer(name: str = "sgd") -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": peak} for peak in PEAKS]
    return torch.optim.AdamW(groups) if name == "adamw" else torch.optim.SGD(groups, momentum=0.9)


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: Callable[..., float],
    num_steps: int,
    *,
    warmup_steps: int = 0,
    **more: Any,
) -> FactorScheduler:
    cycle = {"num_steps": num_steps} if schedule is one_cycle else {}
    factor = LrFactor(partial(schedule, **cycle), num_steps, warmup_steps)
    return FactorScheduler(optimizer, factor, **more)


def advance(scheduler: FactorScheduler, num_steps: int) -> None:
    for _ in range(num_steps):
        scheduler.optimizer.step()
        scheduler.step()


def read_groups(optimizer: torch.optim.Optimizer) -> list[tuple[Any, ...]]:
    """Return the rate and the momentum of each group."""
    groups = optimizer.param_groups
    return [(group["lr"], group.get("momentum"), group.get("betas")) for group in groups]


def save(scheduler: FactorScheduler) -> tuple[dict[str, Any], dict[str, Any]]:
    return scheduler.optimizer.state_dict(), scheduler.state_dict()


def load(scheduler: FactorScheduler, states: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Restore the states in the order of Lightning."""
    scheduler.optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])


@pytest.mark.parametrize("schedule", [cosine, linear, one_cycle])
@pytest.mark.parametrize("done", [1, 7, 12])
def test_first_step_after_a_resume_has_the_rate_of_the_longer_schedule(
    schedule: Callable[..., float], done: int
) -> None:
    short, long, resumed = (build_optimizer() for _ in range(3))
    first = build_scheduler(short, schedule, 12)
    advance(first, done)
    whole = build_scheduler(long, schedule, 40)
    advance(whole, done)
    again = build_scheduler(resumed, schedule, 40)
    load(again, save(first))
    assert read_groups(resumed) == read_groups(long) != read_groups(short)
    assert again.get_last_lr() == whole.get_last_lr()
    advance(whole, 1)
    advance(again, 1)
    assert read_groups(resumed) == read_groups(long)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_first_step_after_a_resume_has_the_momentum_of_the_longer_cycle(name: str) -> None:
    def build(num_steps: int) -> FactorScheduler:
        momentum = lambda step: one_cycle_momentum(step / num_steps, num_steps=num_steps)  # noqa: E731
        return build_scheduler(
            build_optimizer(name), one_cycle, num_steps, momentum_lambda=momentum
        )

    first, whole, again = build(10), build(40), build(40)
    for scheduler in (first, whole):
        advance(scheduler, 5)
    load(again, save(first))
    assert read_groups(again.optimizer) == read_groups(whole.optimizer)
    assert read_groups(again.optimizer) != read_groups(first.optimizer)


@pytest.mark.parametrize("schedule", [constant, cosine, linear, one_cycle])
@pytest.mark.parametrize("has_plateau", [False, True])
def test_same_schedule_keeps_the_bits_of_rates_and_state(
    schedule: Callable[..., float], has_plateau: bool
) -> None:
    def build() -> FactorScheduler:
        settings = PlateauSettings("val/loss", factor=0.3, patience=0)
        plateau = PlateauFactor(settings) if has_plateau else None
        return build_scheduler(build_optimizer(), schedule, 30, warmup_steps=7, plateau=plateau)

    first = build()
    for step in range(29):
        advance(first, 1)
        if has_plateau and step % 5 == 4:
            first.update_plateau(1.0 + step)
        again = build()
        load(again, save(first))
        assert read_groups(again.optimizer) == read_groups(first.optimizer)
        assert again.state_dict() == first.state_dict()


def test_warm_up_keeps_its_number_of_steps_in_longer_and_shorter_runs() -> None:
    scheduler = build_scheduler(build_optimizer(), constant, 10, warmup_steps=5)
    for num_steps, warmup_steps in ((30, 15), (7, 4), (1000, 500)):
        advance(scheduler, 2)
        states = save(scheduler)
        scheduler = build_scheduler(
            build_optimizer(), constant, num_steps, warmup_steps=warmup_steps
        )
        load(scheduler, states)
        assert scheduler.state_dict()["warmup_steps"] == 5
        factor = min(1.0, (scheduler.last_epoch + 1) / 5)
        assert scheduler.get_last_lr() == pytest.approx([peak * factor for peak in PEAKS])


def test_state_of_an_older_release_has_the_warm_up_of_the_present_run() -> None:
    first = build_scheduler(build_optimizer(), constant, 10, warmup_steps=5)
    advance(first, 4)
    optimizer_state, state = save(first)
    del state["warmup_steps"]
    state["lr_lambdas"] = [{}, {}]
    again = build_scheduler(build_optimizer(), constant, 20, warmup_steps=10)
    load(again, (optimizer_state, state))
    assert again.get_last_lr() == pytest.approx([peak / 2 for peak in PEAKS])


def test_state_can_be_read_without_pickled_code(tmp_path: Any) -> None:
    scheduler = build_scheduler(build_optimizer(), cosine, 10, warmup_steps=3)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == scheduler.state_dict()

"""Remarks on schedules without effect, on learning rates that vanish early, and on few steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.builders.run import Training
from finetune.builders.schedules import build_lr_lambda
from finetune.config.load import replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.sections.optim import LR_SCHEDULE_NAMES
from finetune.training.schedules.plateau import PlateauSettings
from finetune.units import format_count

_VANISHING_FACTOR = 1e-3
"""Fraction of the peak learning rate below which the steps of most optimizers change little."""

_EARLY_FRACTION = 0.25
"""Fraction of the run after which rates that stay so small are remarked on."""

_POINTS_PER_EPOCH = 8

_SETTLING_STEPS = 36
"""Optimizer steps below which fine-tuning gained little over its probe; with 6, nothing.

The first steps spoil what the probe knows, the later ones recover it; docs/design/fine-tuning.md
has the measurements.
"""


def describe_schedule_effect(training: Training) -> str | None:
    """Return a sentence on a schedule that never changes the learning rate, or ends it early.

    Args:
        training: Objects of the run.

    Returns:
        None for a schedule that does what its name says, for one of the user's own, and for a run
        without optimizer steps.
    """
    config = training.config
    num_epochs = _get_num_epochs(training)
    name = config.lr_schedule.name
    if not num_epochs or name == "constant" or name not in LR_SCHEDULE_NAMES:
        return None
    if name == "plateau":
        return _describe_plateau(config.lr_schedule.params, num_epochs)
    factors = _compute_factors(config, num_epochs)
    if max(factors) == min(factors):
        return _describe_constant(name, config.lr_schedule.params, num_epochs)
    return _describe_vanishing(name, factors, num_epochs)


def describe_late_unfreezing(training: Training) -> str | None:
    """Return a sentence on an unfreeze schedule whose run ends before the backbone trains."""
    unfreeze = training.config.unfreeze
    num_epochs = training.config.trainer.epochs
    if training.is_probe_only or not unfreeze.params or num_epochs == 1:
        return None
    if any(phase.depth > 1 for phase in training.phases):
        return None
    return (
        f"unfreeze.name={unfreeze.name} unfreezes no layer of the backbone in these "
        f"{format_count(num_epochs, 'epoch')}: only the head trains. Unfreeze earlier with "
        f"unfreeze.params, or increase trainer.epochs."
    )


def describe_few_steps(training: Training) -> str | None:
    """Return a sentence on epochs of the user that are too few to gain over the linear probe.

    Args:
        training: Objects of the run.

    Returns:
        None for a run with enough steps, whose epochs were chosen, without fine-tuning after a
        probe, or with a learning rate of the user's own, for which this was not measured.
    """
    config = training.config
    num_steps = config.trainer.epochs * training.steps_per_epoch
    if training.is_probe_only or training.probe is None or config.optim.lr != "auto":
        return None
    if num_steps >= _SETTLING_STEPS or "trainer.epochs" in training.reasons:
        return None
    enough = math.ceil(_SETTLING_STEPS / training.steps_per_epoch)
    return (
        f"Fine-tuning of {format_count(num_steps, 'step')} "
        f"({format_count(config.trainer.epochs, 'epoch')}) gains little over its linear probe: in "
        f"measured runs of 6, 12 and 18 steps the test accuracy changed by -0.3, +0.8 and +1.0 "
        f"points on average, in those of {_SETTLING_STEPS} steps by +2.7. trainer.epochs={enough} "
        f"makes as many; without trainer.epochs their number suits the images."
    )


def _get_num_epochs(training: Training) -> int:
    """Return the epochs with optimizer steps: those on cached activations if no others follow."""
    if not training.is_probe_only:
        return training.config.trainer.epochs
    last_stage = None if training.probe is None else training.probe.last_stage
    return 0 if last_stage is None else last_stage.settings.num_epochs


def _compute_factors(config: ResolvedConfig, num_epochs: int) -> Sequence[float]:
    """Return the factors of the schedule without its warm-up, at even distances."""
    num_points = num_epochs * _POINTS_PER_EPOCH
    without_warmup = replace_values(config, {"lr_schedule.warmup_fraction": 0.0})
    compute: Callable[[int], float] = build_lr_lambda(
        without_warmup.lr_schedule, num_steps=num_points, num_epochs=num_epochs
    )
    return [compute(point) for point in range(num_points)]


def _describe_plateau(params: Mapping[str, Any], num_epochs: int) -> str | None:
    settings = PlateauSettings("", **params)
    if settings.min_factor == 1:
        return (
            "lr_schedule.name=plateau never lowers the learning rates: min_factor is 1. Lower it "
            "in lr_schedule.params, or set lr_schedule.name=constant."
        )
    # the first epoch cannot be worse than one before it
    first_lowered = settings.patience + 3
    if first_lowered <= num_epochs:
        return None
    return (
        f"lr_schedule.name=plateau cannot lower the learning rates: with patience "
        f"{settings.patience}, epoch {first_lowered} is the first that could have lower ones, and "
        f"there {_count_epochs(num_epochs)}. Lower patience in lr_schedule.params, train longer, "
        f"or set lr_schedule.name=constant."
    )


def _describe_constant(name: str, params: Mapping[str, Any], num_epochs: int) -> str:
    prefix = f"lr_schedule.name={name} never changes the learning rates: "
    constant = "set lr_schedule.name=constant."
    if name == "step" and params.get("gamma") != 1:
        every = params.get("every") or 1  # a third of a run is too long only for one epoch
        return (
            f"{prefix}the first reduction would follow epoch {every:g}, and there "
            f"{_count_epochs(num_epochs)}. Lower every in lr_schedule.params, train longer, or "
            f"{constant}"
        )
    values = ", ".join(f"{key}={value}" for key, value in params.items())
    reason = values or "lr_schedule.final_factor is 1"
    return f"{prefix}{reason}. Change that, or {constant}"


def _describe_vanishing(name: str, factors: Sequence[float], num_epochs: int) -> str | None:
    is_small = [factor < _VANISHING_FACTOR for factor in factors]
    first = max((i + 1 for i, small in enumerate(is_small) if not small), default=0)
    if first > _EARLY_FRACTION * len(factors):
        return None
    return (
        f"lr_schedule.name={name} keeps the learning rates below {_VANISHING_FACTOR:g} of their "
        f"peak from epoch {first // _POINTS_PER_EPOCH + 1} of {num_epochs} on, so that later "
        f"epochs change little. Choose a slower decay in lr_schedule.params, or fewer epochs."
    )


def _count_epochs(num_epochs: int) -> str:
    return f"{'is' if num_epochs == 1 else 'are'} {format_count(num_epochs, 'epoch')}"

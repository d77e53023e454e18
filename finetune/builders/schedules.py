"""Training recipe of a run: unfreezing, learning rates, optimizer, averaging, trainer options."""

from collections.abc import Callable, Sequence
from functools import partial

from finetune.builders.model_prior import ClassBalance
from finetune.builders.optimization.component_params import (
    check_settable,
    check_types,
    describe_failure,
    explain_invalid,
    names_parameter,
)
from finetune.builders.optimization.optimizer_factory import (
    build_optimizer_factory,
    build_penalty,
    check_max_norm,
    uses_fused_optimizer,
)
from finetune.builders.resolve import RunSpec
from finetune.config.optimizer_defaults import HEAD_LR, UNMEASURED_BACKBONE_LR_SCALE
from finetune.config.resolved import (
    ResolvedConfig,
    ResolvedLrScheduleConfig,
    ResolvedOptimConfig,
)
from finetune.config.sections.learning import UnfreezeConfig
from finetune.config.sections.optim import LrScheduleConfig
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, has_parameter, look_up
from finetune.models.layer_groups import LayerGroup
from finetune.training.learning_recipe import Recipe
from finetune.training.mixup import Mixup
from finetune.training.optimization.param_groups import compute_learning_rates
from finetune.training.schedules.factor_scheduler import LrFactor
from finetune.training.schedules.learning_rate import LR_SCHEDULES, one_cycle_momentum
from finetune.training.schedules.plateau import PlateauSettings
from finetune.training.schedules.unfreeze import UNFREEZE_SCHEDULES, resolve_depth
from finetune.training.trainer import TrainerOptions
from finetune.units import format_value


def build_recipe(
    run: RunSpec,
    balance: ClassBalance,
    depth_schedule: Callable[[int], int],
    peak_learning_rates: list[float],
    groups: Sequence[LayerGroup],
) -> Recipe:
    """Return the schedules and the optimizer of a run.

    Args:
        run: Resolved run.
        balance: Treatment of imbalanced classes.
        depth_schedule: Unfreeze depth as a function of the epoch.
        peak_learning_rates: Peak learning rate of each layer group, from the head.
        groups: Layer groups of the network, from the head.

    Raises:
        ConfigError: The learning rate schedule does not exist, or it, the optimizer or the
            max-norm constraint does not take its parameters.
    """
    config = run.config
    optim, lr_schedule = config.optim, config.lr_schedule
    check_max_norm(optim, groups)
    lr_lambda = build_lr_lambda(
        lr_schedule,
        num_steps=run.num_steps,
        num_epochs=config.trainer.epochs,
        phase_starts=[phase.first_epoch * run.steps_per_epoch for phase in run.phases],
    )
    return Recipe(
        criterion_schedule=balance.criterion_schedule,
        depth_schedule=depth_schedule,
        make_optimizer=build_optimizer_factory(
            optim,
            peak_learning_rates=peak_learning_rates,
            is_fused=uses_fused_optimizer(config.trainer.precision),
        ),
        lr_lambda=lr_lambda,
        seed=config.seed,
        mixup=Mixup(mixup_alpha=config.augment.mixup, cutmix_alpha=config.augment.cutmix),
        averaging_start_step=compute_averaging_start_step(optim.swa_fraction, run.num_steps),
        model_prior_schedule=balance.prior_schedule,
        plateau=build_plateau_settings(lr_schedule, monitor=f"val/{config.checkpoint.monitor}"),
        momentum_lambda=build_momentum_lambda(optim, lr_schedule, num_steps=run.num_steps),
        penalty=build_penalty(optim),
    )


def build_trainer_options(config: ResolvedConfig) -> TrainerOptions:
    """Return the options of the trainer."""
    trainer = config.trainer
    return TrainerOptions(
        max_epochs=trainer.epochs,
        monitor=f"val/{config.checkpoint.monitor}",
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        precision=trainer.precision,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip=trainer.gradient_clip_val,
        deterministic=trainer.deterministic,
        patience=trainer.early_stopping_patience,
        strategy=trainer.strategy,
        live_buffers=config.model.batch_norm != "frozen",
        collective_timeout_seconds=trainer.collective_timeout_seconds,
        checkpoint_interval_minutes=config.checkpoint.every_minutes,
    )


def build_depth_schedule(unfreeze: UnfreezeConfig, num_groups: int) -> Callable[[int], int]:
    """Return the unfreeze depth as a function of the epoch.

    Args:
        unfreeze: Section of the config, with a schedule.
        num_groups: Layer groups of the network, the head included.

    Raises:
        ConfigError: The schedule does not exist, does not take its parameters, fails, or returns no
            depth. The last two are raised by the returned function.
    """
    name, params = unfreeze.name, unfreeze.params
    schedule = look_up(UNFREEZE_SCHEDULES, name, setting="unfreeze.name")
    check_params(schedule, params, num_positional=2, setting="unfreeze.params")
    if name in UNFREEZE_SCHEDULES:
        check_types(schedule, params, setting="unfreeze.params")

    def compute_depth(epoch: int) -> int:
        try:
            depth = schedule(epoch, num_groups, **params)
            if isinstance(depth, float):
                depth = resolve_depth(depth, num_groups)
        except FinetuneError:
            raise
        except Exception as error:
            reason = describe_failure(error, params, is_custom=":" in name)
            raise ConfigError(
                f"unfreeze.name={name} with unfreeze.params={format_value(params)} fails in "
                f"epoch {epoch} (counted from 0): {reason}."
            ) from error
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= num_groups:
            raise ConfigError(
                f"unfreeze.name={name} returns depth {depth!r} for epoch {epoch} "
                f"(counted from 0); expected a whole number of layer groups from 1 to "
                f"{num_groups}, or a fraction of them."
            )
        return depth

    return compute_depth


def build_lr_lambda(
    lr_schedule: ResolvedLrScheduleConfig,
    *,
    num_steps: int,
    num_epochs: int,
    phase_starts: Sequence[int] = (0,),
) -> LrFactor:
    """Return the factor of the peak learning rates as a function of the step.

    Args:
        lr_schedule: Section of the config.
        num_steps: Optimizer steps of the whole training.
        num_epochs: Epochs of the whole training.
        phase_starts: Steps at which layers are unfrozen, ascending, starting with 0; the warm-up is
            repeated at each.

    Raises:
        ConfigError: The schedule does not exist or does not take its parameters.
    """
    name = lr_schedule.name
    schedule = look_up(LR_SCHEDULES, name, setting="lr_schedule.name")
    derived: dict[str, float] = {"num_epochs": num_epochs, "num_steps": num_steps}
    sources = {**dict.fromkeys(derived, "the run"), "final_factor": "lr_schedule.final_factor"}
    check_settable(
        schedule,
        lr_schedule.params,
        sources=sources,
        num_positional=1,
        setting="lr_schedule.params",
    )
    derived = {key: value for key, value in derived.items() if names_parameter(schedule, key)}
    is_changed = lr_schedule.final_factor != LrScheduleConfig().final_factor
    if is_changed or has_parameter(schedule, "final_factor"):
        derived["final_factor"] = lr_schedule.final_factor
    setting = "lr_schedule.params" if lr_schedule.params else f"lr_schedule.name={name}"
    params = {**lr_schedule.params, **derived}
    check_params(schedule, params, num_positional=1, setting=setting)
    if name in LR_SCHEDULES:
        check_types(schedule, lr_schedule.params, setting="lr_schedule.params")
        with explain_invalid("lr_schedule", name, lr_schedule.params):
            schedule(0.0, **params)
    return LrFactor(
        schedule=partial(schedule, **params),
        num_steps=num_steps,
        warmup_steps=round(lr_schedule.warmup_fraction * num_steps),
        phase_starts=phase_starts,
    )


def build_plateau_settings(
    lr_schedule: ResolvedLrScheduleConfig, *, monitor: str
) -> PlateauSettings | None:
    """Return the settings of ``lr_schedule.name=plateau``; None for another schedule.

    Args:
        lr_schedule: Section of the config, whose parameters are known to exist.
        monitor: Validation metric.

    Raises:
        ConfigError: A parameter is out of range.
    """
    if lr_schedule.name != "plateau":
        return None
    with explain_invalid("lr_schedule", lr_schedule.name, lr_schedule.params):
        return PlateauSettings(monitor, **lr_schedule.params)


def build_momentum_lambda(
    optim: ResolvedOptimConfig, lr_schedule: ResolvedLrScheduleConfig, *, num_steps: int
) -> Callable[[int], float] | None:
    """Return the momentum as a function of the step; None where it stays as it is.

    Args:
        optim: Section of the config.
        lr_schedule: Section of the config, whose parameters are known to exist.
        num_steps: Optimizer steps of the run.

    Raises:
        ConfigError: A parameter is out of range.
    """
    if lr_schedule.name != "one_cycle":
        return None
    params = {k: v for k, v in lr_schedule.params.items() if names_parameter(one_cycle_momentum, k)}
    with explain_invalid("lr_schedule", lr_schedule.name, lr_schedule.params):
        one_cycle_momentum(0.0, num_steps=num_steps, **params)
    has_momentum = optim.name in ("adam", "adamw") or optim.momentum > 0
    if not (lr_schedule.cycles_momentum and has_momentum):
        return None
    return lambda step: one_cycle_momentum(
        min(1.0, step / max(1, num_steps)), num_steps=num_steps, **params
    )


def build_learning_rates(
    optim: ResolvedOptimConfig, num_groups: int, *, lr: float | None = None
) -> list[float]:
    """Return the peak learning rate of each layer group, from the head.

    Args:
        optim: Section of the config.
        num_groups: Layer groups of the network, the head included.
        lr: Learning rate of the head in place of the config's. Until that is measured, rates that
            are safe for most backbones take its place.
    """
    backbone_scale = optim.backbone_lr_scale
    if lr is None:
        lr = optim.lr if optim.lr != "auto" else HEAD_LR[optim.name]
        if optim.lr == "auto":
            backbone_scale = UNMEASURED_BACKBONE_LR_SCALE[optim.name]
    return compute_learning_rates(
        num_groups, lr=lr, backbone_scale=backbone_scale, layer_decay=optim.layer_decay
    )


def compute_averaging_start_step(swa_fraction: float, num_steps: int) -> int | None:
    """Return the number of steps before weights are averaged; None without averaging."""
    return num_steps - round(swa_fraction * num_steps) if swa_fraction else None

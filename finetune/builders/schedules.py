"""How a classifier is trained, as functions made of names and numbers in the config."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from finetune.builders.criterion import build_criterion_schedule
from finetune.builders.model_prior import build_model_prior_schedule, compute_run_logit_shift
from finetune.builders.resolve import require_float, require_int
from finetune.config.learning import LrScheduleConfig
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.samplers.sampling_weights import SamplingSchedule
from finetune.errors import ConfigError, FinetuneError
from finetune.lookup import check_params, has_parameter, look_up
from finetune.models.classifier import ImageClassifier
from finetune.training.mixup import Mixup
from finetune.training.module import Recipe
from finetune.training.param_groups import build_param_groups, create_optimizer
from finetune.training.schedules.learning_rate import LR_SCHEDULES, compute_lr_factor
from finetune.training.schedules.unfreeze import UNFREEZE_SCHEDULES, compute_phases, resolve_depth
from finetune.types import Phase, Split


def build_recipe(
    config: Config,
    manifest: Manifest,
    *,
    sampling: SamplingSchedule,
    num_groups: int,
    peak_learning_rates: list[float],
    steps_per_epoch: int,
) -> tuple[Recipe, tuple[Phase, ...]]:
    """Return the recipe of a resolved config and the phases that its schedule comes to.

    Args:
        config: Resolved.
        manifest: The images.
        sampling: Of training images, by the epoch.
        num_groups: Layer groups of the network, the head included.
        peak_learning_rates: Peak learning rate of each layer group, from the head.
        steps_per_epoch: Optimizer steps.

    Raises:
        ConfigError: A name or parameter that does not exist or does not fit.
    """
    depth_at = _build_depth_schedule(config, num_groups)
    schedule = compute_phases(depth_at, num_epochs=require_int(config.trainer.epochs))
    recipe = Recipe(
        criterion_schedule=build_criterion_schedule(config, manifest.count_per_class(Split.TRAIN)),
        depth_schedule=depth_at,
        make_optimizer=partial(
            _build_optimizer, config=config, peak_learning_rates=peak_learning_rates
        ),
        lr_lambda=build_lr_lambda(
            config,
            num_steps=require_int(config.trainer.epochs) * steps_per_epoch,
            phase_starts=[phase.first_epoch * steps_per_epoch for phase in schedule],
        ),
        seed=config.seed,
        mixup=Mixup(mixup_alpha=config.augment.mixup, cutmix_alpha=config.augment.cutmix),
        averaging_start_step=_compute_averaging_start_step(config, steps_per_epoch),
        logit_shift=compute_run_logit_shift(config, manifest, sampling),
        model_prior_schedule=build_model_prior_schedule(config, manifest, sampling),
    )
    return recipe, schedule


def _compute_averaging_start_step(config: Config, steps_per_epoch: int) -> int | None:
    """Return after how many steps of the run its weights are averaged; None: never."""
    share = require_float(config.optim.swa_fraction)
    num_steps = require_int(config.trainer.epochs) * steps_per_epoch
    averaged = round(share * num_steps)
    if share and averaged < 2:
        raise ConfigError(
            f"optim.swa_fraction={share:g} of {num_steps} steps is {averaged}, which has no mean. "
            f"Take {min(1.0, 2 / num_steps):.2g} or more, or 0."
        )
    return num_steps - averaged if share else None


def _build_depth_schedule(config: Config, num_groups: int) -> Callable[[int], int]:
    schedule = look_up(UNFREEZE_SCHEDULES, config.unfreeze.name, setting="unfreeze.name")
    params = config.unfreeze.params
    check_params(schedule, params, num_positional=2, setting="unfreeze.params")

    def depth_at(epoch: int) -> int:
        try:
            depth = schedule(epoch, num_groups, **params)
            if isinstance(depth, float):
                depth = resolve_depth(depth, num_groups)
        except FinetuneError:
            raise
        except Exception as error:
            raise ConfigError(
                f"unfreeze.name={config.unfreeze.name} with unfreeze.params={params} fails in "
                f"epoch {epoch}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= num_groups:
            raise ConfigError(
                f"unfreeze.name={config.unfreeze.name} gives depth {depth!r} for epoch {epoch} "
                f"(counted from 0); it must be a whole number of layer groups from 1 to "
                f"{num_groups}, or a share of them."
            )
        return depth

    return depth_at


def build_lr_lambda(
    config: Config, *, num_steps: int, phase_starts: Sequence[int] = (0,)
) -> Callable[[int], float]:
    """Return what a step's learning rates are, as a factor of their peaks.

    Args:
        config: Resolved.
        num_steps: Of all of the training.
        phase_starts: Steps at which layers thaw, ascending, the first of them 0.

    Raises:
        ConfigError: A name or parameter that does not exist or does not fit.
    """
    shape = look_up(LR_SCHEDULES, config.lr_schedule.name, setting="lr_schedule.name")
    warmup_steps = round(config.lr_schedule.warmup_fraction * num_steps)
    params: dict[str, float] = {}
    asked = config.lr_schedule.final_factor != LrScheduleConfig().final_factor
    if asked or has_parameter(shape, "final_factor"):
        params["final_factor"] = config.lr_schedule.final_factor
    check_params(
        shape, params, num_positional=1, setting=f"lr_schedule.name={config.lr_schedule.name}"
    )
    shaped = partial(shape, **params)

    def factor(step: int) -> float:
        return compute_lr_factor(
            step,
            schedule=shaped,
            num_steps=num_steps,
            warmup_steps=warmup_steps,
            phase_starts=phase_starts,
        )

    return factor


def _build_optimizer(
    classifier: ImageClassifier, *, config: Config, peak_learning_rates: list[float]
) -> torch.optim.Optimizer:
    groups = build_param_groups(
        classifier.network,
        classifier.groups,
        learning_rates=peak_learning_rates,
        weight_decay=config.optim.weight_decay,
    )
    return create_optimizer(
        config.optim.name,
        groups,
        momentum=config.optim.momentum,
        fused=config.trainer.precision != "16-mixed",
    )

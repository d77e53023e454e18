"""Start of fine-tuning: the scale of the probe's head, and a learning rate that is measured."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from finetune.builders import Training, get_micro_batch_size
from finetune.builders.optimization.optimizer_factory import build_creator, build_optimizer_factory
from finetune.builders.schedules import build_learning_rates
from finetune.commands.measurement.measured import apply_measured
from finetune.config.facts import Choice
from finetune.config.optimizer_defaults import HEAD_LR, MOMENTUM, UNMEASURED_BACKBONE_LR_SCALE
from finetune.config.resolved import ResolvedOptimConfig
from finetune.data.dataset import Batch
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import OutOfMemoryError
from finetune.models.head import find_linear_head, set_head
from finetune.probe.linear_probe import ProbeResult
from finetune.system.hardware import release_memory
from finetune.system.run_folder import RunFolder
from finetune.training.optimization.feature_change import TRIAL_LR, measure_feature_change
from finetune.types import Reporter
from finetune.units import format_count, format_scientific

_NUM_STEPS = 4
"""Optimizer steps of the measurement: the direction of a single one is mostly noise."""

_MIN_FACTOR, _MAX_FACTOR = 1e-3, 10.0
"""Least and largest measured rate, as multiples of that of a head without a measurement."""

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1.0, 20.0
"""Range of the head's temperature: without bound, predictions that are all right would be scaled up
until their gradients vanish."""


def scale_head(training: Training, result: ProbeResult) -> float:
    """Divide the fitted head by the temperature that suits the loss of fine-tuning, in place.

    The probe is fitted to the plain log loss with little penalty. For another loss, such as one
    with label smoothing, its logits are too large, so that the first gradients are large, too, and
    change the backbone for no other reason than the scale of the logits.

    Returns:
        The divisor, at least 1. With it, the head has the temperature that minimises the training
        loss of out-of-fold predictions, or a larger one where ``optim.max_norm`` requires it. It is
        1 after a probe that has trained the last stage, too.
    """
    head = find_linear_head(training.module.classifier.network)
    assert head is not None, "a probe has a linear head"
    if result.last_stage_epochs:  # no out-of-fold predictions of a head with this last stage
        return 1.0
    held_out = result.cv_head.held_out_probabilities
    if training.data.is_multi_label:
        logits = held_out.double().logit(eps=1e-7).float()
    else:
        logits = held_out.clamp_min(torch.finfo(torch.float32).tiny).log()
    if training.probe is not None and training.probe.logit_offset is not None:
        logits = logits - training.probe.logit_offset
    labels = torch.from_numpy(training.data.train.targets[result.cv_head.held_out_rows])
    temperature = fit_loss_temperature(
        logits.to(head.weight.device),
        labels.to(head.weight.device),
        training.module.recipe.criterion_schedule(0),
    )
    # of which a max-norm constraint has already taken a part
    if training.probe is not None and training.probe.head_max_norm is not None:
        fitted_norm, norm = (
            float(weight.detach().norm()) for weight in (result.cv_head.head.weight, head.weight)
        )
        temperature = max(1.0, temperature * norm / fitted_norm) if norm > 0 else temperature
    set_head(head, weight=head.weight / temperature, bias=head.bias / temperature)
    return temperature


def fit_loss_temperature(
    logits: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Return the divisor of logits (N, K), in [1, 20], that minimises a loss.

    Args:
        logits: Held-out logits, shape (N, K).
        labels: Class indices, shape (N,), or 1 for each label of multi-label images, (N, K).
        criterion: Function from logits and class indices to the mean loss.
    """

    @torch.no_grad()
    def compute_loss(log_temperature: float) -> float:
        return float(criterion(logits / math.exp(log_temperature), labels))

    bounds = (math.log(_MIN_TEMPERATURE), math.log(_MAX_TEMPERATURE))
    best = minimize_scalar(compute_loss, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return math.exp(best.x)


def settle_learning_rate(
    run: RunFolder,
    training: Training,
    *,
    device: torch.device,
    rendezvous: Rendezvous | None,
    reporter: Reporter,
) -> Training:
    """Return the training with a measured learning rate if the config leaves it open.

    Args:
        run: Run folder.
        training: Objects of the run, with its cache enabled and a fitted head.
        device: Device of this rank.
        rendezvous: Rendezvous of the ranks, all of which call this; None for a single process.
        reporter: Receiver of the message that tells the result.

    Raises:
        DataError: A file can no longer be read as before.
        OutOfMemoryError: A step needs more memory than is available.
        StorageError: The disk is full or fails.
    """
    if training.config.optim.lr != "auto":
        return training
    is_rank_zero = rendezvous is None or rendezvous.launch.rank == 0
    choices = measure_learning_rate(training, device) if is_rank_zero else None
    if choices is not None:
        choice = choices["optim.lr"]
        reporter.note(f"Learning rate {format_scientific(choice.value)}: {choice.reason}.")
    return apply_measured(run, training, choices, stage="learning_rate", rendezvous=rendezvous)


def measure_learning_rate(
    training: Training, device: torch.device, *, batches: Sequence[Batch] | None = None
) -> dict[str, Choice]:
    """Return the peak learning rate at which a step changes the features by a given fraction.

    Rank 0 measures it on the first training batches, whole ones, so that it is the same for any
    number of processes. The network must have its fitted head; its weights are left as they are.

    Args:
        training: Objects of the run.
        device: Device of this rank.
        batches: Batch of each step, then the one whose features are compared; None for the first
            training batches.

    Raises:
        DataError: A file can no longer be read as before.
        OutOfMemoryError: A step needs more memory than is available.
    """
    config, scale = training.config, training.config.optim.backbone_lr_scale
    batches = _load_batches(training, _NUM_STEPS + 1) if batches is None else batches
    module = training.module.to(device)
    rates = build_learning_rates(config.optim, len(module.classifier.groups), lr=TRIAL_LR / scale)
    step_batches = batches[:-1] or batches
    measure = partial(
        measure_feature_change,
        module,
        step_batches,
        batches[-1],
        make_optimizer=build_optimizer_factory(
            config.optim, peak_learning_rates=rates, is_fused=False
        ),
        create_optimizer=build_creator(config.optim, is_fused=False),
        depth=max([2, *(phase.depth for phase in training.phases)]),
        max_grad_norm=config.trainer.gradient_clip_val,
    )
    change = _retry_with_less_memory(measure, get_micro_batch_size(training))
    usual = _get_usual_rate(config.optim)
    if change is None:
        reason = "could not be measured: the features do not change, or are not finite"
        fallback = usual * UNMEASURED_BACKBONE_LR_SCALE[config.optim.name]
        return {"optim.lr": Choice(float(f"{fallback / scale:.2g}"), reason)}
    lr = min(_MAX_FACTOR * usual, max(_MIN_FACTOR * usual, config.optim.feature_change / change))
    lr = float(f"{lr:.2g}")
    return {
        "optim.lr": Choice(
            float(f"{lr / scale:.2g}"),
            f"a step of {format_scientific(lr)} changes the features by {change * lr:.0%} of their "
            f"spread (extrapolated from {format_count(len(step_batches), 'small step')})",
        )
    }


def _get_usual_rate(optim: ResolvedOptimConfig) -> float:
    """Return the rate of a head without a measurement, at which steps add up as by default."""
    return HEAD_LR[optim.name] * (1 - optim.momentum) / (1 - MOMENTUM.get(optim.name, 0.0))


def _retry_with_less_memory(
    measure: Callable[..., float | None], micro_batch_size: int
) -> float | None:
    """Return a measurement, with smaller micro-batches where memory does not suffice.

    It is made in float32 and with a copy of the network, and may need more than training.
    """
    while True:
        try:
            return measure(micro_batch_size=micro_batch_size)
        except OutOfMemoryError:
            if micro_batch_size == 1:
                raise
        micro_batch_size = -(-micro_batch_size // 2)
        release_memory()


def _load_batches(training: Training, num_batches: int) -> list[Batch]:
    """Return the first training batches of the first epoch, fewer if it has fewer."""
    datamodule, size = training.datamodule, training.batch_size
    sampler = EpochSampler(
        datamodule.sampling_schedule,
        num_images=len(datamodule.train_dataset),
        batch_size=size,
        seed=training.config.seed,
    )
    draws = list(islice(sampler, num_batches * size))
    return [
        datamodule.train_dataset.__getitems__(draws[first : first + size])
        for first in range(0, len(draws), size)
    ]

"""Learning-rate range test (Smith 2017, https://arxiv.org/abs/1506.01186).

The learning rate rises exponentially from step to step, and the loss of each training batch is
recorded: it falls where the rate trains, and rises where the rate is too high.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from finetune.data.dataset import Batch
from finetune.models.classifier import ImageClassifier, preserve_state
from finetune.system.hardware import seed_device
from finetune.training.module import ClassificationModule
from finetune.training.optimization.feature_change import backpropagate, translate_out_of_memory

_DIVERGENCE_FACTOR = 4.0
"""The test stops where the running loss exceeds this multiple of its least value, as in fastai."""

_RUNNING_MOMENTUM = 0.8
"""Momentum of the running loss, which decides only when to stop."""

_KERNEL_STEPS = 3.0
"""Standard deviation of the smoothing kernel in steps."""

_MIN_STANDARD_ERRORS = 3.0
"""More than two, since the minimum is the least of many values."""

_NUM_START_STEPS = 10

_MEDIAN_NORMAL_DEVIATION = 0.6745
"""Median absolute deviation of a normal variable, in standard deviations."""

_HEADROOM = 1.5
"""Part of a chart above the first losses, in multiples of the fall below them."""

_MIN_RELATIVE_SPAN = 0.2


@dataclass(frozen=True, slots=True)
class RangeTest:
    """Result of a learning-rate range test.

    Attributes:
        rates: Learning rate of the head at each step, ascending.
        losses: Loss of each step's batch, before the step.
        smoothed_losses: Losses after a Gaussian kernel over the steps, on a logarithmic scale.
        is_diverged: Whether the loss exceeded a multiple of its least value.
        steepest_lr: Rate at which the smoothed loss falls fastest; None if it does not fall.
        minimum_lr: Rate at which the smoothed loss is least; None if it does not fall.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed_losses: tuple[float, ...]
    is_diverged: bool
    steepest_lr: float | None
    minimum_lr: float | None


def run_range_test(
    module: ClassificationModule,
    batches: Iterator[Batch],
    *,
    make_optimizer: Callable[[ImageClassifier], Optimizer],
    rates: Sequence[float],
    depth: int,
    micro_batch_size: int,
    max_grad_norm: float = 0.0,
    on_step: Callable[[], None] = lambda: None,
) -> RangeTest:
    """Train one step at each learning rate until the loss diverges, and restore the network.

    Args:
        module: Module on its device.
        batches: Training batches, at least one for each rate.
        make_optimizer: Function that builds an optimizer in which the head has the learning rate 1
            and the other groups theirs in proportion.
        rates: Learning rates of the head, ascending.
        depth: Number of layer groups that train, counted from the head.
        micro_batch_size: Images that are processed at once.
        max_grad_norm: Maximum gradient norm; 0 does not clip.
        on_step: Function that is called after each step.

    Raises:
        OutOfMemoryError: A step needs more memory than is available.
    """
    losses: list[float] = []
    classifier = module.classifier
    running, least, is_diverged = 0.0, float("inf"), False
    cuda_devices = [module.device] if module.device.type == "cuda" else []
    with (
        translate_out_of_memory(),
        torch.random.fork_rng(devices=cuda_devices),
        preserve_state(classifier),
    ):
        classifier.set_depth(depth)
        classifier.train()
        optimizer = make_optimizer(classifier)
        factors = [float(group["lr"]) for group in optimizer.param_groups]
        for step, (rate, batch) in enumerate(zip(rates, batches, strict=False)):
            seed_device(module.device, module.recipe.seed + step)
            loss = backpropagate(module, batch, step, micro_batch_size)
            running = _RUNNING_MOMENTUM * running + (1 - _RUNNING_MOMENTUM) * loss
            present = running / (1 - _RUNNING_MOMENTUM ** (step + 1))
            is_diverged = not present <= _DIVERGENCE_FACTOR * least or not np.isfinite(loss)
            if np.isfinite(loss):
                losses.append(loss)
            if is_diverged:
                break
            least = min(least, present)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * rate
            if max_grad_norm:
                torch.nn.utils.clip_grad_norm_(classifier.parameters(), max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            on_step()
    return analyse_losses(rates[: len(losses)], losses, is_diverged=is_diverged)


def analyse_losses(
    rates: Sequence[float], losses: Sequence[float], *, is_diverged: bool = False
) -> RangeTest:
    """Return the smoothed losses of a range test and the rates that they suggest.

    The loss counts as falling if its smoothed minimum is below the mean of the first steps by more
    than three standard errors of the difference.

    Args:
        rates: Learning rate of each step, ascending.
        losses: Loss of each step's batch, before the step.
        is_diverged: Whether the test stopped because the loss exceeded a multiple of its least.
    """
    raw = np.asarray(losses, dtype=np.float64)
    if len(raw) == 0:
        return RangeTest((), (), (), is_diverged, None, None)
    smoothed = _smooth(raw)
    least = int(smoothed.argmin())
    steepest_lr = minimum_lr = None
    if _is_falling(raw, smoothed, least):
        slopes = np.gradient(smoothed[: least + 1], np.log(np.asarray(rates[: least + 1])))
        steepest_lr, minimum_lr = float(rates[int(slopes.argmin())]), float(rates[least])
    return RangeTest(
        tuple(map(float, rates)),
        tuple(map(float, losses)),
        tuple(smoothed.tolist()),
        is_diverged,
        steepest_lr,
        minimum_lr,
    )


def compute_loss_limits(
    losses: Sequence[float], smoothed_losses: Sequence[float]
) -> tuple[float, float]:
    """Return the limits of the axis of a chart, which show the fall and cut the divergence off.

    Args:
        losses: Losses in the order of the steps.
        smoothed_losses: Smoothed losses in the same order.
    """
    least = min(range(len(losses)), key=smoothed_losses.__getitem__)
    until_least = losses[: max(least + 1, _NUM_START_STEPS)]
    low = min(*losses, *smoothed_losses)
    start = sum(losses[:_NUM_START_STEPS]) / len(losses[:_NUM_START_STEPS])
    high = max(*until_least, start + _HEADROOM * (start - low))
    high = max(high, low + _MIN_RELATIVE_SPAN * abs(low), low + 1e-6)
    return max(0.0, low - 0.05 * (high - low)), high


def _is_falling(raw: NDArray[np.float64], smoothed: NDArray[np.float64], least: int) -> bool:
    """Return whether the loss falls to its smoothed minimum by more than chance explains."""
    if least < _NUM_START_STEPS:
        return False
    residuals = np.abs(raw - smoothed)[: max(least + 1, 3 * _NUM_START_STEPS)]
    noise = float(np.median(residuals)) / _MEDIAN_NORMAL_DEVIATION
    # a Gaussian kernel of s steps averages about 2 s sqrt(pi) values
    num_averaged = 2 * _KERNEL_STEPS * np.sqrt(np.pi)
    standard_error = noise * np.sqrt(1 / _NUM_START_STEPS + 1 / num_averaged)
    fall = float(raw[:_NUM_START_STEPS].mean() - smoothed[least])
    return bool(fall > _MIN_STANDARD_ERRORS * standard_error)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positive values after a Gaussian kernel on their logarithms.

    Without logarithms the first large losses of a divergence would raise those of many steps before
    it. The kernel is cut at both ends and normalised again.
    """
    steps = np.arange(len(values))
    kernel = np.exp(-0.5 * ((steps[:, None] - steps) / _KERNEL_STEPS) ** 2)
    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    smoothed: NDArray[np.float64] = np.exp(kernel @ logs / kernel.sum(axis=1))
    return smoothed

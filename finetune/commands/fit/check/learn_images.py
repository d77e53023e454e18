"""Training on a few images until none is wrong."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from finetune.builders import Training
from finetune.builders.optimization.optimizer_factory import build_optimizer_factory
from finetune.builders.schedules import build_learning_rates
from finetune.commands.fit.check.busy_clock import count_seconds, read_clocks
from finetune.commands.fit.check.learning_trace import LearningTrace, is_falling, is_stuck
from finetune.commands.fit.check.plain_loss import (
    compute_chance_loss,
    get_plain_criterion,
    measure_batch,
    move_batch,
    no_dropout,
    select_images,
    take_step,
)
from finetune.data.dataset import Batch
from finetune.training.optimization.feature_change import translate_out_of_memory

BATCH_SIZE = 8
"""Images of a step: four steps for the time of one pass over 32 images."""

_NUM_WARMUP_STEPS = 4
"""Steps in which the learning rates rise: the first ones of Adam would spoil a fitted head."""

_MIN_PASSES, _MAX_PASSES = 2, 200
"""Least number, so that the full rates are tried, and largest number of passes over the images."""

_LEARNED_FRACTION = 0.5
"""Fraction of the loss at the start below which learned images are not repeated."""

_MAX_WRONG_FRACTION = 0.125
"""Fraction of wrong images in a pass, before the steps, up to which all images are measured."""

_DIVERGENCE_FACTOR = 10.0
"""Multiple of the loss at the start, or of equal logits, at which an attempt ends."""


def learn_images(
    training: Training,
    batch: Batch,
    *,
    lr: float,
    depth: int,
    time_limit_seconds: float,
    patience_seconds: float,
    on_step: Callable[[], None] = lambda: None,
) -> LearningTrace:
    """Train on the same images until none is wrong, the loss explodes or the time is over.

    The loss, optimizer, learning rates of the layer groups, gradient clipping and BatchNorm are
    those of the run. The rates are constant after a few steps, and only the order is random.

    Args:
        training: Objects of the run, with the weights to start from; they are changed.
        batch: Images with labels.
        lr: Learning rate of the head.
        depth: Layer groups that train, from the head.
        time_limit_seconds: Time after which no step begins, except the first.
        patience_seconds: Time after which none begins if the loss does not fall.
        on_step: Function that is called after each step.

    Raises:
        OutOfMemoryError: A step needs more memory than is available.
    """
    clock = _Clock(time_limit_seconds, patience_seconds)
    criterion, module = get_plain_criterion(training), training.module
    batch = move_batch(batch, module.device)
    chance_loss = compute_chance_loss(batch["label"], len(training.data.classes), criterion)
    optimizer = _create_optimizer(training, lr)
    set_rates = _build_warmup(optimizer)
    generator = np.random.default_rng(training.config.seed)
    losses: list[float] = []
    norms: list[float] = []
    with translate_out_of_memory(), no_dropout(module.classifier, depth):
        start_loss, start_errors = measure_batch(module, batch, criterion)
        limit = _DIVERGENCE_FACTOR * max(start_loss, chance_loss)
        measured: tuple[float, int] | None = None
        while len(losses) < _MAX_PASSES and measured is None:
            steps: list[tuple[int, float, int]] = []
            for rows in _split_rows(generator.permutation(len(batch["label"]))):
                if norms and clock.is_over(start_loss, losses):
                    break
                set_rates(len(norms))
                loss, errors, norm = take_step(
                    training, select_images(batch, rows), criterion, optimizer
                )
                steps.append((len(rows), loss, errors))
                norms.append(norm)
                on_step()
                if norms[0] == 0 or not loss <= limit:
                    break
            losses += [] if not steps else [_compute_mean_loss(steps)]
            is_vain = norms[0] == 0 or not losses[-1] <= limit or is_stuck(start_loss, losses)
            if is_vain or clock.was_over:
                break
            num_wrong = sum(wrong for _, _, wrong in steps)
            is_long = len(losses) >= _MIN_PASSES
            if is_long and num_wrong <= _MAX_WRONG_FRACTION * len(batch["label"]):
                result = measure_batch(module, batch, criterion)
                if result[1] == 0 and result[0] < _LEARNED_FRACTION * start_loss:
                    measured = result
        end_loss, num_errors = measured or measure_batch(module, batch, criterion)
    return LearningTrace(
        lr=lr,
        depth=depth,
        num_images=len(batch["label"]),
        start_loss=start_loss,
        chance_loss=chance_loss,
        losses=tuple(losses),
        end_loss=end_loss,
        start_errors=start_errors,
        num_errors=num_errors,
        gradient_norm=norms[0],
        num_steps=len(norms),
        seconds=clock.seconds,
        is_timed_out=clock.was_over,
    )


class _Clock:
    """Time limit of an attempt, and an earlier one if the loss does not fall.

    Time in which other programs use the cores does not count, up to a limit.
    """

    def __init__(self, limit_seconds: float, patience_seconds: float) -> None:
        self._start = read_clocks()
        self._limit, self._patience = limit_seconds, patience_seconds
        self.was_over = False

    @property
    def seconds(self) -> float:
        """Seconds since the start that count."""
        return count_seconds(self._start)

    def is_over(self, start_loss: float, losses: Sequence[float]) -> bool:
        """Return whether the attempt ends; asked before each step but the first."""
        is_given_up = self.seconds > self._patience and not is_falling(start_loss, losses)
        self.was_over = self.seconds > self._limit or is_given_up
        return self.was_over


def _create_optimizer(training: Training, lr: float) -> Optimizer:
    """Return the optimizer of the run, with constant rates."""
    optim, classifier = training.config.optim, training.module.classifier
    rates = build_learning_rates(optim, len(classifier.groups), lr=lr)
    factory = build_optimizer_factory(optim, peak_learning_rates=rates, is_fused=False)
    return factory(classifier)


def _build_warmup(optimizer: Optimizer) -> Callable[[int], None]:
    """Return a function that sets the rates of a step, which rise over the first steps."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]

    def set_rates(step: int) -> None:
        factor = min(1.0, (step + 1) / _NUM_WARMUP_STEPS)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    return set_rates


def _compute_mean_loss(steps: Sequence[tuple[int, float, int]]) -> float:
    """Return the mean loss of images from the size, loss and errors of their batches."""
    return sum(size * loss for size, loss, _ in steps) / sum(size for size, _, _ in steps)


def _split_rows(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return rows in batches of nearly one size, two images or more."""
    return np.array_split(rows, max(1, math.ceil(len(rows) / BATCH_SIZE)))

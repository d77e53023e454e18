"""Range test of a run's learning rate on its own training batches, and its files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.builders import Training, get_micro_batch_size
from finetune.builders.optimization.optimizer_factory import build_optimizer_factory
from finetune.builders.schedules import build_learning_rates
from finetune.commands.measurement.lr_figure import draw_lr_figure
from finetune.data.dataset import Batch
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.errors import TrainingError
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.training.optimization.optimizers import OPTIMIZERS
from finetune.training.optimization.range_test import RangeTest, compute_loss_limits, run_range_test
from finetune.types import Reporter
from finetune.units import format_scientific

_NUM_STEPS = 100
_MINIMUM_DIVISOR = 10
"""Divisor of the rate with the least loss, a common choice."""


@dataclass(frozen=True, slots=True)
class LearningRateTest:
    """Range test of a run, with the learning rate that the run takes.

    Attributes:
        lr: Peak learning rate of the head in the run.
        reason: Reason for it; empty if the config gave it.
        is_measured: Whether the run measured it.
        test: Points and suggestions of the range test.
    """

    lr: float
    reason: str
    is_measured: bool
    test: RangeTest

    @property
    def minimum_lr_divided(self) -> float | None:
        """A tenth of the rate with the least loss; None if the loss does not fall."""
        minimum = self.test.minimum_lr
        return None if minimum is None else minimum / _MINIMUM_DIVISOR

    def to_json(self) -> dict[str, Any]:
        """Return the test as JSON values."""
        test = self.test
        points = zip(test.rates, test.losses, test.smoothed_losses, strict=True)
        return {
            "lr": self.lr,
            "reason": self.reason,
            "is_measured": self.is_measured,
            "steepest_lr": test.steepest_lr,
            "minimum_lr": test.minimum_lr,
            "minimum_lr_divided_by_10": self.minimum_lr_divided,
            "is_diverged": test.is_diverged,
            "loss_limits": list(compute_loss_limits(test.losses, test.smoothed_losses)),
            "points": [
                {"lr": rate, "loss": loss, "smoothed_loss": smoothed}
                for rate, loss, smoothed in points
            ],
        }


def run_lr_test(
    training: Training,
    device: torch.device,
    *,
    reporter: Reporter,
    measured_reason: str | None = None,
) -> LearningRateTest:
    """Run the range test on whole training batches, as any number of processes would train them.

    It runs in fp32, at the largest depth of the run's phases. The weights are left as they are.

    Args:
        training: Objects of the run with a learning rate, and a fitted head if there is a probe.
        device: Device of this process.
        reporter: Receiver of progress.
        measured_reason: Reason for the run's learning rate if it was measured; else None.

    Raises:
        DataError: A file can no longer be read as before.
        OutOfMemoryError: A step needs more memory than is available.
        TrainingError: The loss is not finite at the lowest learning rates.
    """
    config = training.config
    lr = config.optim.lr
    assert lr != "auto", "measured before"
    module = training.module.to(device)
    factors = build_learning_rates(config.optim, len(module.classifier.groups), lr=1.0)
    first, last = OPTIMIZERS[config.optim.name].lr_range
    reporter.start("testing learning rates", _NUM_STEPS)
    try:
        test = run_range_test(
            module,
            _iterate_batches(training),
            make_optimizer=build_optimizer_factory(
                config.optim, peak_learning_rates=factors, is_fused=False
            ),
            rates=np.geomspace(first, last, _NUM_STEPS).tolist(),
            depth=max(phase.depth for phase in training.phases),
            micro_batch_size=get_micro_batch_size(training),
            max_grad_norm=config.trainer.gradient_clip_val,
            on_step=reporter.advance,
        )
    finally:
        reporter.finish()
    if len(test.rates) < 2:
        raise TrainingError(
            f"The training loss is not finite at a learning rate of {format_scientific(first)}. "
            f"Check model.weights and loss.name; another seed takes other images first."
        )
    reason = training.reasons.get("optim.lr", "") if measured_reason is None else measured_reason
    return LearningRateTest(lr, reason, measured_reason is not None, test)


def write_lr_test(run: RunFolder, result: LearningRateTest) -> None:
    """Write the points as CSV and the curve as SVG into the run folder.

    Raises:
        StorageError: The disk is full or fails.
    """
    test = result.test
    points = zip(test.rates, test.losses, test.smoothed_losses, strict=True)
    rows = [f"{rate:.6g},{loss:.6g},{smoothed:.6g}" for rate, loss, smoothed in points]
    write_text(run.lr_find_csv_path, "\n".join(["lr,loss,smoothed_loss", *rows]) + "\n")
    marks = {
        "measured rate" if result.is_measured else "rate of the run": result.lr,
        "steepest descent": test.steepest_lr,
        "minimum / 10": result.minimum_lr_divided,
    }
    write_text(run.lr_find_svg_path, draw_lr_figure(test, marks=marks))


def _iterate_batches(training: Training) -> Iterator[Batch]:
    """Yield the training batches of one epoch after another, beyond those of the run, too."""
    datamodule, size = training.datamodule, training.batch_size
    last_epoch = training.config.trainer.epochs - 1
    sampler = EpochSampler(
        lambda epoch: datamodule.sampling_schedule(min(epoch, last_epoch)),
        num_images=len(datamodule.train_dataset),
        batch_size=size,
        seed=training.config.seed,
    )
    for epoch in range(_NUM_STEPS):  # an epoch has at least one batch
        sampler.set_epoch(epoch)
        draws = list(sampler)
        for first in range(0, len(draws), size):
            yield datamodule.train_dataset.__getitems__(draws[first : first + size])

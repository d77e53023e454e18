"""Mean and standard deviation of a run's own training images, for ``data.normalize=dataset``."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finetune.builders import Training, update_training
from finetune.commands.measurement.measured import apply_measured
from finetune.config.facts import Choice
from finetune.config.schema import Config
from finetune.data.dataset import ImageDataset, create_loader, translate_worker_errors
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import ConfigError
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

_KEYS = ("mean", "std")
_BATCH_SIZE = 64
_MIN_STD = 1e-3
"""Standard deviation below which a channel is constant, and is not divided by it."""


def check_normalization(config: Config) -> None:
    """Check that a new run measures the statistics that it is not given.

    Raises:
        ConfigError: Both are set.
    """
    given = [key for key in _KEYS if key in config.model.pretrained_cfg]
    if config.data.normalize == "dataset" and given:
        raise ConfigError(
            f"data.normalize=dataset cannot apply to model.pretrained_cfg with "
            f"{' and '.join(given)}: these are measured. Leave one of them out."
        )


def settle_normalization(
    run: RunFolder, training: Training, *, rendezvous: Rendezvous | None, reporter: Reporter
) -> Training:
    """Return the training with the statistics of its images; all ranks call it.

    Rank 0 reads all training images once, as the evaluation transform returns them, from the cache
    of pixels if there is one. The result becomes ``model.pretrained_cfg`` of the run's config, so
    that a resumed run does not measure again, and a part of the model card.

    Args:
        run: Run folder.
        training: Objects of the run.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of progress.

    Raises:
        ConfigError: The backbone fills borders with the mean.
        DataError: An image can no longer be read.
    """
    config = training.config
    stored = config.model.pretrained_cfg
    if config.data.normalize != "dataset" or all(key in stored for key in _KEYS):
        return training
    if training.network.spec.crop_mode == "border":
        raise ConfigError(
            "data.normalize=dataset cannot apply to model.pretrained_cfg with crop_mode=border: "
            "its borders are filled with the mean, before there is one. Set crop_mode=center."
        )
    choices = None
    if rendezvous is None or rendezvous.launch.rank == 0:
        mean, std = measure_statistics(training, reporter)
        num_images = len(training.data.train)
        reason = f"mean and standard deviation of {num_images:,} training images"
        value: dict[str, Any] = {**stored, "mean": mean, "std": std}
        choices = {"model.pretrained_cfg": Choice(value, reason)}
    updated = apply_measured(run, training, choices, stage="normalization", rendezvous=rendezvous)
    cfg = updated.config.model.pretrained_cfg
    spec = replace(updated.network.spec, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))
    return update_training(replace(updated, network=replace(updated.network, spec=spec)), {})


def measure_statistics(training: Training, reporter: Reporter) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel over all pixels, for [0, 1].

    Sums are of whole numbers, and do not depend on batches and workers.

    Args:
        training: Objects of the run.
        reporter: Receiver of progress.

    Raises:
        DataError: An image can no longer be read.
    """
    source = training.datamodule.train_dataset.source
    loader = create_loader(
        ImageDataset(source, None, EvalTransform(training.network.spec)),
        batch_size=_BATCH_SIZE,
        num_workers=training.config.data.num_workers,
    )
    num_channels = training.network.spec.input_size[0]
    total = torch.zeros(num_channels, dtype=torch.int64)
    squares = torch.zeros(num_channels, dtype=torch.float64)
    count = 0
    reporter.start("measuring mean and deviation", len(source))
    with translate_worker_errors():
        for batch in loader:
            pixels = batch["image"].to(torch.int64)
            total += pixels.sum((0, 1, 2))
            squares += (pixels * pixels).sum((0, 1, 2)).double()
            count += pixels[..., 0].numel()
            reporter.advance(len(pixels))
    reporter.finish()
    white = 255 if training.config.data.bit_depth == 8 else 65_535
    mean = total.double() / count
    deviation = (squares / count - mean * mean).clamp(min=0).sqrt() / white
    std = torch.where(deviation < _MIN_STD, 1.0, deviation)
    return _round(mean / white), _round(std)


def _round(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]

"""What a run will cost: memory, time and disk, from a few steps and images of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from finetune.builders.resolve import num_processes, number
from finetune.builders.run import Training, batch_in_memory
from finetune.config.load import replaced
from finetune.data.cache.pixel_store import picture_of
from finetune.data.cache.pixel_writer import shrunk
from finetune.data.dataset import Batch
from finetune.data.images.lazy_image import Picture
from finetune.errors import OutOfMemoryError
from finetune.system.hardware import (
    explain_out_of_memory,
    free_cores,
    free_memory,
    is_out_of_memory,
)
from finetune.training.step_cost import StepCost, StepMeter
from finetune.types import Draw, Phase, Split

_SAMPLED_IMAGES = 8
_MEASURED_DEPTHS = 3
_USABLE_SHARE = 0.9
"""Of the free memory; the libraries need the rest to work."""


@dataclass(frozen=True, slots=True)
class RunCost:
    """What was measured of a run before it.

    Attributes:
        steps: The cost of a step in each phase.
        decode_seconds: One image from its file, on one core.
        read_seconds: One training image as every epoch reads it, on one core.
        free_bytes: Memory that a process may use; None where the system does not tell.
    """

    steps: tuple[StepCost, ...]
    decode_seconds: float
    read_seconds: float
    free_bytes: int | None


def measure(training: Training) -> RunCost:
    """Return what a run will cost; nothing of it changes.

    Raises:
        OutOfMemoryError: Not even a few images fit.
    """
    decode, read = _reading_seconds(training)
    meter = _meter(training)
    free = _free_bytes(training)
    depths = reversed(_spread([phase.depth for phase in training.phases]))
    try:
        measured = {depth: meter.measure(depth) for depth in depths}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{explain_out_of_memory(error)} Not even a few images fit. Take a smaller "
            f"--image-size or --backbone, or model.grad_checkpointing=true."
        ) from None
    del meter
    if training.config.trainer.accelerator == "cuda":
        torch.cuda.empty_cache()
    # a depth between two that were measured costs at most what the deeper one does
    steps = (
        measured[min(depth for depth in measured if depth >= phase.depth)]
        for phase in training.phases
    )
    return RunCost(tuple(steps), decode, read, free)


def bytes_to_train_all(training: Training) -> int | None:
    """Return the memory of a step in which every layer trains, on a copy of the network.

    Without what the libraries work with in between. None where not even a few images fit.
    """
    groups = training.module.classifier.groups
    try:
        meter = _meter(training)
        return meter.memory(len(groups)).bytes_for(batch_in_memory(training))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def with_fitting_batch(training: Training, cost: RunCost) -> Training:
    """Return the training with its batch split into as many parts as the memory asks for."""
    if cost.free_bytes is None:
        return training
    parts = number(training.config.trainer.accumulate)
    local = batch_in_memory(training) * parts
    while _most_bytes(cost, local // parts) > _USABLE_SHARE * cost.free_bytes:
        most = local // training.fewest_images
        more = next((n for n in range(parts + 1, most + 1) if local % n == 0), None)
        if more is None:
            break
        parts = more
    return with_accumulation(training, parts)


def with_accumulation(training: Training, parts: int) -> Training:
    """Return the training with its batch in so many parts, whose gradients make one step."""
    data = training.data
    loading = replace(data.loading, accumulate=parts)
    return replace(
        training,
        config=replaced(training.config, {"trainer.accumulate": parts}),
        data=type(data)(data.train, data.val, sampling=data.sampling, loading=loading),
    )


def describe_cost(training: Training, cost: RunCost) -> dict[str, Any]:
    """Return the costs of a run as JSON values, in seconds and gigabytes."""
    batch = batch_in_memory(training)
    worst = max(cost.steps, key=lambda step: step.bytes_for(batch))
    phases = [
        _phase_cost(training, phase, step, cost)
        for phase, step in zip(training.phases, cost.steps, strict=True)
    ]
    filling = _filling_seconds(training, cost)
    return {
        "memory_gb": {
            "parameters": _gb(worst.parameter_bytes),
            "gradients": _gb(worst.gradient_bytes),
            "optimizer": _gb(worst.optimizer_bytes),
            "activations": _gb(worst.fixed_bytes + worst.activation_bytes * batch),
            "total": _gb(worst.bytes_for(batch)),
            "free": None if cost.free_bytes is None else _gb(cost.free_bytes),
        },
        "batch_in_memory": batch,
        "phases": phases,
        "cache_seconds": round(filling, 1),
        "seconds": round(filling + sum(phase["seconds"] for phase in phases), 1),
    }


def _phase_cost(
    training: Training, phase: Phase, step: StepCost, cost: RunCost
) -> dict[str, float]:
    workers = number(training.config.data.num_workers)
    processes = num_processes(training.config)
    on_gpu = training.config.trainer.accelerator == "cuda"
    # the processes of a machine share its CPU
    shared = processes if on_gpu else number(training.config.trainer.num_nodes)
    train = _with_reading(step.train_seconds, cost.read_seconds, workers) / shared
    stored = training.cache is not None
    val = _with_reading(step.eval_seconds, 0.0 if stored else cost.decode_seconds, workers) / shared
    epoch = train * training.batch_size * training.steps_per_epoch
    epoch += val * len(training.manifest.of(Split.VAL))
    epochs = phase.last_epoch - phase.first_epoch + 1
    return {
        "first_epoch": phase.first_epoch + 1,
        "last_epoch": phase.last_epoch + 1,
        "images_per_second": round(1 / train, 1),
        "seconds": round(epoch * epochs, 1),
    }


def _with_reading(step_seconds: float, read_seconds: float, workers: int) -> float:
    """Return the seconds an image: workers read beside the step, else it waits for them."""
    if workers:
        return max(step_seconds, read_seconds / workers)
    return step_seconds + read_seconds


def _free_bytes(training: Training) -> int | None:
    """Return the memory of one process; those on a machine's CPU share it."""
    trainer = training.config.trainer
    free = free_memory(trainer.accelerator)
    return free // number(trainer.devices) if free and trainer.accelerator == "cpu" else free


def _filling_seconds(training: Training, cost: RunCost) -> float:
    cache = training.cache
    if cache is None or cache.num_bytes == 0:
        return 0.0
    images = len(training.manifest.of(Split.TRAIN)) + len(training.manifest.of(Split.VAL))
    return cost.decode_seconds * images * cache.new_bytes / cache.num_bytes / free_cores()


def _reading_seconds(training: Training) -> tuple[float, float]:
    """Return the seconds to decode an image from its file, and to read one in every epoch."""
    data, cache = training.data.train, training.cache
    rows = range(min(_SAMPLED_IMAGES, len(data)))

    def read(row: int, picture: Picture) -> None:
        data.transform(picture, Draw(row, 0, 0))

    if cache is None or cache.shorter_side is None:
        seconds = _seconds([partial(lambda row: read(row, data.source.open(row)), r) for r in rows])
        return seconds, seconds if cache is None else 0.0
    stored = {}
    paths = training.manifest.paths(training.manifest.of(Split.TRAIN)[: len(rows)])

    def decode(row: int) -> None:
        assert cache is not None
        assert cache.shorter_side is not None
        stored[row] = shrunk(
            paths[row], shorter_side=cache.shorter_side, max_pixels=cache.max_pixels
        )

    decode_seconds = _seconds([partial(decode, row) for row in rows])
    pictures = [picture_of(image) for image in stored.values()]
    read_seconds = _seconds([partial(read, r, picture) for r, picture in enumerate(pictures)])
    return decode_seconds, read_seconds


def _seconds(works: Sequence[Callable[[], None]]) -> float:
    """Return the mean seconds of each but the first, which warms up."""
    works[0]()
    start = time.perf_counter()
    for work in works:
        work()
    return (time.perf_counter() - start) / len(works)


def _meter(training: Training) -> StepMeter:
    return StepMeter(
        training.module,
        _some_images(training),
        batch_size=batch_in_memory(training),
        device=torch.device(training.config.trainer.accelerator),
        precision=training.config.trainer.precision,
    )


def _some_images(training: Training) -> Batch:
    """Return training images of the epoch in which they are largest."""
    data, config = training.data.train, training.config
    assert config.data.train_sizes != "auto", "auto is decided before"
    first, last = config.data.train_sizes
    epoch = 0 if first > last else number(config.trainer.epochs) - 1
    return data.__getitems__([Draw(row % len(data), epoch, 0) for row in range(4)])


def _most_bytes(cost: RunCost, batch: int) -> int:
    return max(step.bytes_for(batch) for step in cost.steps)


def _spread(depths: Sequence[int]) -> list[int]:
    """Return the depths to measure: all if they are few, else some with the deepest among them."""
    distinct = sorted(set(depths))
    if len(distinct) <= _MEASURED_DEPTHS:
        return distinct
    return [distinct[0], distinct[len(distinct) // 2], distinct[-1]]


def _gb(value: int) -> float:
    return round(value / 1e9, 3)

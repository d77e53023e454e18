"""What a run will cost: memory, time and disk, from a few steps and images of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from finetune.builders.resolve import compute_world_size, require_int
from finetune.builders.run import Training, get_micro_batch_size
from finetune.config.load import replace_values
from finetune.data.cache.pixel_store import build_lazy_image
from finetune.data.cache.pixel_writer import decode_resized
from finetune.data.dataset import Batch
from finetune.data.images.lazy_image import LazyImage
from finetune.errors import OutOfMemoryError
from finetune.system.hardware import (
    count_available_cores,
    explain_out_of_memory,
    get_free_memory,
    is_out_of_memory,
)
from finetune.training.step_cost import StepCost, StepProfiler
from finetune.types import Draw, Phase, Split

_NUM_TIMED_IMAGES = 8
_MAX_MEASURED_DEPTHS = 3
_USABLE_MEMORY_FRACTION = 0.9
"""Of the free memory; the libraries need the rest to work."""


@dataclass(frozen=True, slots=True)
class RunCost:
    """What was measured of a run before it.

    Attributes:
        step_costs: The cost of a step in each phase.
        decode_seconds: One image from its file, on one core.
        read_seconds: One training image as every epoch reads it, on one core.
        free_bytes: Memory that a process may use; None where the system does not tell.
    """

    step_costs: tuple[StepCost, ...]
    decode_seconds: float
    read_seconds: float
    free_bytes: int | None


def measure_run_cost(training: Training) -> RunCost:
    """Return what a run will cost; nothing of it changes.

    Raises:
        OutOfMemoryError: Not even a few images fit.
    """
    decode, read = _measure_decode_and_read_seconds(training)
    meter = _build_step_profiler(training)
    free = _get_free_memory_bytes(training)
    depths = reversed(_select_measured_depths([phase.depth for phase in training.phases]))
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


def measure_full_finetuning_bytes(training: Training) -> int | None:
    """Return the memory of a step in which every layer trains, on a copy of the network.

    Without what the libraries work with in between. None where not even a few images fit.
    """
    groups = training.module.classifier.groups
    try:
        meter = _build_step_profiler(training)
        return meter.measure_memory(len(groups)).compute_total_bytes(get_micro_batch_size(training))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def fit_batch_to_memory(training: Training, cost: RunCost) -> Training:
    """Return the training with its batch split into as many parts as the memory asks for."""
    if cost.free_bytes is None:
        return training
    parts = require_int(training.config.trainer.accumulate_grad_batches)
    local = get_micro_batch_size(training) * parts
    while _compute_peak_bytes(cost, local // parts) > _USABLE_MEMORY_FRACTION * cost.free_bytes:
        most = local // training.min_micro_batch_size
        more = next((n for n in range(parts + 1, most + 1) if local % n == 0), None)
        if more is None:
            break
        parts = more
    return set_accumulation(training, parts)


def set_accumulation(training: Training, accumulate_grad_batches: int) -> Training:
    """Return the training with its batch in so many parts, whose gradients make one step."""
    data = training.datamodule
    loading = replace(data.loader_options, accumulate_grad_batches=accumulate_grad_batches)
    return replace(
        training,
        config=replace_values(
            training.config, {"trainer.accumulate_grad_batches": accumulate_grad_batches}
        ),
        datamodule=type(data)(
            data.train_dataset,
            data.val_dataset,
            sampling_schedule=data.sampling_schedule,
            loader_options=loading,
        ),
    )


def describe_cost(training: Training, cost: RunCost) -> dict[str, Any]:
    """Return the costs of a run as JSON values, in seconds and gigabytes."""
    batch = get_micro_batch_size(training)
    worst = max(cost.step_costs, key=lambda step: step.compute_total_bytes(batch))
    phases = [
        _describe_phase_cost(training, phase, step, cost)
        for phase, step in zip(training.phases, cost.step_costs, strict=True)
    ]
    filling = _estimate_cache_seconds(training, cost)
    return {
        "memory_gb": {
            "parameters": _to_gb(worst.parameter_bytes),
            "gradients": _to_gb(worst.gradient_bytes),
            "optimizer": _to_gb(worst.optimizer_bytes),
            "activations": _to_gb(worst.fixed_bytes + worst.activation_bytes * batch),
            "total": _to_gb(worst.compute_total_bytes(batch)),
            "free": None if cost.free_bytes is None else _to_gb(cost.free_bytes),
        },
        "micro_batch_size": batch,
        "phases": phases,
        "cache_fill_seconds": round(filling, 1),
        "seconds": round(filling + sum(phase["seconds"] for phase in phases), 1),
    }


def _describe_phase_cost(
    training: Training, phase: Phase, step_cost: StepCost, cost: RunCost
) -> dict[str, float]:
    workers = require_int(training.config.data.num_workers)
    processes = compute_world_size(training.config)
    on_gpu = training.config.trainer.accelerator == "cuda"
    # the processes of a machine share its CPU
    shared = processes if on_gpu else require_int(training.config.trainer.num_nodes)
    train = (
        _compute_seconds_per_image(step_cost.train_seconds_per_image, cost.read_seconds, workers)
        / shared
    )
    stored = training.cache is not None
    val = (
        _compute_seconds_per_image(
            step_cost.eval_seconds_per_image, 0.0 if stored else cost.decode_seconds, workers
        )
        / shared
    )
    epoch = train * training.batch_size * training.steps_per_epoch
    epoch += val * len(training.manifest.get_samples(Split.VAL))
    epochs = phase.last_epoch - phase.first_epoch + 1
    return {
        "first_epoch": phase.first_epoch + 1,
        "last_epoch": phase.last_epoch + 1,
        "images_per_second": round(1 / train, 1),
        "seconds": round(epoch * epochs, 1),
    }


def _compute_seconds_per_image(step_seconds: float, read_seconds: float, num_workers: int) -> float:
    """Return the seconds an image: workers read beside the step, else it waits for them."""
    if num_workers:
        return max(step_seconds, read_seconds / num_workers)
    return step_seconds + read_seconds


def _get_free_memory_bytes(training: Training) -> int | None:
    """Return the memory of one process; those on a machine's CPU share it."""
    trainer = training.config.trainer
    free = get_free_memory(trainer.accelerator)
    return free // require_int(trainer.devices) if free and trainer.accelerator == "cpu" else free


def _estimate_cache_seconds(training: Training, cost: RunCost) -> float:
    cache = training.cache
    if cache is None or cache.num_bytes == 0:
        return 0.0
    images = len(training.manifest.get_samples(Split.TRAIN)) + len(
        training.manifest.get_samples(Split.VAL)
    )
    return (
        cost.decode_seconds * images * cache.new_bytes / cache.num_bytes / count_available_cores()
    )


def _measure_decode_and_read_seconds(training: Training) -> tuple[float, float]:
    """Return the seconds to decode an image from its file, and to read one in every epoch."""
    data, cache = training.datamodule.train_dataset, training.cache
    rows = range(min(_NUM_TIMED_IMAGES, len(data)))

    def read(row: int, picture: LazyImage) -> None:
        data.transform(picture, Draw(row, 0, 0))

    if cache is None or cache.shorter_side is None:
        seconds = _time_calls(
            [partial(lambda row: read(row, data.source.open(row)), r) for r in rows]
        )
        return seconds, seconds if cache is None else 0.0
    stored = {}
    paths = training.manifest.resolve_paths(training.manifest.get_samples(Split.TRAIN)[: len(rows)])

    def decode(row: int) -> None:
        assert cache is not None
        assert cache.shorter_side is not None
        stored[row] = decode_resized(
            paths[row], shorter_side=cache.shorter_side, max_pixels=cache.max_pixels
        )

    decode_seconds = _time_calls([partial(decode, row) for row in rows])
    pictures = [build_lazy_image(image) for image in stored.values()]
    read_seconds = _time_calls([partial(read, r, picture) for r, picture in enumerate(pictures)])
    return decode_seconds, read_seconds


def _time_calls(calls: Sequence[Callable[[], None]]) -> float:
    """Return the mean seconds of each but the first, which warms up."""
    calls[0]()
    start = time.perf_counter()
    for work in calls:
        work()
    return (time.perf_counter() - start) / len(calls)


def _build_step_profiler(training: Training) -> StepProfiler:
    return StepProfiler(
        training.module,
        _load_sample_batch(training),
        batch_size=get_micro_batch_size(training),
        device=torch.device(training.config.trainer.accelerator),
        precision=training.config.trainer.precision,
    )


def _load_sample_batch(training: Training) -> Batch:
    """Return training images of the epoch in which they are largest."""
    data, config = training.datamodule.train_dataset, training.config
    assert config.data.train_image_size != "auto", "auto is decided before"
    first, last = config.data.train_image_size
    epoch = 0 if first > last else require_int(config.trainer.epochs) - 1
    return data.__getitems__([Draw(row % len(data), epoch, 0) for row in range(4)])


def _compute_peak_bytes(cost: RunCost, batch_size: int) -> int:
    return max(step.compute_total_bytes(batch_size) for step in cost.step_costs)


def _select_measured_depths(depths: Sequence[int]) -> list[int]:
    """Return the depths to measure: all if they are few, else some with the deepest among them."""
    distinct = sorted(set(depths))
    if len(distinct) <= _MAX_MEASURED_DEPTHS:
        return distinct
    return [distinct[0], distinct[len(distinct) // 2], distinct[-1]]


def _to_gb(num_bytes: int) -> float:
    return round(num_bytes / 1e9, 3)

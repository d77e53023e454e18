"""Cost of a run in memory, time and disk space, measured on a few of its steps and images."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from finetune.builders.run import Training, get_micro_batch_size
from finetune.config.load import replace_values
from finetune.data.cache.pixel_store import build_lazy_image
from finetune.data.cache.pixel_writer import decode_resized
from finetune.data.dataset import Batch
from finetune.data.images.lazy_image import LazyImage
from finetune.errors import OutOfMemoryError
from finetune.system.hardware import (
    explain_out_of_memory,
    get_free_memory,
    is_out_of_memory,
)
from finetune.system.host import count_available_cores
from finetune.training.step_cost import StepCost, StepProfiler
from finetune.types import Draw, Phase

_NUM_TIMED_IMAGES = 8
_MAX_MEASURED_DEPTHS = 3
_USABLE_MEMORY_FRACTION = 0.9
"""Fraction of the free memory that a step may use; libraries need the rest."""


@dataclass(frozen=True, slots=True)
class RunCost:
    """Measured cost of a run.

    Attributes:
        step_costs: Cost of a step in each phase.
        decode_seconds: Seconds to decode an image from its file, on one core.
        read_seconds: Seconds to read a training image as every epoch does, on one core.
        free_bytes: Memory that a process may use; None if it is unknown.
    """

    step_costs: tuple[StepCost, ...]
    decode_seconds: float
    read_seconds: float
    free_bytes: int | None


def measure_run_cost(training: Training) -> RunCost:
    """Return the measured cost of a run, which is left unchanged.

    Raises:
        OutOfMemoryError: Not even a few images fit into the memory.
    """
    decode_seconds, read_seconds = _measure_decode_and_read_seconds(training)
    profiler = build_step_profiler(training)
    free_bytes = _get_free_memory_bytes(training)
    depths = reversed(_select_measured_depths([phase.depth for phase in training.phases]))
    try:
        costs = {depth: profiler.measure(depth) for depth in depths}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{explain_out_of_memory(error)} Not even a few images fit. Use a smaller "
            f"--image-size or --backbone, or model.grad_checkpointing=true."
        ) from None
    del profiler
    if training.config.trainer.accelerator == "cuda":
        torch.cuda.empty_cache()
    # a depth between two measured ones costs at most as much as the deeper one
    step_costs = tuple(
        costs[min(depth for depth in costs if depth >= phase.depth)] for phase in training.phases
    )
    return RunCost(step_costs, decode_seconds, read_seconds, free_bytes)


def measure_full_finetuning_bytes(training: Training) -> int | None:
    """Return the memory of a step of full fine-tuning, measured on a copy of the network.

    It excludes temporary buffers of the libraries. None if not even a few images fit.
    """
    groups = training.module.classifier.groups
    try:
        profiler = build_step_profiler(training)
        step_cost = profiler.measure_memory(len(groups))
        return step_cost.compute_total_bytes(get_micro_batch_size(training))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def fit_batch_to_memory(training: Training, cost: RunCost) -> Training:
    """Return the training with as many micro-batches as its batch needs to fit into the memory."""
    if cost.free_bytes is None:
        return training
    accumulate = training.config.trainer.accumulate_grad_batches
    local_batch_size = get_micro_batch_size(training) * accumulate
    usable_bytes = _USABLE_MEMORY_FRACTION * cost.free_bytes
    while _compute_peak_bytes(cost, local_batch_size // accumulate) > usable_bytes:
        maximum = local_batch_size // training.min_micro_batch_size
        divisors = (n for n in range(accumulate + 1, maximum + 1) if local_batch_size % n == 0)
        larger = next(divisors, None)
        if larger is None:
            break
        accumulate = larger
    return set_accumulation(training, accumulate)


def set_accumulation(training: Training, accumulate_grad_batches: int) -> Training:
    """Return the training with this number of accumulated micro-batches per step."""
    options = replace(
        training.datamodule.loader_options, accumulate_grad_batches=accumulate_grad_batches
    )
    return replace(
        training,
        config=replace_values(
            training.config, {"trainer.accumulate_grad_batches": accumulate_grad_batches}
        ),
        datamodule=training.datamodule.replace_options(options),
    )


def describe_cost(training: Training, cost: RunCost) -> dict[str, Any]:
    """Return the cost of a run as JSON values, in seconds and gigabytes."""
    batch = get_micro_batch_size(training)
    worst = max(cost.step_costs, key=lambda step: step.compute_total_bytes(batch))
    phases = [
        _describe_phase_cost(training, phase, step, cost)
        for phase, step in zip(training.phases, cost.step_costs, strict=True)
    ]
    cache_fill_seconds = _estimate_cache_seconds(training, cost)
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
        "train_eval_images": _count_train_eval_images(training),
        "cache_fill_seconds": round(cache_fill_seconds, 1),
        "seconds": round(cache_fill_seconds + sum(phase["seconds"] for phase in phases), 1),
    }


def _describe_phase_cost(
    training: Training, phase: Phase, step_cost: StepCost, cost: RunCost
) -> dict[str, float]:
    config = training.config
    num_workers = config.data.num_workers
    # the processes of a node share its CPU
    is_cuda = config.trainer.accelerator == "cuda"
    parallelism = config.world_size if is_cuda else config.trainer.num_nodes
    val_read_seconds = 0.0 if _is_cached_on_disk(training) else cost.decode_seconds
    train = _compute_seconds_per_image(
        step_cost.train_seconds_per_image, cost.read_seconds, num_workers
    )
    val = _compute_seconds_per_image(
        step_cost.eval_seconds_per_image, val_read_seconds, num_workers
    )
    sample = _compute_seconds_per_image(
        step_cost.eval_seconds_per_image,
        0.0 if _is_cached_on_disk(training, is_sample=True) else cost.decode_seconds,
        num_workers,
    )
    train, val, sample = (seconds / parallelism for seconds in (train, val, sample))
    epoch = train * training.batch_size * training.steps_per_epoch + val * len(training.data.val)
    train_eval = sample * _count_train_eval_images(training)
    epochs = phase.last_epoch - phase.first_epoch + 1
    return {
        "first_epoch": phase.first_epoch + 1,
        "last_epoch": phase.last_epoch + 1,
        "images_per_second": round(1 / train, 1),
        "seconds": round((epoch + train_eval) * epochs, 1),
        "train_eval_seconds": round(train_eval * epochs, 1),
        "train_eval_fraction": round(train_eval / epoch, 4),
    }


def _count_train_eval_images(training: Training) -> int:
    """Return the number of training images that are measured as validation images are."""
    sample = training.datamodule.train_eval_dataset
    return 0 if sample is None else len(sample)


def _compute_seconds_per_image(step_seconds: float, read_seconds: float, num_workers: int) -> float:
    """Return the seconds per image: workers read in parallel with the step, which else waits."""
    if num_workers:
        return max(step_seconds, read_seconds / num_workers)
    return step_seconds + read_seconds


def _get_free_memory_bytes(training: Training) -> int | None:
    """Return the free memory of one process; the processes of a node share that of its CPU."""
    trainer = training.config.trainer
    free = get_free_memory(trainer.accelerator)
    return free // trainer.devices if free and trainer.accelerator == "cpu" else free


def _estimate_cache_seconds(training: Training, cost: RunCost) -> float:
    cache = training.cache
    if cache is None or cache.num_bytes == 0 or not cache.fits_on_disk:
        return 0.0
    num_images = len(training.data.train) + len(training.data.val)
    decode_seconds = cost.decode_seconds * num_images * cache.new_bytes / cache.num_bytes
    if cache.sample_bytes:
        decode_seconds += cost.decode_seconds * _count_train_eval_images(training)
    return decode_seconds / count_available_cores()


def _measure_decode_and_read_seconds(training: Training) -> tuple[float, float]:
    """Return the seconds to decode an image from its file, and to read one in every epoch."""
    dataset, cache = training.datamodule.train_dataset, training.cache
    rows = range(min(_NUM_TIMED_IMAGES, len(dataset)))

    def transform(row: int, image: LazyImage) -> None:
        dataset.transform(image, Draw(row, 0, 0))

    if cache is None or cache.shorter_side is None:
        seconds = _time_calls(
            [partial(lambda row: transform(row, dataset.source.open(row)), row) for row in rows]
        )
        return seconds, 0.0 if _is_cached_on_disk(training) else seconds
    decode = partial(decode_resized, shorter_side=cache.shorter_side, options=cache.options)
    entries = {}

    def store(row: int) -> None:
        entries[row] = decode(training.data.train.paths[row])

    decode_seconds = _time_calls([partial(store, row) for row in rows])
    images = [build_lazy_image(entry) for entry in entries.values()]
    read_seconds = _time_calls([partial(transform, row, image) for row, image in enumerate(images)])
    return decode_seconds, read_seconds + (0.0 if cache.fits_on_disk else decode_seconds)


def _is_cached_on_disk(training: Training, *, is_sample: bool = False) -> bool:
    """Return whether epochs read decoded images from the disk.

    Args:
        training: Objects of the run.
        is_sample: Whether the training images are meant that are only measured.
    """
    cache = training.cache
    return cache is not None and cache.fits_on_disk and (cache.fits_sample or not is_sample)


def _time_calls(calls: Sequence[Callable[[], None]]) -> float:
    """Return the mean seconds of the calls, after an untimed first one as a warm-up."""
    calls[0]()
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


def build_step_profiler(training: Training) -> StepProfiler:
    """Return a profiler of the steps of a run."""
    return StepProfiler(
        training.module,
        _load_sample_batch(training),
        batch_size=get_micro_batch_size(training),
        device=torch.device(training.config.trainer.accelerator),
        precision=training.config.trainer.precision,
    )


def _load_sample_batch(training: Training) -> Batch:
    """Return training images of the epoch in which they are largest."""
    dataset, config = training.datamodule.train_dataset, training.config
    first, last = config.data.train_image_size
    epoch = 0 if first > last else config.trainer.epochs - 1
    return dataset.__getitems__([Draw(row % len(dataset), epoch, 0) for row in range(4)])


def _compute_peak_bytes(cost: RunCost, batch_size: int) -> int:
    return max(step.compute_total_bytes(batch_size) for step in cost.step_costs)


def _select_measured_depths(depths: Sequence[int]) -> list[int]:
    """Return the depths to measure: all if they are few, else three with the deepest among them."""
    distinct = sorted(set(depths))
    if len(distinct) <= _MAX_MEASURED_DEPTHS:
        return distinct
    return [distinct[0], distinct[len(distinct) // 2], distinct[-1]]


def _to_gb(num_bytes: int) -> float:
    return round(num_bytes / 1e9, 9)  # small networks have kilobytes of parameters

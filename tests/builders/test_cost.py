"""What a run will cost: measured without a trace, split to fit, and summed up as by hand."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.builders import (
    Training,
    describe_cost,
    fit_batch_to_memory,
    get_micro_batch_size,
    measure_full_finetuning_bytes,
    measure_run_cost,
)
from finetune.builders.cost import RunCost, set_accumulation
from finetune.data.manifest import Manifest
from finetune.errors import OutOfMemoryError
from finetune.training.step_cost import StepCost, StepProfiler
from finetune.types import Sample, Split
from tests.support.helpers import everything
from tests.support.networks import one_thread, snapshot
from tests.support.runs import assert_same_bits, small_training, write_photos

GRADUAL: dict[str, Any] = {
    "unfreeze__name": "gradual",
    "unfreeze__params": {"start": 1, "every": 1, "step": 1},
    "trainer__epochs": 7,
}
"""Depths 1 to 6 and 6 again."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "animals")


def step_of(depth: int, **known: Any) -> StepCost:
    numbers = {
        "parameter_bytes": 10_000_000,
        "gradient_bytes": 1_000_000 * depth,
        "optimizer_bytes": 2_000_000 * depth,
        "activation_bytes": 5_000_000 * depth,
        "fixed_bytes": 500_000,
        "train_seconds": 0.01 * depth,
        "eval_seconds": 0.004,
    }
    return StepCost(depth=depth, **{**numbers, **known})


def cost_of(training: Training, *, free_bytes: int | None = None, **known: Any) -> RunCost:
    steps = tuple(step_of(phase.depth, **known) for phase in training.phases)
    return RunCost(steps, decode_seconds=0.02, read_seconds=0.006, free_bytes=free_bytes)


def test_each_phase_has_a_cost_no_smaller_than_its_own(animals: Path) -> None:
    training = small_training(animals, **GRADUAL)
    cost = measure_run_cost(training)
    depths = [phase.depth for phase in training.phases]
    assert depths == [1, 2, 3, 4, 5, 6]
    assert len(cost.step_costs) == len(depths)
    for depth, step in zip(depths, cost.step_costs, strict=True):
        assert step.depth >= depth
    assert len({step.depth for step in cost.step_costs}) == 3
    assert cost.step_costs[-1].depth == 6


def test_few_phases_are_all_measured(animals: Path) -> None:
    training = small_training(animals, unfreeze__name="head_first", unfreeze__params={"epochs": 1})
    assert [step.depth for step in measure_run_cost(training).step_costs] == [1, 6]


def test_measuring_a_run_changes_nothing_of_it(animals: Path) -> None:
    training = small_training(animals, model__batch_norm="train", augment__name="strong")
    before = snapshot(training.module)
    files = everything(animals)
    config = training.config.model_dump()
    measure_run_cost(training)
    assert_same_bits(snapshot(training.module), before)
    assert training.config.model_dump() == config
    assert everything(animals) == files


@pytest.mark.parametrize("cache", ["off", "on"])
def test_reading_is_timed_with_a_cache_and_without(
    cache: str, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for augment in ("none", "medium"):
        training = small_training(animals, data__cache=cache, augment__name=augment)
        assert (training.cache is None) == (cache == "off")
        cost = measure_run_cost(training)
        assert cost.decode_seconds > 0
        stored_as_needed = cache == "on" and augment == "none"
        assert (cost.read_seconds == 0) == stored_as_needed
    assert not (tmp_path / "cache").exists(), "nothing is stored before the run"


def test_the_time_to_decode_is_that_of_an_image_and_not_of_a_long_list(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    training = small_training(animals, data__cache="on", augment__name="medium")

    def slow(self: Manifest, samples: list[Sample]) -> list[Path]:
        time.sleep(0.2)
        return [self.root / sample.path for sample in samples]

    monkeypatch.setattr(Manifest, "resolve_paths", slow)
    assert measure_run_cost(training).decode_seconds < 0.2


@pytest.mark.parametrize(
    ("accelerator_free", "devices", "expected"), [(1000, 1, 1000), (1001, 2, 500), (None, 2, None)]
)
def test_processes_share_the_memory_of_a_machine(
    accelerator_free: int | None,
    devices: int,
    expected: int | None,
    animals: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "finetune.builders.cost.get_free_memory", lambda accelerator: accelerator_free
    )
    assert (
        measure_run_cost(small_training(animals, trainer__devices=devices)).free_bytes == expected
    )


@pytest.mark.parametrize(
    ("batch_size", "room", "parts"),
    [
        (8, 8, 1),
        (8, 7, 2),
        (8, 4, 2),
        (8, 3, 4),
        (8, 1, 8),
        (8, 0, 8),  # not even one: the run will say so
        (24, 23, 2),
        (24, 11, 3),
        (24, 5, 6),
        (7, 6, 7),  # a prime divides into single images alone
    ],
)
def test_a_batch_is_split_into_as_few_parts_as_fit(
    batch_size: int, room: int, parts: int, animals: Path
) -> None:
    training = small_training(animals, trainer__batch_size=batch_size, model__batch_norm="frozen")
    cost = cost_of(training, parameter_bytes=0, fixed_bytes=0)
    # some of the free memory is left alone, so that room for 7 images does not quite hold 7
    free = cost.step_costs[-1].compute_total_bytes(room) / 0.9
    split = fit_batch_to_memory(training, replace(cost, free_bytes=round(free + 10)))
    assert (
        split.config.trainer.accumulate_grad_batches
        == split.datamodule.loader_options.accumulate_grad_batches
        == parts
    )
    assert get_micro_batch_size(split) == batch_size // parts
    assert batch_size % parts == 0
    # everything else is as it was
    assert split.batch_size == split.datamodule.loader_options.batch_size == batch_size
    assert split.steps_per_epoch == training.steps_per_epoch
    assert (split.datamodule.train_dataset, split.datamodule.val_dataset) == (
        training.datamodule.train_dataset,
        training.datamodule.val_dataset,
    )
    assert split.module is training.module
    changed = {**training.config.model_dump(), "trainer": split.config.trainer.model_dump()}
    assert split.config.model_dump() == changed


@pytest.mark.parametrize("setting", [{"augment__mixup": 0.2}, {"model__batch_norm": "train"}])
@pytest.mark.parametrize(("batch_size", "parts"), [(8, 4), (9, 3), (3, 1)])
def test_what_cannot_stand_alone_stays_together(
    batch_size: int, parts: int, setting: dict[str, Any], animals: Path
) -> None:
    settings = {"trainer__batch_size": batch_size, "model__batch_norm": "frozen", **setting}
    training = small_training(animals, **settings)
    split = fit_batch_to_memory(training, cost_of(training, free_bytes=1))
    assert split.config.trainer.accumulate_grad_batches == parts


def test_the_share_of_each_process_is_what_is_split(animals: Path) -> None:
    training = small_training(animals, trainer__batch_size=24, trainer__devices=2)
    cost = cost_of(training)
    free = round(cost.step_costs[-1].compute_total_bytes(4) / 0.9) + 10
    split = fit_batch_to_memory(training, replace(cost, free_bytes=free))
    assert split.config.trainer.accumulate_grad_batches == 3
    assert get_micro_batch_size(split) == 4


def test_the_deepest_phase_decides(animals: Path) -> None:
    training = small_training(animals, unfreeze__name="head_first", unfreeze__params={"epochs": 1})
    cost = cost_of(training)
    shallow, deep = cost.step_costs
    free = round(shallow.compute_total_bytes(8) / 0.9) + 10
    assert deep.compute_total_bytes(8) > free
    assert fit_batch_to_memory(training, replace(cost, free_bytes=free)).config != training.config


def test_without_knowing_the_free_memory_nothing_is_split(animals: Path) -> None:
    training = small_training(animals)
    assert fit_batch_to_memory(training, cost_of(training, free_bytes=None)) is training


def test_not_even_a_few_images_is_an_error_that_says_what_to_do(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StepProfiler, depth: int) -> StepCost:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes")

    monkeypatch.setattr(StepProfiler, "measure_run_cost", full)
    with pytest.raises(OutOfMemoryError, match=r"12 bytes\. Not even .* --image-size or --backb"):
        measure_run_cost(small_training(animals))


def test_any_other_error_of_a_step_is_left_alone(animals: Path) -> None:
    training = small_training(animals)

    def wrong(logits: Any, labels: Any) -> Any:
        raise IndexError("of my own loss")

    training.module.recipe = replace(training.module.recipe, criterion_schedule=lambda _: wrong)
    with pytest.raises(IndexError, match="of my own loss"):
        measure_run_cost(training)


def test_memory_adds_up(animals: Path) -> None:
    training = set_accumulation(small_training(animals), 2)
    memory = describe_cost(training, cost_of(training, free_bytes=3_000_000_000))["memory_gb"]
    expected = {"parameters": 0.01, "gradients": 0.006, "optimizer": 0.012, "activations": 0.1205}
    for name, gigabytes in expected.items():  # of 4 images at depth 6
        assert memory[name] == pytest.approx(gigabytes, abs=0.0006), name
    assert memory["total"] == pytest.approx(sum(expected.values()), abs=0.0006)
    assert memory["free"] == 3
    assert describe_cost(training, cost_of(training))["memory_gb"]["free"] is None


def seconds_by_hand(training: Training, *, workers: int) -> list[float]:
    """Return the seconds of each epoch: 24 training images, 15 for validation."""

    def image(step: float, reading: float) -> float:
        return max(step, reading / workers) if workers else step + reading

    epochs = [range(phase.first_epoch, phase.last_epoch + 1) for phase in training.phases]
    return [
        24 * image(0.01 * phase.depth, 0.006) + 15 * image(0.004, 0.02)
        for phase, numbers in zip(training.phases, epochs, strict=True)
        for _ in numbers
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_seconds_are_those_of_every_image_of_every_epoch(workers: int, animals: Path) -> None:
    training = small_training(
        animals,
        **{**GRADUAL, "unfreeze__params": {"start": 2, "every": 3, "step": 5}},
        data__num_workers=workers,
        data__cache="off",
    )
    tree = describe_cost(training, cost_of(training))
    epochs = seconds_by_hand(training, workers=workers)
    assert [(p["first_epoch"], p["last_epoch"]) for p in tree["phases"]] == [(1, 2), (3, 7)]
    found = [phase["seconds"] for phase in tree["phases"]]
    assert found == pytest.approx([sum(epochs[:2]), sum(epochs[2:])], abs=0.06)
    assert tree["cache_fill_seconds"] == 0
    assert tree["seconds"] == pytest.approx(sum(found), abs=0.06)
    assert tree["micro_batch_size"] == 8
    speeds = [phase["images_per_second"] for phase in tree["phases"]]
    steps = [0.01 + 0.006, 0.06 + 0.006] if workers == 0 else [0.01, 0.06]
    assert speeds == pytest.approx([1 / seconds for seconds in steps], abs=0.06)


def test_processes_of_one_cpu_share_its_cores(animals: Path) -> None:
    one, two = (small_training(animals, trainer__devices=n, data__cache="off") for n in (1, 2))
    assert describe_cost(one, cost_of(one))["seconds"] == pytest.approx(
        describe_cost(two, cost_of(two))["seconds"]
    )


def test_decoding_into_the_cache_is_counted_once_for_each_image(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("finetune.builders.cost.count_available_cores", lambda: 2)
    training = small_training(animals, data__cache="on")
    assert training.cache is not None
    images = len(training.manifest.get_samples(Split.TRAIN)) + len(
        training.manifest.get_samples(Split.VAL)
    )
    tree = describe_cost(training, cost_of(training, train_seconds=1.0))
    assert tree["cache_fill_seconds"] == pytest.approx(images * 0.02 / 2, abs=0.06)
    assert tree["seconds"] == pytest.approx(
        tree["cache_fill_seconds"] + sum(phase["seconds"] for phase in tree["phases"]), abs=0.11
    )
    # what lies in the cache already is not decoded again
    there = replace(training, cache=replace(training.cache, new_bytes=0))
    assert describe_cost(there, cost_of(there))["cache_fill_seconds"] == 0
    # and validation reads it from there
    val = 15 * 2 * 0.004
    reading = describe_cost(there, cost_of(there, train_seconds=0.0))["seconds"]
    assert reading == pytest.approx(2 * 24 * 0.006 + val, abs=0.06)


@pytest.mark.parametrize("schedule", ["linear_probe", "gradual"])
def test_the_memory_to_train_all_is_that_of_a_run_that_does(schedule: str, animals: Path) -> None:
    whole = small_training(animals, unfreeze__name="all")
    told = describe_cost(whole, measure_run_cost(whole))["memory_gb"]["total"]
    other = small_training(animals, unfreeze__name=schedule)
    before = snapshot(other.network.module)
    found = measure_full_finetuning_bytes(other)
    assert found is not None
    assert round(found / 1e9, 3) == told
    assert found > 4 * sum(p.nbytes for p in whole.network.module.parameters())
    assert_same_bits(snapshot(other.network.module), before)


def test_what_cannot_train_all_has_no_such_memory(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = small_training(animals)

    def full(error: Exception) -> None:
        def memory(self: StepProfiler, depth: int) -> None:
            assert depth == len(training.module.classifier.groups)
            raise error

        monkeypatch.setattr(StepProfiler, "measure_memory", memory)

    full(torch.OutOfMemoryError("CUDA out of memory."))
    assert measure_full_finetuning_bytes(training) is None
    full(ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        measure_full_finetuning_bytes(training)

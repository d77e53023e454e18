"""Tests of the measured cost of a run, of its micro-batches, and of the sums in its plan."""

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
from finetune.errors import OutOfMemoryError
from finetune.training.step_cost import StepCost, StepProfiler
from tests.support.helpers import list_tree
from tests.support.networks import copy_state
from tests.support.runs import assert_same_bits, create_small_training

GRADUAL: dict[str, Any] = {
    "unfreeze__name": "gradual",
    "unfreeze__params": {"start": 1, "every": 1, "step": 1},
    "trainer__epochs": 7,
}
"""Depths 1 to 6 and 6 again."""


def build_step_cost(depth: int, **values: Any) -> StepCost:
    defaults = {
        "parameter_bytes": 10_000_000,
        "gradient_bytes": 1_000_000 * depth,
        "optimizer_bytes": 2_000_000 * depth,
        "activation_bytes": 5_000_000 * depth,
        "fixed_bytes": 500_000,
        "train_seconds_per_image": 0.01 * depth,
        "eval_seconds_per_image": 0.004,
    }
    return StepCost(depth=depth, **{**defaults, **values})


def build_cost(training: Training, *, free_bytes: int | None = None, **values: Any) -> RunCost:
    steps = tuple(build_step_cost(phase.depth, **values) for phase in training.phases)
    return RunCost(steps, decode_seconds=0.02, read_seconds=0.006, free_bytes=free_bytes)


def test_run_cost_of_many_phases_is_an_upper_bound(animals: Path) -> None:
    training = create_small_training(animals, **GRADUAL)
    cost = measure_run_cost(training)
    depths = [phase.depth for phase in training.phases]
    assert depths == [1, 2, 3, 4, 5, 6]
    assert len(cost.step_costs) == len(depths)
    for depth, step in zip(depths, cost.step_costs, strict=True):
        assert step.depth >= depth
    assert len({step.depth for step in cost.step_costs}) == 3
    assert cost.step_costs[-1].depth == 6


def test_run_cost_of_few_phases_is_measured_for_each(animals: Path) -> None:
    training = create_small_training(
        animals, unfreeze__name="head_first", unfreeze__params={"epochs": 1}
    )
    assert [step.depth for step in measure_run_cost(training).step_costs] == [1, 6]


def test_measure_run_cost_changes_neither_module_nor_files(animals: Path) -> None:
    training = create_small_training(animals, model__batch_norm="train", augment__name="strong")
    before = copy_state(training.module)
    files = list_tree(animals)
    config = training.config.model_dump()
    measure_run_cost(training)
    assert_same_bits(copy_state(training.module), before)
    assert training.config.model_dump() == config
    assert list_tree(animals) == files


@pytest.mark.parametrize("cache", ["off", "on"])
def test_measure_run_cost_times_reading_with_and_without_cache(
    cache: str, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    for augment in ("none", "medium"):
        training = create_small_training(animals, data__cache=cache, augment__name=augment)
        assert (training.cache is None) == (cache == "off")
        cost = measure_run_cost(training)
        assert cost.decode_seconds > 0
        is_stored_ready = cache == "on" and augment == "none"
        assert (cost.read_seconds == 0) == is_stored_ready
    assert not (tmp_path / "cache").exists(), "nothing is stored before the run"


@pytest.mark.parametrize(
    ("free_memory", "devices", "expected"), [(1000, 1, 1000), (1001, 2, 500), (None, 2, None)]
)
def test_free_bytes_are_divided_by_local_processes(
    free_memory: int | None,
    devices: int,
    expected: int | None,
    animals: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune.builders.cost.get_free_memory", lambda accelerator: free_memory)
    assert (
        measure_run_cost(create_small_training(animals, trainer__devices=devices)).free_bytes
        == expected
    )


@pytest.mark.parametrize(
    ("batch_size", "num_fitting", "expected"),
    [
        (8, 8, 1),
        (8, 7, 2),
        (8, 4, 2),
        (8, 3, 4),
        (8, 1, 8),
        (8, 0, 8),  # not even one fits: the run will fail
        (24, 23, 2),
        (24, 11, 3),
        (24, 5, 6),
        (7, 6, 7),  # a prime can only be split into single images
    ],
)
def test_fit_batch_to_memory_uses_fewest_micro_batches_that_fit(
    batch_size: int, num_fitting: int, expected: int, animals: Path
) -> None:
    training = create_small_training(
        animals, trainer__batch_size=batch_size, model__batch_norm="frozen"
    )
    cost = build_cost(training, parameter_bytes=0, fixed_bytes=0)
    # a tenth of the free memory must stay free
    free = cost.step_costs[-1].compute_total_bytes(num_fitting) / 0.9
    split = fit_batch_to_memory(training, replace(cost, free_bytes=round(free + 10)))
    assert (
        split.config.trainer.accumulate_grad_batches
        == split.datamodule.loader_options.accumulate_grad_batches
        == expected
    )
    assert get_micro_batch_size(split) == batch_size // expected
    assert batch_size % expected == 0
    # everything else is unchanged
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
@pytest.mark.parametrize(("batch_size", "expected"), [(8, 4), (9, 3), (3, 1)])
def test_fit_batch_to_memory_keeps_pairs_for_mixup_and_live_batch_norm(
    batch_size: int, expected: int, setting: dict[str, Any], animals: Path
) -> None:
    settings = {"trainer__batch_size": batch_size, "model__batch_norm": "frozen", **setting}
    training = create_small_training(animals, **settings)
    split = fit_batch_to_memory(training, build_cost(training, free_bytes=1))
    assert split.config.trainer.accumulate_grad_batches == expected


def test_fit_batch_to_memory_splits_the_batch_of_each_process(animals: Path) -> None:
    training = create_small_training(animals, trainer__batch_size=24, trainer__devices=2)
    cost = build_cost(training)
    free = round(cost.step_costs[-1].compute_total_bytes(4) / 0.9) + 10
    split = fit_batch_to_memory(training, replace(cost, free_bytes=free))
    assert split.config.trainer.accumulate_grad_batches == 3
    assert get_micro_batch_size(split) == 4


def test_fit_batch_to_memory_uses_the_deepest_phase(animals: Path) -> None:
    training = create_small_training(
        animals, unfreeze__name="head_first", unfreeze__params={"epochs": 1}
    )
    cost = build_cost(training)
    shallow, deep = cost.step_costs
    free = round(shallow.compute_total_bytes(8) / 0.9) + 10
    assert deep.compute_total_bytes(8) > free
    assert fit_batch_to_memory(training, replace(cost, free_bytes=free)).config != training.config


def test_fit_batch_to_memory_unknown_free_memory_changes_nothing(animals: Path) -> None:
    training = create_small_training(animals)
    assert fit_batch_to_memory(training, build_cost(training, free_bytes=None)) is training


def test_measure_run_cost_out_of_memory_raises_out_of_memory_error(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(self: StepProfiler, depth: int) -> StepCost:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes")

    monkeypatch.setattr(StepProfiler, "measure", run_out)
    with pytest.raises(OutOfMemoryError, match=r"12 bytes.*--image-size.*--backbone"):
        measure_run_cost(create_small_training(animals))


def test_measure_run_cost_other_error_is_propagated(animals: Path) -> None:
    training = create_small_training(animals)

    def fail(logits: Any, labels: Any) -> Any:
        raise IndexError("of a custom loss")

    training.module.recipe = replace(training.module.recipe, criterion_schedule=lambda _: fail)
    with pytest.raises(IndexError, match="of a custom loss"):
        measure_run_cost(training)


def test_describe_cost_memory_adds_up(animals: Path) -> None:
    training = set_accumulation(create_small_training(animals), 2)
    memory = describe_cost(training, build_cost(training, free_bytes=3_000_000_000))["memory_gb"]
    expected = {"parameters": 0.01, "gradients": 0.006, "optimizer": 0.012, "activations": 0.1205}
    for name, gigabytes in expected.items():  # of 4 images at depth 6
        assert memory[name] == pytest.approx(gigabytes, abs=0.0006), name
    assert memory["total"] == pytest.approx(sum(expected.values()), abs=0.0006)
    assert memory["free"] == 3
    assert describe_cost(training, build_cost(training))["memory_gb"]["free"] is None


def test_describe_cost_keeps_kilobytes_of_small_networks(animals: Path) -> None:
    training = create_small_training(animals)
    cost = build_cost(training, parameter_bytes=20_616, gradient_bytes=20_616)
    memory = describe_cost(training, cost)["memory_gb"]
    assert memory["parameters"] == memory["gradients"] == pytest.approx(20_616e-9)


def compute_epoch_seconds(training: Training, *, num_workers: int) -> list[float]:
    """Return the seconds of each epoch: 24 images train, 15 and 15 of these are measured."""

    def compute_image_seconds(step: float, reading: float) -> float:
        return max(step, reading / num_workers) if num_workers else step + reading

    epochs = [range(phase.first_epoch, phase.last_epoch + 1) for phase in training.phases]
    return [
        24 * compute_image_seconds(0.01 * phase.depth, 0.006)
        + (15 + 15) * compute_image_seconds(0.004, 0.02)
        for phase, numbers in zip(training.phases, epochs, strict=True)
        for _ in numbers
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_describe_cost_seconds_cover_every_image_of_every_epoch(
    num_workers: int, animals: Path
) -> None:
    training = create_small_training(
        animals,
        **{**GRADUAL, "unfreeze__params": {"start": 2, "every": 3, "step": 5}},
        data__num_workers=num_workers,
        data__cache="off",
    )
    tree = describe_cost(training, build_cost(training))
    epochs = compute_epoch_seconds(training, num_workers=num_workers)
    assert [(p["first_epoch"], p["last_epoch"]) for p in tree["phases"]] == [(1, 2), (3, 7)]
    found = [phase["seconds"] for phase in tree["phases"]]
    assert found == pytest.approx([sum(epochs[:2]), sum(epochs[2:])], abs=0.06)
    assert tree["train_eval_images"] == 15
    image = 0.024 if num_workers == 0 else 0.01
    extra = [phase["train_eval_seconds"] for phase in tree["phases"]]
    assert extra == pytest.approx([2 * 15 * image, 5 * 15 * image], abs=0.06)
    fraction = 15 * image / (epochs[-1] - 15 * image)
    assert tree["phases"][1]["train_eval_fraction"] == pytest.approx(fraction, abs=1e-4)
    assert tree["cache_fill_seconds"] == 0
    assert tree["seconds"] == pytest.approx(sum(found), abs=0.06)
    assert tree["micro_batch_size"] == 8
    speeds = [phase["images_per_second"] for phase in tree["phases"]]
    steps = [0.01 + 0.006, 0.06 + 0.006] if num_workers == 0 else [0.01, 0.06]
    assert speeds == pytest.approx([1 / seconds for seconds in steps], abs=0.06)


def test_describe_cost_local_processes_share_the_cpu(animals: Path) -> None:
    one, two = (
        create_small_training(animals, trainer__devices=n, data__cache="off") for n in (1, 2)
    )
    assert describe_cost(one, build_cost(one))["seconds"] == pytest.approx(
        describe_cost(two, build_cost(two))["seconds"]
    )


def test_describe_cost_counts_cache_fill_once_per_image(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("finetune.builders.cost.count_available_cores", lambda: 2)
    training = create_small_training(animals, data__cache="on")
    assert training.cache is not None
    num_images = len(training.data.train) + len(training.data.val)
    tree = describe_cost(training, build_cost(training, train_seconds_per_image=1.0))
    assert tree["cache_fill_seconds"] == pytest.approx(num_images * 0.02 / 2, abs=0.06)
    assert tree["seconds"] == pytest.approx(
        tree["cache_fill_seconds"] + sum(phase["seconds"] for phase in tree["phases"]), abs=0.11
    )
    # images in the cache are not decoded again
    cached = replace(training, cache=replace(training.cache, new_bytes=0))
    assert describe_cost(cached, build_cost(cached))["cache_fill_seconds"] == 0
    # and validation reads from the cache, as many training images included
    val = (15 + 15) * 2 * 0.004
    reading = describe_cost(cached, build_cost(cached, train_seconds_per_image=0.0))["seconds"]
    assert reading == pytest.approx(2 * 24 * 0.006 + val, abs=0.06)


@pytest.mark.parametrize("schedule", ["linear_probe", "gradual"])
def test_full_finetuning_bytes_equal_those_of_a_run_with_all_layers(
    schedule: str, animals: Path
) -> None:
    whole = create_small_training(animals, unfreeze__name="all")
    expected = describe_cost(whole, measure_run_cost(whole))["memory_gb"]["total"]
    other = create_small_training(animals, unfreeze__name=schedule)
    before = copy_state(other.network.module)
    num_bytes = measure_full_finetuning_bytes(other)
    assert num_bytes is not None
    assert num_bytes / 1e9 == pytest.approx(expected)
    assert num_bytes > 4 * sum(p.nbytes for p in whole.network.module.parameters())
    assert_same_bits(copy_state(other.network.module), before)


def test_full_finetuning_bytes_out_of_memory_is_none(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = create_small_training(animals)

    def fail_with(error: Exception) -> None:
        def raise_error(self: StepProfiler, depth: int) -> None:
            assert depth == len(training.module.classifier.groups)
            raise error

        monkeypatch.setattr(StepProfiler, "measure_memory", raise_error)

    fail_with(torch.OutOfMemoryError("CUDA out of memory."))
    assert measure_full_finetuning_bytes(training) is None
    fail_with(ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        measure_full_finetuning_bytes(training)

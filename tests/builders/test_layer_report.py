"""Layers of a run, compared with the measured cost of its steps."""

from pathlib import Path

import pytest

from finetune.builders import (
    describe_cost,
    describe_layers,
    get_micro_batch_size,
    measure_run_cost,
)
from finetune.errors import OutOfMemoryError
from finetune.training.step_cost import StepProfiler
from tests.support.networks import copy_state
from tests.support.runs import assert_same_bits, create_small_training

PHASES = {
    "unfreeze__name": "milestones",
    "unfreeze__params": {"depths": {0: 1, 1: 3, 2: 6}},
    "trainer__epochs": 4,
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_describe_layers_activations_equal_the_cost_of_each_phase(
    animals: Path, precision: str
) -> None:
    training = create_small_training(animals, **PHASES, trainer__precision=precision)
    layers = describe_layers(training)
    cost = measure_run_cost(training)
    batch_size = get_micro_batch_size(training)
    for phase, step in zip(layers["phases"], cost.step_costs, strict=True):
        expected = step.fixed_bytes + batch_size * step.activation_bytes
        kept = phase["activation_bytes"] + phase["fixed_bytes"]
        assert kept == pytest.approx(expected, rel=1e-3)
    assert [phase["first_epoch"] for phase in layers["phases"]] == [1, 2, 3]
    total = describe_cost(training, cost)["memory_gb"]["activations"]
    totals = layers["totals"]
    kept = totals["activation_bytes"] + totals["fixed_bytes"]
    assert kept == pytest.approx(1e9 * total, abs=1e6)
    is_copied = precision != "32-true"
    assert (totals["fixed_bytes"] >= 2 * 0.9 * totals["num_parameters"]) == is_copied
    by_name = {row["name"]: row for row in layers["layers"]}
    largest = [by_name[row["name"]] for row in layers["largest"]["activation_bytes"]]
    assert all(row["activation_bytes"] > row["num_activations"] for row in largest)


def test_describe_layers_has_all_parameters_and_groups_and_changes_nothing(animals: Path) -> None:
    training = create_small_training(animals)
    before = copy_state(training.module)
    layers = describe_layers(training)
    classifier = training.module.classifier
    num_parameters = sum(group.num_parameters for group in classifier.groups)
    assert layers["totals"]["num_parameters"] == num_parameters
    named = [row["group"] for row in layers["layers"] if row["group"] is not None]
    assert list(dict.fromkeys(named)) == [group.name for group in reversed(classifier.groups)]
    for group in classifier.groups:
        rows = [row for row in layers["layers"] if row["group"] == group.name]
        assert sum(row["num_parameters"] for row in rows) == group.num_parameters
    assert_same_bits(before, copy_state(training.module))


def test_describe_layers_of_a_probe_keeps_only_the_input_of_the_head(animals: Path) -> None:
    probe_only = {"unfreeze__name": "linear_probe", "probe__enabled": "on", "trainer__epochs": 1}
    layers = describe_layers(create_small_training(animals, **probe_only))
    kept = {row["name"] for row in layers["layers"] if row["activation_bytes"]}
    assert kept <= {"fc", "(loss)"}
    assert layers["phases"] == []


def test_describe_layers_out_of_memory_raises_out_of_memory_error(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(StepProfiler, "measure_layers", fail)
    with pytest.raises(OutOfMemoryError, match="--image-size"):
        describe_layers(create_small_training(animals))

"""Notes of a plan on schedules whose rates do not change, or vanish, in the epochs of the run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.builders import Training
from finetune.builders.optimization.schedule_notes import (
    describe_few_steps,
    describe_late_unfreezing,
    describe_schedule_effect,
)
from finetune.commands.fit.prepare import prepare_run
from finetune.config.load import replace_values
from finetune.types import Phase
from tests.support.helpers import RecordingReporter
from tests.support.runs import create_small_training, write_photos, write_weights

NUM_EPOCHS = 6


@pytest.fixture
def training(photos: Path) -> tuple[Training, list[str]]:
    """Return a run of six epochs whose schedule has no effect, and the notes of its plan."""
    recorder = RecordingReporter()
    config = finetune.Config.model_validate(
        {
            "data": {"path": str(photos), "image_size": 32, "num_workers": 0},
            "model": {"backbone": "test_resnet", "weights": "random"},
            "trainer": {"accelerator": "cpu", "epochs": NUM_EPOCHS, "batch_size": 4},
            "lr_schedule": {"name": "step", "params": {"every": 100}},
        }
    )
    return prepare_run(config, recorder)[0], recorder.notes


def test_schedules_without_effect_are_noted(training: tuple[Training, list[str]]) -> None:
    prepared, notes = training
    (note,) = [note for note in notes if "lr_schedule" in note]
    assert "the first reduction would follow epoch 100, and there are 6 epochs" in note

    def describe(*, epochs: int = NUM_EPOCHS, **values: Any) -> str | None:
        defaults = {"name": "cosine", "params": {}, "final_factor": 0.01}
        keys = {f"lr_schedule.{key}": value for key, value in (defaults | values).items()}
        config = replace_values(prepared.config, {**keys, "trainer.epochs": epochs})
        return describe_schedule_effect(replace(prepared, config=config))

    for values, expected in (
        ({"name": "step", "params": {"every": 6}}, "follow epoch 6, and there are 6 epochs"),
        ({"name": "step", "epochs": 1}, "follow epoch 1, and there is 1 epoch"),
        ({"name": "step", "params": {"gamma": 1}}, "never changes the learning rates: gamma=1"),
        ({"name": "plateau", "params": {"patience": 4}}, "with patience 4, epoch 7 is the first"),
        ({"name": "plateau", "params": {"min_factor": 1}}, "min_factor is 1"),
        ({"name": "inverse_time", "params": {"decay": 0}}, "never changes .*decay=0"),
        ({"name": "cosine", "final_factor": 1}, "never changes .*final_factor is 1"),
        ({"name": "exponential", "params": {"gamma": 0.001}}, "below 0.001 .* epoch 2 of 6 on"),
    ):
        remark = describe(**values)
        assert remark is not None, values
        assert re.search(expected, remark), remark
    silent: tuple[dict[str, Any], ...] = (
        {"name": "cosine"},
        {"name": "constant"},
        {"name": "one_cycle"},
        {"name": "step", "params": {"every": 5}},
        {"name": "plateau", "params": {"patience": 3}},
        {"name": "exponential", "params": {"gamma": 0.1}},
    )
    for choice in silent:
        assert describe(**choice) is None, choice


def test_unfreezing_after_the_last_epoch_is_noted(training: tuple[Training, list[str]]) -> None:
    prepared, _ = training
    keys = {"unfreeze.name": "gradual", "unfreeze.params": {"start": 99}}
    config = replace_values(prepared.config, keys)
    late = replace(prepared, config=config, phases=(Phase(0, NUM_EPOCHS - 1, 1),))
    remark = describe_late_unfreezing(late)
    assert remark is not None
    assert "unfreezes no layer of the backbone in these 6 epochs" in remark
    in_time = (Phase(0, 4, 1), Phase(5, NUM_EPOCHS - 1, 3))
    assert describe_late_unfreezing(replace(late, phases=in_time)) is None
    assert describe_late_unfreezing(prepared) is None, "random weights train whole"


def test_few_steps_after_a_probe_are_noted(tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos")
    weights = write_weights(tmp_path / "weights.pth")

    def prepare(**values: Any) -> Training:
        given = {"model__weights": str(weights), "trainer__epochs": 2, **values}
        return create_small_training(data, **given)

    few = prepare()
    remark = describe_few_steps(few)
    assert remark is not None
    assert f"of {2 * few.steps_per_epoch} steps (2 epochs) gains little" in remark
    found = re.search(r"trainer\.epochs=(\d+) makes as many", remark)
    assert found is not None
    assert describe_few_steps(prepare(trainer__epochs=int(found[1]))) is None
    assert describe_few_steps(prepare(trainer__epochs=int(found[1]) - 1)) is not None
    others: tuple[dict[str, Any], ...] = (
        {"optim__lr": 1e-3},
        {"probe__enabled": "off"},
        {"unfreeze__name": "linear_probe", "trainer__epochs": 1},
    )
    for values in others:
        assert describe_few_steps(prepare(**values)) is None, values
    chosen = replace(few, reasons={**few.reasons, "trainer.epochs": "24 training images"})
    assert describe_few_steps(chosen) is None

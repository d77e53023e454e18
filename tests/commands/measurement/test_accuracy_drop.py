"""Tests of the message about epochs that fall below the linear probe."""

from pathlib import Path

import pytest

import finetune
from finetune.commands.measurement.accuracy_drop import find_accuracy_drop
from tests.support.helpers import RecordingReporter
from tests.support.runs import create_small_config, write_weights


def build_rows(*values: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, "val/accuracy": value} for epoch, value in enumerate(values)]


@pytest.mark.parametrize("values", [(0.9,), (0.9, 0.81, 0.95), (0.5, 0.6, 0.46)])
def test_epochs_that_keep_most_of_the_probe_are_no_drop(values: tuple[float, ...]) -> None:
    assert find_accuracy_drop(build_rows(*values), "val/accuracy") is None


def test_drop_names_the_lowest_epoch_and_what_to_change() -> None:
    drop = find_accuracy_drop(build_rows(0.9, 0.7, 0.5, 0.85), "val/accuracy")
    assert drop is not None
    assert drop.describe("optim.feature_change", 1.0) == (
        "val/accuracy fell from 90.0% (linear probe) to 50.0% after epoch 2 and was 85.0% after "
        "the last epoch. Lower optim.feature_change (now 1)."
    )


def test_drop_that_is_made_up_for_needs_no_advice() -> None:
    drop = find_accuracy_drop(build_rows(0.9, 0.7, 0.95), "val/accuracy")
    assert drop is not None
    assert drop.describe("optim.lr", 0.1).endswith("and rose to 95.0% after the last epoch.")


def test_training_without_a_probe_has_no_drop() -> None:
    rows = [{"epoch": 1, "val/accuracy": 0.9}, {"epoch": 2, "val/accuracy": 0.1}]
    assert find_accuracy_drop(rows, "val/accuracy") is None


def test_fit_tells_of_a_learning_rate_that_destroys_the_probe(
    animals: Path, tmp_path: Path
) -> None:
    config = create_small_config(
        data__path=str(animals),
        model__weights=str(write_weights(tmp_path / "weights.pth")),
        optim__lr=3.0,
        trainer__epochs=2,
        output=str(tmp_path / "run"),
    )
    reporter = RecordingReporter()
    finetune.fit(config, reporter=reporter)
    (note,) = [note for note in reporter.notes if "(linear probe)" in note]
    assert note.startswith("val/loss exploded in epoch ")
    assert "val/accuracy fell from " in note
    assert note.endswith("Lower optim.lr (now 3).")

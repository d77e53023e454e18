"""Tests of ``finetune.commands.tune.trials.trial_facts``, on runs whose end is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import finetune
from finetune.commands.tune.trials.trial_facts import is_probe_kept
from finetune.system.run_folder import RunFolder
from tests.support.runs import write_weights

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

pytestmark = pytest.mark.runs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optim.lr": 3.0, "trainer.epochs": 1}, True),  # a rate that destroys the features
        ({"unfreeze.name": "linear_probe"}, False),  # no epoch was to follow
    ],
)
def test_is_probe_kept_only_where_epochs_were_worse(
    options: dict[str, Any], expected: bool, animals: Path, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "weights.pth")
    result = finetune.fit(
        animals,
        backbone="test_resnet",
        weights=str(weights),
        image_size=32,
        config={"trainer.accelerator": "cpu", **options},
        output=tmp_path / "run",
    )
    assert is_probe_kept(RunFolder(result.run_dir)) is expected


def test_is_probe_kept_is_false_for_trained_weights(trained: FitResult) -> None:
    assert not is_probe_kept(RunFolder(trained.run_dir))

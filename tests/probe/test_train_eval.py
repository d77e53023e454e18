"""Row 0 of ``metrics.csv``: the probe on the sample of training images, as an evaluation has it."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.data.training_data import TrainingData
from finetune.inference.predictor import Predictor
from finetune.system.run_folder import RunFolder
from tests.support.runs import (
    create_small_config,
    force_last_stage_improvement,
    read_rows,
    write_weights,
)

pytestmark = pytest.mark.runs


@pytest.mark.parametrize("depth", [1, 2])
def test_probe_row_has_the_metrics_of_the_sample(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    run = RunFolder(tmp_path / "run")
    if depth > 1:
        force_last_stage_improvement(monkeypatch)
    finetune.fit(
        create_small_config(
            data__path=str(animals),
            output=str(run.path),
            model__weights=str(write_weights(tmp_path / "weights.pth")),
            unfreeze__name="linear_probe",
            trainer__epochs=1,
            probe__depth=depth,
            report__enabled="off",
        )
    )
    config = read_stored_config(run)
    data = TrainingData.from_manifest(read_stored_manifest(run, config))
    rows = data.sample_train_rows(seed=config.split_seed)
    assert len(rows) == 15
    predictor = Predictor(load_model(run.best_checkpoint_path), device="cpu", batch_size=4)
    logits = predictor.predict_logits([data.train.paths[row] for row in rows])[:, 0].float()
    target = torch.from_numpy(data.train.labels[rows])
    (row,) = read_rows(run.path)
    expected = float(cross_entropy(logits, target))
    assert float(row["train_eval/loss"]) == pytest.approx(expected, abs=1e-4)
    accuracy = float((logits.argmax(dim=1) == target).float().mean())
    assert float(row["train_eval/accuracy"]) == pytest.approx(accuracy)

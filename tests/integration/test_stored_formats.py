"""Run folders, checkpoints and bundles of version 0.1.0 still work.

``tests/files/run_0_1_0`` is a run of two epochs that version 0.1.0 wrote; the expected numbers are
those with which version 0.1.0 itself resumed it to four epochs.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.config.renamed_keys import RENAMED_KEYS, rename_keys
from finetune.config.schema import Config
from finetune.training.schedules.factor_scheduler import FactorScheduler

STORED_RUN = Path(__file__).parents[1] / "files" / "run_0_1_0"
VAL_LOSSES = [1.0971530675888062, 1.0964761972427368, 1.0950826406478882, 1.0930521488189697]
"""Validation loss of epochs 1 to 4 as version 0.1.0 computed it."""
BEST_VAL_LOSS = 1.0950826839778314
STORED_VAL_LOSS = 1.0971530590992344


@pytest.fixture(scope="module")
def stored_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the photos that the stored run was trained on."""
    root = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(7)
    for channel, (name, count) in enumerate((("ant", 10), ("bee", 8), ("wasp", 4))):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 170, (36, 40, 3))
            pixels[..., channel] += 60
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / name / f"{name}{number:02}.png")
    return root


@pytest.fixture
def stored_run(stored_photos: Path, tmp_path: Path) -> Path:
    """Return a copy of the stored run, with the paths of this machine."""
    run = tmp_path / "run"
    shutil.copytree(STORED_RUN, run)
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    text = text.replace("PHOTOS", str(stored_photos)).replace("RUN", str(run))
    config.write_text(text, encoding="utf-8")
    return run


def test_resume_of_0_1_0_run_continues_with_same_numbers(
    stored_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # version 0.1.0 took the first step of a longer schedule at the rate of the shorter one
    monkeypatch.setattr(FactorScheduler, "_set_rates", lambda _: None)
    result = finetune.resume(stored_run, flags={"trainer.epochs": ("--epochs", 4)})
    with (stored_run / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx(VAL_LOSSES, rel=1e-6)
    assert result.metrics["val"]["loss"] == pytest.approx(BEST_VAL_LOSS, rel=1e-6)
    checkpoint = torch.load(stored_run / "checkpoints" / "last.ckpt", weights_only=True)
    states = checkpoint["callbacks"]
    assert set(states) == {"checkpoint/best", "checkpoint/last", "early_stopping"}
    # epoch 3 is the best by macro-F1 and epoch 4 is not better: the count went on from the old one
    assert states["early_stopping"]["wait_count"] == 1


def test_resume_of_0_1_0_run_keeps_its_best_score(stored_run: Path) -> None:
    file = stored_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for key, state in checkpoint["callbacks"].items():
        if key.startswith("MovableCheckpoint") and state["monitor"] is not None:
            best = torch.tensor(0.99)
            path = state["best_model_path"]
            state.update(best_model_score=best, kth_value=best, best_k_models={path: best})
    torch.save(checkpoint, file)
    before = (stored_run / "checkpoints" / "best.ckpt").read_bytes()
    finetune.resume(stored_run, flags={"trainer.epochs": ("--epochs", 4)})
    # a score that no epoch reaches: had it been forgotten, epoch 3 would have replaced the file
    assert (stored_run / "checkpoints" / "best.ckpt").read_bytes() == before


def test_evaluate_of_0_1_0_run_gives_stored_numbers(stored_run: Path) -> None:
    for model in (stored_run, stored_run / "bundle"):
        data = None if model == stored_run else _val_folder(stored_run)
        result = finetune.evaluate(model, data)
        assert result.evaluation.metrics["loss"] == pytest.approx(STORED_VAL_LOSS, rel=1e-5)


def test_predict_and_export_of_0_1_0_bundle_work(stored_run: Path, tmp_path: Path) -> None:
    photos = _val_folder(stored_run)
    predictions = finetune.predict(stored_run / "bundle", photos).predictions
    assert len(predictions) == 5
    export = finetune.export(stored_run / "bundle", tmp_path / "export")
    assert (export.output / "model.safetensors").is_file()
    assert json.loads((export.output / "finetune.json").read_text(encoding="utf-8"))["classes"]


def test_config_keys_of_0_1_0_are_all_known_today() -> None:
    known = Config().model_dump()
    for old, new in RENAMED_KEYS.items():
        section, _, key = new.partition(".")
        assert key in known[section]
        old_key = old.partition(".")[2]
        assert old_key not in known[section]
        assert rename_keys({section: {old_key: 1}}) == {section: {key: 1}}


def _val_folder(run: Path) -> Path:
    """Return a class-folder copy of the run's validation images."""
    root = run.parent / "val"
    photos = next(
        Path(line.split(":", 1)[1].strip())
        for line in (run / "config.yaml").read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("path:")
    )
    with (run / "manifest.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] == "val":
                (root / row["label"]).mkdir(parents=True, exist_ok=True)
                shutil.copy(photos / row["path"], root / row["label"])
    return root

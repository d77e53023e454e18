"""Tests of ``finetune.commands.predict.predict``."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ConfigError, DataError, RunFolderError, StorageError
from finetune.inference.predictor import Predictor
from tests.conftest import CLASSES
from tests.support.helpers import RecordingReporter, list_names, mount_tiny_disk, write_images

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

NAMES = ("a, b.png", "nested/deep/é.PNG", 'quote".png')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of images with special names at several depths, and two other files."""
    root = write_images(tmp_path / "new", *NAMES)
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").touch()
    (root / ".hidden.png").touch()
    return root


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predict_csv_has_row_per_file(trained: FitResult, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "predictions.csv"
    recorder = RecordingReporter()
    finetune.predict(trained.run_dir, folder, output=output, device="cpu", reporter=recorder)
    rows = read_csv(output)
    assert list(rows[0]) == ["path", "label", "probability", "error"]
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows) == 4
    predictor = Predictor(load_model(trained.run_dir), device="cpu")
    for name in NAMES:
        row = by_path[str(folder / name)]
        expected = predictor.predict_proba([folder / name])[0]
        assert row["label"] == CLASSES[int(expected.argmax())]
        assert float(row["probability"]) == pytest.approx(float(expected.max()), abs=1e-6)
        assert row["error"] == ""
    assert by_path[str(folder / "broken.jpg")] == {
        "path": str(folder / "broken.jpg"),
        "label": "",
        "probability": "",
        "error": "not an image: text",
    }
    assert len(recorder.warnings) == 1
    assert "1 file without prediction" in recorder.warnings[0]
    assert "1 file without an image suffix left out: notes.txt" in recorder.notes
    assert list_names(output.parent) == ["predictions.csv"]


@pytest.mark.parametrize(("top_k", "ranks"), [(2, 2), (3, 3), (10, 3)])
def test_predict_top_k_has_label_and_probability_per_rank(
    trained: FitResult, folder: Path, tmp_path: Path, top_k: int, ranks: int
) -> None:
    output = tmp_path / "out.csv"
    finetune.predict(trained.run_dir, folder, output=output, top_k=top_k, device="cpu")
    rows = read_csv(output)
    suffixes = ["", "_2", "_3"][:ranks]
    ranked = [name + suffix for suffix in suffixes for name in ("label", "probability")]
    assert list(rows[0]) == ["path", *ranked, "error"]
    for row in rows:
        if row["error"]:
            assert set(row.values()) == {row["path"], "", row["error"]}
            continue
        probabilities = [float(row[f"probability{suffix}"]) for suffix in suffixes]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len({row[f"label{suffix}"] for suffix in suffixes}) == ranks
        if ranks == 3:
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_predict_tta_averages_over_flip_and_is_reported(
    flipped_bundle: Path, folder: Path, trained: FitResult
) -> None:
    result = finetune.predict(flipped_bundle, folder, top_k=3, device="cpu", tta=True)
    assert result.to_json()["tta"] is True
    assert finetune.predict(flipped_bundle, folder, device="cpu").to_json()["tta"] is False
    predictor = Predictor(load_model(flipped_bundle), device="cpu", tta=True)
    for prediction in result.predictions:
        row = predictor.predict_proba([Path(prediction.path)])[0]
        expected = sorted(row.tolist(), reverse=True)
        assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match=r"--tta .*augment\.name=none"):
        finetune.predict(trained.run_dir, folder, device="cpu", tta=True)


def test_predict_single_file_has_one_prediction(trained: FitResult, folder: Path) -> None:
    result = finetune.predict(trained.run_dir, folder / NAMES[0], device="cpu")
    assert [p.path for p in result.predictions] == [str(folder / NAMES[0])]
    assert result.rejected == ()


def test_predict_json_equals_csv(trained: FitResult, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    result = finetune.predict(trained.run_dir, folder, output=output, top_k=2, device="cpu")
    tree = json.loads(json.dumps(result.to_json()))
    assert (tree["num_images"], tree["output"]) == (3, str(output))
    rows = {row["path"]: row for row in read_csv(output)}
    for entry in tree["predictions"]:
        row = rows[entry["path"]]
        assert entry["label"] == entry["top"][0]["label"] == row["label"]
        assert entry["top"][1]["label"] == row["label_2"]
        assert entry["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)
    assert {r["path"]: r["reason"] for r in tree["rejected"]} == {
        path: row["error"] for path, row in rows.items() if row["error"]
    }


def test_predict_non_utf8_name_is_rejected_and_escaped(
    trained: FitResult, folder: Path, tmp_path: Path
) -> None:
    bad = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    shutil.copy(folder / NAMES[0], bad)
    output = tmp_path / "out.csv"
    result = finetune.predict(trained.run_dir, folder, output=output, device="cpu")
    json.dumps(result.to_json(), ensure_ascii=False).encode()
    errors = [row["path"] for row in read_csv(output) if "not UTF-8" in row["error"]]
    assert errors == [f"{folder}/caf\\xe9.png"]


def test_predict_checkpoint_equals_bundle(trained: FitResult, folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "model.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    by_bundle = finetune.predict(trained.run_dir / "bundle", folder, top_k=3, device="cpu")
    assert finetune.predict(alone, folder, top_k=3, device="cpu") == by_bundle


def test_predict_batch_size_does_not_change_predictions(trained: FitResult, insects: Path) -> None:
    one, all_ = (
        finetune.predict(trained.run_dir, insects, device="cpu", batch_size=size).predictions
        for size in (1, 64)
    )
    for a, b in zip(one, all_, strict=True):
        assert (a.path, a.labels) == (b.path, b.labels)
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_predict_full_disk_keeps_previous_csv(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="4k") as disk:
        output = disk / "out.csv"
        output.write_text("old")
        with pytest.raises(StorageError, match=r"out\.csv: no space is left"):
            finetune.predict(trained.run_dir, insects, output=output, top_k=3, device="cpu")
        assert output.read_text() == "old"
        assert list_names(disk) == ["out.csv"]


def test_predict_without_readable_image_raises_data_error(
    trained: FitResult, tmp_path: Path
) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"empty file .*a\.png"):
        finetune.predict(trained.run_dir, tmp_path, device="cpu")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        finetune.predict(trained.run_dir, tmp_path, device="cpu")


def test_predict_output_is_folder_raises_run_folder_error(
    trained: FitResult, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"--output .*\.csv"):
        finetune.predict(trained.run_dir, folder, output=tmp_path, device="cpu")


def test_predict_missing_model_raises_before_reading_images(folder: Path) -> None:
    class FailingReporter(RecordingReporter):
        def start(self, task: str, total: int) -> None:
            raise AssertionError(task)

    with pytest.raises(RunFolderError, match=re.escape(str(folder))):
        finetune.predict(folder, folder, device="cpu", reporter=FailingReporter())

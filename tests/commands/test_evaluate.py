"""Tests of ``finetune.commands.evaluate``."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sklearn import metrics as reference

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ConfigError, DataError, RunFolderError
from finetune.inference.predictor import Predictor
from finetune.types import Split
from tests.conftest import CLASSES
from tests.support.helpers import RecordingReporter
from tests.support.runs import get_class_evaluation

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def rows_of(run: Path, split: str) -> list[dict[str, str]]:
    with (run / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["split"] == split]


@pytest.mark.parametrize("data_is_named", [False, True])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_run_equals_metrics_of_fit_bit_for_bit(
    trained: FitResult, insects: Path, split: str, data_is_named: bool
) -> None:
    recorder = RecordingReporter()
    result = finetune.evaluate(
        trained.run_dir,
        insects if data_is_named else None,
        split=Split(split),
        device="cpu",
        reporter=recorder,
    )
    assert dict(result.evaluation.metrics) == dict(trained.metrics[split])
    support = Counter(row["label"] for row in rows_of(trained.run_dir, split))
    assert {
        stats.name: stats.support for stats in get_class_evaluation(result).per_class
    } == support
    assert recorder.warnings == []
    assert split in recorder.notes[0]


def test_evaluate_without_split_takes_test_split(trained: FitResult) -> None:
    result = finetune.evaluate(trained.run_dir, device="cpu")
    assert result.split is Split.TEST
    assert dict(result.evaluation.metrics) == dict(trained.metrics["test"])


def test_evaluate_without_test_split_takes_val_split(trained: FitResult, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    text = (run / "manifest.csv").read_text(encoding="utf-8")
    (run / "manifest.csv").write_text(text.replace(",test,", ",train,"), encoding="utf-8")
    result = finetune.evaluate(run, device="cpu")
    assert result.split is Split.VAL
    assert dict(result.evaluation.metrics) == dict(trained.metrics["val"])
    with pytest.raises(DataError, match=r"no test split.* train, val\."):
        finetune.evaluate(run, split=Split.TEST, device="cpu")


def test_evaluate_metrics_equal_scikit_learn_on_predictions(
    trained: FitResult, insects: Path
) -> None:
    result = finetune.evaluate(trained.run_dir / "bundle", insects, device="cpu").to_json()
    predictions = finetune.predict(trained.run_dir, insects, device="cpu").predictions
    true = [Path(p.path).parent.name for p in predictions]
    predicted = [p.labels[0] for p in predictions]
    assert len(set(predicted)) > 1, "a constant model would prove little"

    assert result["num_images"] == len(true) == 38
    metrics = result["metrics"]
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(true, predicted), abs=1e-9)
    assert metrics["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(true, predicted), abs=1e-9
    )
    assert metrics["macro_f1"] == pytest.approx(
        reference.f1_score(true, predicted, average="macro"), abs=1e-9
    )
    table = reference.precision_recall_fscore_support(
        true, predicted, labels=CLASSES, zero_division=0
    )
    for name, *numbers in zip(CLASSES, *table, strict=True):
        stats = result["per_class"][name]
        assert stats["num_predicted"] == predicted.count(name)
        ours = [stats[key] or 0.0 for key in ("precision", "recall", "f1", "support")]
        assert ours == pytest.approx(numbers, abs=1e-9)
    assert result["confusion_matrix"]["counts"] == (
        reference.confusion_matrix(true, predicted, labels=CLASSES).tolist()
    )
    json.dumps(result)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_evaluate_batch_size_does_not_change_metrics(
    trained: FitResult, insects: Path, batch_size: int
) -> None:
    bundle = trained.run_dir / "bundle"
    found = finetune.evaluate(bundle, insects, device="cpu", batch_size=batch_size)
    expected = finetune.evaluate(bundle, insects, device="cpu")
    assert found.evaluation.metrics == pytest.approx(expected.evaluation.metrics, abs=1e-6)
    matrices = [get_class_evaluation(one).confusion_matrix for one in (found, expected)]
    assert matrices[0] == matrices[1]


def test_evaluate_tta_changes_loss_and_is_reported(
    flipped_bundle: Path, insects: Path, tmp_path: Path
) -> None:
    plain = finetune.evaluate(flipped_bundle, insects, device="cpu")
    result = finetune.evaluate(flipped_bundle, insects, device="cpu", tta=True)
    assert (plain.to_json()["tta"], result.to_json()["tta"]) == (False, True)
    assert result.evaluation.metrics["loss"] != plain.evaluation.metrics["loss"]
    predictor = Predictor(load_model(flipped_bundle), device="cpu", tta=True)
    files = sorted(insects.rglob("*.png"))
    true = [CLASSES.index(file.parent.name) for file in files]
    assert result.evaluation.metrics["loss"] == pytest.approx(
        reference.log_loss(true, predictor.predict_proba(files).numpy()), abs=1e-6
    )


def test_evaluate_tta_without_flip_training_raises_config_error(
    trained: FitResult, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--tta .*augment\.name=none"):
        finetune.evaluate(trained.run_dir, tmp_path / "gone", device="cpu", tta=True)


def test_evaluate_checkpoint_equals_bundle(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "model.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    found = finetune.evaluate(alone, insects, device="cpu").evaluation
    assert found == finetune.evaluate(trained.run_dir / "bundle", insects, device="cpu").evaluation


@pytest.fixture
def elsewhere(insects: Path, tmp_path: Path) -> Path:
    """Return split folders with copies of some images."""
    root = tmp_path / "elsewhere"
    for split, rows in (("train", slice(0, 4)), ("val", slice(4, 6)), ("test", slice(6, 9))):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for file in sorted((insects / name).iterdir())[rows]:
                shutil.copy(file, root / split / name)
    return root


@pytest.mark.parametrize(
    ("split", "count"), [(None, 9), (Split.TEST, 9), (Split.VAL, 6), (Split.TRAIN, 12)]
)
def test_evaluate_other_data_takes_chosen_split(
    trained: FitResult, elsewhere: Path, split: Split | None, count: int
) -> None:
    result = finetune.evaluate(trained.run_dir, elsewhere, split=split, device="cpu")
    assert result.evaluation.num_images == count
    assert result.split is (split or Split.TEST)


def test_evaluate_split_folder_takes_all_images(trained: FitResult, elsewhere: Path) -> None:
    result = finetune.evaluate(trained.run_dir, elsewhere / "test", device="cpu")
    assert (result.evaluation.num_images, result.split) == (9, None)
    with pytest.raises(DataError, match=r"no val split.*--split"):
        finetune.evaluate(trained.run_dir, elsewhere / "test", split=Split.VAL, device="cpu")


def write_csv(file: Path, rows: list[tuple[str, str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *rows])
    return file


def test_evaluate_accepts_split_as_string(trained: FitResult) -> None:
    result = finetune.evaluate(trained.run_dir, split="val", device="cpu")
    assert result.split is Split.VAL
    assert result.evaluation.num_images == len(rows_of(trained.run_dir, "val"))


@pytest.mark.parametrize("arguments", [{"split": "valid"}, {"device": "gpu"}])
def test_evaluate_unknown_split_or_device_raises_config_error(
    arguments: dict[str, str], trained: FitResult
) -> None:
    with pytest.raises(ConfigError, match=r"(split|device).* (val|cpu)"):
        finetune.evaluate(trained.run_dir, **arguments)  # type: ignore[arg-type]


def test_evaluate_training_images_warns_with_count(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    named = [
        (str(insects / row["path"]), row["label"])
        for split in ("train", "test")
        for row in rows_of(trained.run_dir, split)[:3]
    ]
    file = write_csv(tmp_path / "some.csv", named)
    recorder = RecordingReporter()
    finetune.evaluate(trained.run_dir, file, device="cpu", reporter=recorder)
    (warning,) = recorder.warnings
    assert "3 of 6 images" in warning


def test_evaluate_train_split_of_run_warns(trained: FitResult) -> None:
    recorder = RecordingReporter()
    result = finetune.evaluate(trained.run_dir, split=Split.TRAIN, device="cpu", reporter=recorder)
    assert result.evaluation.num_images == 24
    assert "24 of 24 images" in recorder.warnings[0]


def test_evaluate_csv_in_data_folder_of_run_takes_its_images(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    """The CSV lists 4 images; the 7 test images of the run must not be taken instead."""
    root = Path(shutil.copytree(insects, tmp_path / "insects"))
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace(str(insects), str(root)), encoding="utf-8")
    rows = [(f"fly/fly {i:02}.png", "fly") for i in range(2)]
    rows += [(f"bée/bée {i:02}.png", "bée") for i in range(2)]
    file = write_csv(root / "four.csv", rows)
    result = finetune.evaluate(run, file, device="cpu")
    assert result.evaluation.num_images == 4


def test_evaluate_unknown_class_raises_data_error(trained: FitResult, elsewhere: Path) -> None:
    (elsewhere / "test" / "fly").rename(elsewhere / "test" / "flyy")
    with pytest.raises(DataError, match=r"'flyy'.*'fly'\?"):
        finetune.evaluate(trained.run_dir, elsewhere / "test", device="cpu")


def test_evaluate_unreadable_files_are_rejected(trained: FitResult, elsewhere: Path) -> None:
    (elsewhere / "test" / "fly" / "empty.png").touch()
    (elsewhere / "test" / "fly" / "notes.txt").write_text("no image")
    recorder = RecordingReporter()
    result = finetune.evaluate(trained.run_dir, elsewhere / "test", device="cpu", reporter=recorder)
    assert result.evaluation.num_images == 9
    reasons = {entry.path: entry.reason for entry in result.rejected}
    assert reasons == {
        "fly/empty.png": "empty file",
        "fly/notes.txt": "unsupported image format (.txt)",
    }
    assert "2 files" in recorder.warnings[0]
    assert result.to_json()["rejected"][0].keys() == {"path", "reason"}


def test_evaluate_bundle_without_data_raises_config_error(trained: FitResult) -> None:
    bundle = trained.run_dir / "bundle"
    with pytest.raises(ConfigError, match=f"finetune evaluate {bundle} FOLDER"):
        finetune.evaluate(bundle, device="cpu")


def test_evaluate_missing_data_folder_of_run_raises_data_error(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    gone = tmp_path / "gone"
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace(str(insects), str(gone)), encoding="utf-8")
    with pytest.raises(DataError, match=f"7 of 7 images.*{re.escape(str(gone))}"):
        finetune.evaluate(run, device="cpu")


def test_evaluate_missing_device_raises_config_error(
    trained: FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device=cuda"):
        finetune.evaluate(trained.run_dir, device="cuda")


def test_evaluate_damaged_run_folder_raises_error(trained: FitResult, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    (run / "manifest.csv").write_text("path,label\na,b\n")
    with pytest.raises(DataError, match=r"manifest\.csv"):
        finetune.evaluate(run, device="cpu")
    (run / "config.yaml").unlink()
    with pytest.raises(RunFolderError, match=re.escape(str(run))):
        finetune.evaluate(run, device="cpu")

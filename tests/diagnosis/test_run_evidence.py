"""Reader of run folders, and the diagnosis at the end of a fit."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.cli.render.findings.diagnosis_lines import build_diagnosis_lines
from finetune.commands.diagnosis.fit_diagnosis import read_diagnosis, write_diagnosis
from finetune.commands.diagnosis.run_evidence import read_evidence
from finetune.commands.fit.fit import FitResult
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.diagnosis.diagnose import diagnose
from finetune.system.run_folder import RunFolder
from finetune.types import Split
from tests.diagnosis.cases import FIRING
from tests.diagnosis.made_runs import create_good_run
from tests.support.helpers import RecordingReporter


@pytest.fixture
def run(trained: FitResult, tmp_path: Path) -> RunFolder:
    """Return a copy of a finished run, which may be changed."""
    shutil.copytree(trained.run_dir, tmp_path / "run", symlinks=True)
    return RunFolder(tmp_path / "run")


def test_evidence_has_the_numbers_of_the_files(run: RunFolder) -> None:
    evidence = read_evidence(run)
    with run.metrics_path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    card = json.loads((run.bundle_dir / "finetune.json").read_text(encoding="utf-8"))
    details = card["facts"]["evaluations"]["val"]

    assert [row.epoch for row in evidence.curves.epochs] == [1, 2]
    for epoch, row in zip(evidence.curves.epochs, rows, strict=True):
        assert epoch.val["loss"] == float(row["val/loss"])
        assert epoch.train_eval["accuracy"] == float(row["train_eval/accuracy"])
        assert epoch.grad_norms["head"] == float(row["grad_norm/head"])
    assert evidence.curves.epochs[0].trained_groups == {"head"}
    assert len(evidence.curves.phase_starts) == 1
    assert evidence.settings["optim.lr"] == 0.01
    validation = evidence.validation
    assert validation is not None
    assert validation.num_images == details["num_images"] == evidence.data.num_val
    for entry in validation.classes:
        expected = details["per_class"][entry.name]
        assert (entry.support, entry.num_predicted) == (
            expected["support"],
            expected["num_predicted"],
        )
        assert entry.num_correct == round(expected["recall"] * expected["support"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_kept_model_has_one_accuracy_where_epochs_are_measured_in_half_precision(
    run: RunFolder, precision: str
) -> None:
    text = run.config_path.read_text(encoding="utf-8")
    assert "precision: 32-true" in text
    run.config_path.write_text(text.replace("precision: 32-true", f"precision: {precision}"))
    kept = read_evidence(run).curves.best_row
    assert kept is not None
    rows = list(csv.DictReader(run.metrics_path.read_text(encoding="utf-8").splitlines()))
    for row in rows:
        row["val/accuracy"] = "0.123"  # of another precision
    with run.metrics_path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    evidence = read_evidence(run)
    assert evidence.validation is not None
    assert evidence.validation.num_correct is not None
    measured = evidence.validation.num_correct / evidence.validation.num_images

    for epoch in evidence.curves.epochs:
        is_measured = precision == "bf16-mixed" and epoch.epoch == kept.epoch
        assert epoch.val_accuracy == (measured if is_measured else 0.123)


def test_mistakes_are_listed_with_the_least_probable_label_first(run: RunFolder) -> None:
    evidence = read_evidence(run)
    assert evidence.validation is not None
    with np.load(run.path / "val_predictions.npz") as stored:
        probabilities = stored["probabilities"]
    manifest = read_stored_manifest(run, read_stored_config(run))
    samples = manifest.get_samples(Split.VAL)
    expected = {
        sample.path: probabilities[row, manifest.classes.index(sample.label)]
        for row, sample in enumerate(samples)
        if manifest.classes[probabilities[row].argmax()] != sample.label
    }

    assert list(evidence.validation.mistakes) == sorted(expected, key=lambda path: expected[path])
    assert evidence.validation.label_noise is not None


def test_older_run_without_new_columns_and_files_is_read(run: RunFolder) -> None:
    rows = [
        {
            key: value
            for key, value in row.items()
            if not key.startswith(("train_eval/", "grad_norm/", "weight_change/"))
        }
        for row in csv.DictReader(run.metrics_path.read_text(encoding="utf-8").splitlines())
    ]
    with run.metrics_path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for path in (run.path / "val_predictions.npz", run.network_path, run.stages_path):
        path.unlink(missing_ok=True)
    evidence = read_evidence(run)

    assert evidence.data.num_train_eval == 0
    assert evidence.network is None
    assert evidence.validation is not None
    assert evidence.validation.loss_deviation is None
    assert sum(entry.support for entry in evidence.validation.classes) == evidence.data.num_val
    diagnose(evidence)


def test_run_without_metrics_and_bundle_has_no_curves(run: RunFolder) -> None:
    run.metrics_path.unlink()
    shutil.rmtree(run.bundle_dir)
    evidence = read_evidence(run)

    assert evidence.curves.rows == ()
    diagnose(evidence)


def test_fit_writes_its_diagnosis_and_returns_it(trained: FitResult) -> None:
    findings = json.loads(RunFolder(trained.run_dir).diagnosis_path.read_text(encoding="utf-8"))

    assert findings["version"] == 1
    assert trained.diagnosis == findings["findings"]
    assert trained.to_json()["diagnosis"] == findings["findings"]
    # 9 validation images decide nothing
    assert "small_validation" in {finding["rule"] for finding in findings["findings"]}


def test_diagnosis_that_fails_is_a_warning(run: RunFolder) -> None:
    run.manifest_path.write_text("nothing\n", encoding="utf-8")
    run.diagnosis_path.unlink()
    reporter = RecordingReporter()

    write_diagnosis(run, reporter=reporter)

    assert any("was not diagnosed" in message for message in reporter.warnings)
    assert read_diagnosis(run) is None


def test_console_shows_at_most_five_findings_in_80_columns() -> None:
    wrong = [diagnose(runs[0])[0].to_json() for name, runs in FIRING.items() if name != "leaks"]
    wrong = [one for one in wrong if one["severity"] in ("problem", "warning")]
    assert len(wrong) > 5

    lines = build_diagnosis_lines(wrong)

    assert all(len(line) <= 80 for line in lines)
    assert sum(line.startswith(("  problem:", "  warning:")) for line in lines) == 5
    assert lines[-1] == f"  {len(wrong) - 5} further findings in diagnosis.json"
    assert any(wrong[0]["option"] in line for line in lines)


def test_console_shows_one_line_for_a_good_run() -> None:
    findings = [finding.to_json() for finding in diagnose(create_good_run())]

    assert build_diagnosis_lines(findings) == ["Diagnosis: good fit"]
    assert build_diagnosis_lines([]) == ["Diagnosis: no fault in training was found"]


def test_console_names_the_notes_of_a_good_run_and_the_options_that_help() -> None:
    findings = [finding.to_json() for finding in diagnose(create_good_run())]
    (note,) = (one.to_json() for one in diagnose(FIRING["no_gain"][0]) if one.rule == "no_gain")

    assert build_diagnosis_lines([*findings, note]) == [
        "Diagnosis: good fit",
        "  note: Fine-tuning did not improve on the linear probe",
        f"    -> More epochs may help: {note['option']}",
        "  details in diagnosis.json",
    ]

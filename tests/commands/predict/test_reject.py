"""Rejected answers of ``predict`` and ``evaluate``."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import finetune
from finetune.bundle.rejection.rejection_statistics import load_rejection_statistics
from finetune.errors import ConfigError, ModelError, RunFolderError
from tests.cli.conftest import Cli
from tests.support.helpers import RecordingReporter
from tests.support.rejection_runs import write_noise


@pytest.mark.runs
def test_noise_is_unlike_the_training_images(digits_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv"
    finetune.predict(
        digits_run, write_noise(tmp_path / "noise"), reject=True, output=output, device="cpu"
    )
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rejected"] for row in rows] == ["true"] * 10
    assert {row["reason"] for row in rows} == {"unlike the training images"}
    threshold = max(load_rejection_statistics(digits_run).distances)
    assert all(float(row["distance"]) > threshold for row in rows)


def test_validation_images_are_rejected_at_the_rate(digits_run: Path) -> None:
    """Those of the run have the distances by which the threshold was chosen: 2 of 75 are beyond."""
    images = digits_run.parent / "digits-0-4" / "val"
    result = finetune.predict(digits_run, images, reject="false_rejections=0.05", device="cpu")
    judgements = [prediction.judgement for prediction in result.predictions]
    statistics = load_rejection_statistics(digits_run)
    found = sorted(judgement.distance for judgement in judgements if judgement is not None)
    assert found == pytest.approx(sorted(statistics.distances), abs=1e-3)
    assert sum(judgement.is_rejected for judgement in judgements if judgement is not None) == 2
    rejection = result.to_json()["rejection"]
    assert rejection["num_rejected"] == {"unlike the training images": 2}
    assert rejection["distance"]["expected_false_rejections"] == 3 / 76


def test_improbable_answers_are_rejected_for_a_precision(digits_run: Path) -> None:
    recorder = RecordingReporter()
    result = finetune.evaluate(
        digits_run, split="val", reject="precision=0.95", device="cpu", reporter=recorder
    )
    plain = result.to_json()["metrics"]["accuracy"]
    rejection = result.to_json()["rejection"]
    assert plain < 0.95 <= rejection["answered"]["precision"]
    assert 0 < rejection["answered"]["coverage"] < 1
    assert set(rejection["num_rejected"]) == {"low probability"}
    assert rejection["has_chosen"]
    # 75 images cannot show a precision of 95% unless next to none of them is wrong
    assert any("cannot show a precision of 95.0%" in line for line in recorder.warnings)


@pytest.mark.parametrize(
    "options", [{"tta": "crops"}, {"image_size": 48}, {"prior": "uniform"}, {"temperature": 2.0}]
)
def test_other_predictions_than_those_of_the_thresholds_are_refused(
    digits_run: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot apply with --.*Leave out one"):
        finetune.predict(digits_run, tmp_path, reject=True, **options)  # type: ignore[arg-type]


def test_too_few_images_for_a_rate_are_named(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at least 99 .* has 75. Allow false_rejections=0.02"):
        finetune.predict(digits_run, tmp_path, reject="false_rejections=0.01")


def test_several_models_are_refused(digits_run: Path, tmp_path: Path) -> None:
    images = write_noise(tmp_path / "noise", 1)
    with pytest.raises(ModelError, match=r"mean of 2 models\. Name one of them"):
        finetune.predict([digits_run, digits_run / "bundle"], images, reject=True)


def test_run_without_statistics_gets_them_by_evaluate(digits_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits_run, run, symlinks=True)
    file = run / "bundle" / "rejection.safetensors"
    before = file.read_bytes()
    file.unlink()
    for model in (run, run / "bundle"):
        with pytest.raises(RunFolderError, match=rf"finetune evaluate {run} --reject writes it"):
            finetune.predict(model, tmp_path, reject=True)
    finetune.evaluate(run, reject=True, device="cpu")
    assert load_file(file)["distances"] == pytest.approx(
        load_file(digits_run / "bundle" / file.name)["distances"], abs=1e-3
    )
    assert len(file.read_bytes()) == len(before)


@pytest.mark.runs
def test_folder_outside_of_a_run_is_told_to_name_the_run(digits_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "exported"
    shutil.copytree(digits_run / "bundle", copy)
    file = copy / "rejection.safetensors"
    for damage in (lambda: file.write_bytes(b"damaged"), file.unlink):
        damage()
        for command in (finetune.predict, finetune.evaluate):
            with pytest.raises(RunFolderError, match="name the run") as caught:
                command(copy, digits_run, reject=True)
            assert "finetune evaluate" not in str(caught.value)


def test_damaged_and_foreign_statistics_are_refused(digits_run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(digits_run / "bundle", bundle)
    file = bundle / "rejection.safetensors"
    intact = file.read_bytes()
    file.write_bytes(intact[:-10])
    with pytest.raises(RunFolderError, match="cannot be used"):
        load_rejection_statistics(bundle)
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(RunFolderError, match="SHA-256"):
        load_rejection_statistics(bundle)
    save_file({"features": np.zeros((2, 2), np.float16)}, file)
    with pytest.raises(RunFolderError, match="cannot be used"):
        load_rejection_statistics(bundle)
    file.write_bytes(intact)
    card = bundle / "finetune.json"
    digest = (digits_run / "bundle" / "finetune.json").read_text(encoding="utf-8")
    place = digest.index('"sha256": "') + len('"sha256": "')
    card.write_text(digest[:place] + "0" * 64 + digest[place + 64 :], encoding="utf-8")
    with pytest.raises(RunFolderError, match="another model"):
        load_rejection_statistics(bundle)


def test_prediction_in_parts_reports_thresholds_and_rejected_answers(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_noise(tmp_path / "noise")
    cli = Cli(capsys)
    words = ("predict", digits_run, images, "--reject", "--device", "cpu")
    tree = json.loads(cli.ok(*words, "--shards", tmp_path / "parts", "--json").out)
    plain = finetune.predict(digits_run, images, reject=True, device="cpu").to_json()
    assert tree["rejection"] == plain["rejection"]
    assert tree["rejection"]["num_rejected"] == {"unlike the training images": 10}
    shown = " ".join(cli.ok(*words, "--shards", tmp_path / "again").out.split())
    assert "10 of 10 answers rejected: 10 unlike the training images" in shown
    assert "from the training images are rejected" in shown

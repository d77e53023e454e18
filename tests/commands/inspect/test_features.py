"""Planted label errors and cropped duplicates are found by ``inspect`` and by a probe."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.commands.diagnosis.run_evidence import read_evidence
from finetune.commands.fit.fit import FitResult
from finetune.commands.inspect import features as module
from finetune.commands.inspect.inspect import inspect
from finetune.commands.prepare_data import read_data
from finetune.config.load import build_config, replace_values
from finetune.data.manifest import read_manifest
from finetune.errors import ConfigError, DataError
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Split
from tests.audit.test_near_duplicates import cropped
from tests.commands.test_leaks import write_garden
from tests.support.helpers import RecordingReporter
from tests.support.pictures import create_scene, write_jpeg
from tests.support.runs import create_small_config, write_weights

pytestmark = pytest.mark.runs

COLORS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}
WRONG = {"ant/wrong.png": "bee", "cow/wrong.png": "ant"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of weights, and photos of plain colors, two of them in a wrong folder."""
    root = tmp_path_factory.mktemp("planted")
    write_weights(root / "weights.pth")
    random = np.random.default_rng(3)
    for name, color in COLORS.items():
        (root / "photos" / name).mkdir(parents=True)
        for number in range(15):
            _write(root / "photos" / name / f"{number}.png", color, random)
    for path, looks_like in WRONG.items():
        _write(root / "photos" / path, COLORS[looks_like], random)
    return root


def _write(file: Path, color: tuple[int, int, int], random: np.random.Generator) -> None:
    pixels = np.clip(random.normal(0, 25, (32, 32, 3)) + color, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def test_inspect_backbone_finds_planted_label_errors_first(planted: Path, tmp_path: Path) -> None:
    config = build_config(
        {},
        assignments={
            "data.path": str(planted / "photos"),
            "data.image_size": 32,
            "model.backbone": "test_resnet",
            "model.weights": str(planted / "weights.pth"),
            "trainer.accelerator": "cpu",
            "output": str(tmp_path / "audit"),
        },
    )
    result = inspect(config)
    label_errors = result.audit.label_errors
    assert label_errors is not None
    assert {error.path: error.predicted_label for error in label_errors[:2]} == WRONG
    for error in label_errors[:2]:
        assert error.label_probability < error.predicted_probability <= 1
    tree = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [error["path"] for error in tree["label_errors"]] == [
        error.path for error in label_errors
    ]
    assert tree["label_check"]["num_images"] == result.audit.num_images
    assert 0.5 < tree["label_check"]["accuracy"] < 1


def test_fit_probe_adds_label_errors_to_the_audit(planted: Path, tmp_path: Path) -> None:
    config = create_small_config(
        data__path=str(planted / "photos"),
        model__weights=str(planted / "weights.pth"),
        unfreeze__name="linear_probe",
        trainer__epochs=1,
        output=str(tmp_path / "run"),
    )
    result: FitResult = finetune.fit(config)
    tree = json.loads((result.run_dir / "audit.json").read_text())
    assert {error["path"]: error["predicted_label"] for error in tree["label_errors"][:2]} == WRONG
    with (result.run_dir / "audit.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    listed = [row["path"] for row in rows if row["finding"] == "label error"]
    assert listed == [error["path"] for error in tree["label_errors"]]
    assert tree["num_images"] == 47, "other keys are kept"
    evidence = read_evidence(RunFolder(result.run_dir)).data
    assert evidence.check_accuracy == tree["label_check"]["accuracy"] < 1
    assert evidence.num_checked == tree["label_check"]["num_images"]


def test_resume_probe_replaces_earlier_label_errors(planted: Path, tmp_path: Path) -> None:
    config = create_small_config(
        data__path=str(planted / "photos"),
        model__weights=str(planted / "weights.pth"),
        unfreeze__name="linear_probe",
        trainer__epochs=1,
        output=str(tmp_path / "run"),
    )
    finetune.fit(config)
    run = tmp_path / "run"
    before = (run / "audit.csv").read_bytes(), (run / "audit.json").read_bytes()
    # as if it had been killed while the probe was written
    (run / "checkpoints" / "best.ckpt").unlink()
    (run / ".done").unlink()
    finetune.resume(run)
    assert before == ((run / "audit.csv").read_bytes(), (run / "audit.json").read_bytes())
    (run / "checkpoints" / "best.ckpt").unlink()
    (run / ".done").unlink()
    (run / "audit.csv").unlink()
    finetune.resume(run)
    assert not (run / "audit.csv").exists(), "a file that the user deleted is not created again"


def test_inspect_training_keys_raise_config_error(planted: Path) -> None:
    for key, value in (("trainer.epochs", 3), ("probe.hflip", "on"), ("model.drop_rate", 0.1)):
        config = build_config({}, assignments={"data.path": str(planted / "photos"), key: value})
        with pytest.raises(ConfigError, match=rf"{key} .* --backbone"):
            inspect(config)
        with pytest.raises(ConfigError, match=rf"{key} cannot apply to an audit\."):
            inspect(replace_values(config, {"model.backbone": "test_resnet"}))


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Return photos with given splits; a crop of a training image is in validation."""
    root = write_garden(tmp_path / "leaky", seed=0)
    with Image.open(root / "train/ant/0.jpg") as image:
        write_jpeg(root / "val/ant/part.jpg", cropped(image, 0.05, 0.2, 0.2, 0.05))
    return root


def probe_settings(planted: Path, photos: Path) -> dict[str, object]:
    return {
        "data__path": str(photos),
        "data__image_size": 64,
        "model__weights": str(planted / "weights.pth"),
        "unfreeze__name": "linear_probe",
        "trainer__epochs": 1,
    }


CROPPED = ["train/ant/0.jpg", "val/ant/part.jpg"]


def test_inspect_backbone_finds_cropped_duplicate(
    planted: Path, leaky: Path, tmp_path: Path
) -> None:
    settings = {"data.path": str(leaky), "output": str(tmp_path / "audit")}
    assert inspect(build_config({}, assignments=settings)).audit.duplicates == ()
    backbone = {
        "data.image_size": 64,
        "trainer.accelerator": "cpu",
        "model.backbone": "test_resnet",
        "model.weights": str(planted / "weights.pth"),
    }
    result = inspect(build_config({}, assignments=settings | backbone))
    assert result.audit.duplicates is not None
    assert [sorted(s.path for s in group.samples) for group in result.audit.duplicates] == [CROPPED]
    assert result.audit.duplicates[0].conflicts == ("splits",)
    assert "data.leakage" in {one["option"] for one in result.audit.advice}
    assert (tmp_path / "audit" / "duplicates" / "0001.jpg").is_file()
    # a later fit acts on it, even without a pixel cache
    dropping = create_small_config(data__path=str(leaky), data__leakage="drop", data__cache="off")
    data = read_data(dropping, leaky, reporter=Reporter())
    assert CROPPED[0] not in {sample.path for sample in data.manifest.samples}
    (dropped,) = data.rejected
    assert dropped.path == CROPPED[0]
    assert CROPPED[1] in dropped.reason


def test_fit_probe_cropped_duplicate_is_reported_and_excluded(
    planted: Path, leaky: Path, tmp_path: Path
) -> None:
    settings = probe_settings(planted, leaky)
    reporter = RecordingReporter()
    result: FitResult = finetune.fit(
        create_small_config(**settings, output=str(tmp_path / "run")), reporter=reporter
    )
    ignored: FitResult = finetune.fit(
        create_small_config(**settings, output=str(tmp_path / "other"), data__leakage="ignore")
    )
    with pytest.raises(
        DataError,
        match=r"data\.leakage=error: 1 of 7 val images .* finetune inspect .*/leaky --back",
    ):
        finetune.fit(
            create_small_config(**settings, output=str(tmp_path / "strict"), data__leakage="error")
        )
    (message,) = (warning for warning in reporter.warnings if "features" in warning)
    assert message.startswith("1 of 7 val images")
    assert CROPPED[1] in message
    assert result.evaluations["val"]["num_images"] == 7
    assert result.evaluations["val_without_leaks"]["num_images"] == 6
    tree = json.loads((result.run_dir / "audit.json").read_text())
    assert [sorted(group["paths"]) for group in tree["duplicates"]] == [CROPPED]
    manifest = read_manifest(result.run_dir / "manifest.csv", root=leaky)
    recorded = {
        sample.path: sample.duplicate_group for sample in manifest.samples if sample.duplicate_group
    }
    assert recorded == dict.fromkeys(CROPPED, "1")
    assert "val_without_leaks" not in ignored.evaluations


def test_fit_probe_keeps_cropped_duplicates_in_one_fold(
    planted: Path, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found with the features of the probe, before its head is fitted."""
    (leaky / "val/ant/part.jpg").rename(leaky / "train/ant/part.jpg")
    options: dict[str, Any] = {}

    def record(*args: Any, **given: Any) -> CrossValidatedHead:
        options.update(given)
        return fit_head(*args, **given)

    monkeypatch.setattr("finetune.probe.linear_probe.fit_head", record)
    run = tmp_path / "run"
    finetune.fit(create_small_config(**probe_settings(planted, leaky), output=str(run)))
    manifest = read_manifest(run / "manifest.csv", root=leaky)
    samples = manifest.get_samples(Split.TRAIN)
    pair = [s.path in ("train/ant/0.jpg", "train/ant/part.jpg") for s in samples]
    assert len(np.unique(options["groups"][pair])) == 1
    assert len(np.unique(options["groups"])) == len(samples) - 1


def test_resume_after_kill_while_recording_reports_again(
    planted: Path, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(manifest: object) -> str:
        raise KeyboardInterrupt

    run, reporter = tmp_path / "run", RecordingReporter()
    with monkeypatch.context() as patch:
        patch.setattr(module, "format_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune.fit(create_small_config(**probe_settings(planted, leaky), output=str(run)))
    result: FitResult = finetune.resume(run, reporter=reporter)
    assert any("features" in warning for warning in reporter.warnings)
    assert result.evaluations["val_without_leaks"]["num_images"] == 6
    assert len(json.loads((run / "audit.json").read_text())["duplicates"]) == 1


def test_fit_probe_missing_audit_still_reports_leaks(
    planted: Path, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_and_update(run: RunFolder, *findings: Any) -> bool:
        run.audit_json_path.unlink()
        return update(run, *findings)

    update = module._update_audit_files
    monkeypatch.setattr(module, "_update_audit_files", remove_and_update)
    reporter = RecordingReporter()
    # all validation images leak
    for label in ("ant", "bee"):
        for file in (leaky / "val" / label).glob("[0-9].jpg"):
            file.unlink()
    with Image.open(leaky / "train/bee/0.jpg") as image:
        write_jpeg(leaky / "val/bee/part.jpg", cropped(image, 0.05, 0.2, 0.2, 0.05))
    result: FitResult = finetune.fit(
        create_small_config(
            **probe_settings(planted, leaky), output=str(tmp_path / "run"), data__leakage="move"
        ),
        reporter=reporter,
    )
    (message,) = (warning for warning in reporter.warnings if "features" in warning)
    assert message.startswith("2 of 2 val images")
    assert "data.leakage=move" in message
    assert "No val image" in message
    assert "val_without_leaks" not in result.evaluations
    assert not (tmp_path / "run" / "audit.json").exists()
    assert all("audit.csv" not in note for note in reporter.notes)


def test_inspect_backbone_single_class_is_skipped(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    for seed in range(2):
        write_jpeg(tmp_path / "photos" / "ant" / f"{seed}.jpg", create_scene(seed))
    backbone = {
        "data.path": str(tmp_path / "photos"),
        "model.backbone": "test_resnet",
        "model.weights": str(planted / "weights.pth"),
        "output": str(tmp_path / "audit"),
    }
    reporter = RecordingReporter()
    result = inspect(build_config({}, assignments=backbone), reporter=reporter)
    assert result.audit.label_errors is None
    assert any("single class" in note for note in reporter.notes)

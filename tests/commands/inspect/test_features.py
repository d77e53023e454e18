"""Labels that were planted wrong, and cut copies, are found by ``inspect`` and by a probe."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.audit.label_errors import find_label_errors
from finetune.commands.fit.fit import FitResult
from finetune.commands.inspect import features as module
from finetune.commands.inspect.inspect import inspect
from finetune.commands.prepare_data import read_data
from finetune.config.load import build_config, replace_values
from finetune.data.manifest import read_manifest
from finetune.errors import ConfigError, DataError
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from tests.audit.test_near_duplicates import cropped
from tests.commands.test_leaks import write_garden
from tests.support.helpers import Recorder
from tests.support.networks import one_thread
from tests.support.pictures import scene, write_jpeg
from tests.support.runs import small_config, write_weights

COLOURS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}
WRONG = {"ant/wrong.png": "bee", "cow/wrong.png": "ant"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights, and photos of plain colours of which two are in the wrong folder."""
    place = tmp_path_factory.mktemp("planted")
    write_weights(place / "weights.pth")
    random = np.random.default_rng(3)
    for name, colour in COLOURS.items():
        (place / "photos" / name).mkdir(parents=True)
        for number in range(15):
            _write(place / "photos" / name / f"{number}.png", colour, random)
    for path, looks_like in WRONG.items():
        _write(place / "photos" / path, COLOURS[looks_like], random)
    return place


def _write(file: Path, colour: tuple[int, int, int], random: np.random.Generator) -> None:
    pixels = np.clip(random.normal(0, 25, (32, 32, 3)) + colour, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def test_a_backbone_doubts_the_planted_labels_first(planted: Path, tmp_path: Path) -> None:
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
    with one_thread():
        result = inspect(config)
    labels = result.audit.label_errors
    assert labels is not None
    assert {one.path: one.predicted_label for one in labels[:2]} == WRONG
    for one in labels[:2]:
        assert one.label_probability < one.predicted_probability <= 1
    tree = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [one["path"] for one in tree["labels"]] == [one.path for one in labels]


def test_a_run_puts_them_down_beside_what_else_was_found(planted: Path, tmp_path: Path) -> None:
    config = small_config(
        data__path=str(planted / "photos"),
        model__weights=str(planted / "weights.pth"),
        unfreeze__name="linear_probe",
        trainer__epochs=1,
        output=str(tmp_path / "run"),
    )
    with one_thread():
        result: FitResult = finetune.fit(config)
    tree = json.loads((result.run_dir / "audit.json").read_text())
    assert {one["path"]: one["likely"] for one in tree["labels"][:2]} == WRONG
    with (result.run_dir / "audit.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    doubts = [row for row in rows if row["finding"] == "label in doubt"]
    assert [row["path"] for row in doubts] == [one["path"] for one in tree["labels"]]
    assert tree["num_images"] == 47, "the rest stays"


def test_doubts_of_an_earlier_probe_are_replaced(planted: Path, tmp_path: Path) -> None:
    config = small_config(
        data__path=str(planted / "photos"),
        model__weights=str(planted / "weights.pth"),
        unfreeze__name="linear_probe",
        trainer__epochs=1,
        output=str(tmp_path / "run"),
    )
    with one_thread():
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
    assert not (run / "audit.csv").exists(), "whoever removed it does not want it"


def test_no_class_is_likely_that_is_less_probable_than_the_label() -> None:
    # of the third class no image is sure, so that every image is surer of it than its own are
    probabilities = np.array(
        [[0.8, 0.15, 0.05]] * 6 + [[0.1, 0.85, 0.05]] * 6 + [[0.5, 0.48, 0.02]]
    )
    labels = np.array([0] * 6 + [1] * 6 + [2])
    rows, likely = find_label_errors(probabilities, labels)
    assert rows.tolist() == likely.tolist() == []


def test_keys_that_an_audit_does_not_look_at_are_refused(planted: Path) -> None:
    for key, value in (("trainer.epochs", 3), ("probe.hflip", "on"), ("model.drop_rate", 0.1)):
        config = build_config({}, assignments={"data.path": str(planted / "photos"), key: value})
        with pytest.raises(ConfigError, match=rf"{key} cannot apply to an audit that asks no"):
            inspect(config)
        with pytest.raises(ConfigError, match=rf"^{key} cannot apply to an audit\."):
            inspect(replace_values(config, {"model.backbone": "test_resnet"}))


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Return photos with given splits, of which one that trains is in validation, cut."""
    root = write_garden(tmp_path / "cut", seed=0)
    with Image.open(root / "train/ant/0.jpg") as image:
        write_jpeg(root / "val/ant/part.jpg", cropped(image, 0.05, 0.2, 0.2, 0.05))
    return root


def probing(planted: Path, photos: Path) -> dict[str, object]:
    return {
        "data__path": str(photos),
        "data__image_size": 64,
        "model__weights": str(planted / "weights.pth"),
        "unfreeze__name": "linear_probe",
        "trainer__epochs": 1,
    }


CUT = ["train/ant/0.jpg", "val/ant/part.jpg"]


def test_a_backbone_adds_a_copy_that_is_cut(planted: Path, cut: Path, tmp_path: Path) -> None:
    settings = {"data.path": str(cut), "output": str(tmp_path / "audit")}
    assert inspect(build_config({}, assignments=settings)).audit.duplicates == ()
    asked = {
        "data.image_size": 64,
        "trainer.accelerator": "cpu",
        "model.backbone": "test_resnet",
        "model.weights": str(planted / "weights.pth"),
    }
    with one_thread():
        result = inspect(build_config({}, assignments=settings | asked))
    assert result.audit.duplicates is not None
    assert [sorted(s.path for s in one.samples) for one in result.audit.duplicates] == [CUT]
    assert result.audit.duplicates[0].conflicts == ("splits",)
    assert "data.leakage" in {one["option"] for one in result.audit.advice}
    assert (tmp_path / "audit" / "copies" / "0001.jpg").is_file()
    # and whoever acts on it can, whatever is done about pixels
    dropping = small_config(data__path=str(cut), data__leakage="drop", data__cache="off")
    data = read_data(dropping, cut, reporter=Reporter())
    assert CUT[0] not in {sample.path for sample in data.manifest.samples}
    (dropped,) = data.rejected
    assert dropped.path == CUT[0]
    assert CUT[1] in dropped.reason


def test_a_run_measures_without_it_and_says_so(planted: Path, cut: Path, tmp_path: Path) -> None:
    settings = probing(planted, cut)
    reporter = Recorder()
    with one_thread():
        result: FitResult = finetune.fit(
            small_config(**settings, output=str(tmp_path / "run")), reporter=reporter
        )
        ignored: FitResult = finetune.fit(
            small_config(**settings, output=str(tmp_path / "other"), data__leakage="ignore")
        )
        with pytest.raises(DataError, match=r"1 of 7 val images .* finetune inspect .*/cut --back"):
            finetune.fit(
                small_config(**settings, output=str(tmp_path / "strict"), data__leakage="error")
            )
    (told,) = (warning for warning in reporter.warnings if "features" in warning)
    assert told.startswith("1 of 7 val images have copies that are seen before")
    assert result.evaluations["val"]["num_images"] == 7
    assert result.evaluations["val_without_leaks"]["num_images"] == 6
    tree = json.loads((result.run_dir / "audit.json").read_text())
    assert [sorted(one["paths"]) for one in tree["copies"]] == [CUT]
    manifest = read_manifest(result.run_dir / "manifest.csv", root=cut)
    noted = {
        sample.path: sample.duplicate_group for sample in manifest.samples if sample.duplicate_group
    }
    assert noted == dict.fromkeys(CUT, "1")
    assert "val_without_leaks" not in ignored.evaluations


def test_a_run_that_was_killed_while_it_was_put_down_says_it_again(
    planted: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(manifest: object) -> str:
        raise KeyboardInterrupt

    run, reporter = tmp_path / "run", Recorder()
    with one_thread():
        with monkeypatch.context() as patch:
            patch.setattr(module, "format_manifest", killed)
            with pytest.raises(KeyboardInterrupt):
                finetune.fit(small_config(**probing(planted, cut), output=str(run)))
        result: FitResult = finetune.resume(run, reporter=reporter)
    assert any("features" in warning for warning in reporter.warnings)
    assert result.evaluations["val_without_leaks"]["num_images"] == 6
    assert len(json.loads((run / "audit.json").read_text())["copies"]) == 1


def test_a_leak_is_told_where_there_is_no_place_to_write_it(
    planted: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_first(run: RunFolder, *found: Any) -> bool:
        run.audit_json_path.unlink()
        return amend(run, *found)

    amend = module._update_audit_files
    monkeypatch.setattr(module, "_update_audit_files", remove_first)
    reporter = Recorder()
    # all that is measured has been seen
    for label in ("ant", "bee"):
        for file in (cut / "val" / label).glob("[0-9].jpg"):
            file.unlink()
    with Image.open(cut / "train/bee/0.jpg") as image:
        write_jpeg(cut / "val/bee/part.jpg", cropped(image, 0.05, 0.2, 0.2, 0.05))
    with one_thread():
        result: FitResult = finetune.fit(
            small_config(
                **probing(planted, cut), output=str(tmp_path / "run"), data__leakage="move"
            ),
            reporter=reporter,
        )
    (told,) = (warning for warning in reporter.warnings if "features" in warning)
    assert told.startswith("2 of 2 val images have copies that are seen before")
    assert "too late for data.leakage=move" in told
    assert "Without them no val image is left to measure" in told
    assert "val_without_leaks" not in result.evaluations
    assert not (tmp_path / "run" / "audit.json").exists()
    assert all("audit.csv" not in note for note in reporter.notes)


def test_of_a_single_class_no_backbone_is_asked(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    for seed in range(2):
        write_jpeg(tmp_path / "photos" / "ant" / f"{seed}.jpg", scene(seed))
    asked = {
        "data.path": str(tmp_path / "photos"),
        "model.backbone": "test_resnet",
        "model.weights": str(planted / "weights.pth"),
        "output": str(tmp_path / "audit"),
    }
    reporter = Recorder()
    result = inspect(build_config({}, assignments=asked), reporter=reporter)
    assert result.audit.label_errors is None
    assert any("single class" in note for note in reporter.notes)

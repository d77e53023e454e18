"""Labels that were planted wrong are found, by ``inspect`` and by the probe of a run."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.commands.fit import FitResult
from finetune.commands.inspect import inspect
from finetune.config.load import build_config, replaced
from finetune.data.label_errors import doubtful_labels
from finetune.errors import ConfigError
from tests.networks import one_thread
from tests.runs import small_config, write_weights

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
    labels = result.audit.labels
    assert labels is not None
    assert {one.path: one.likely for one in labels[:2]} == WRONG
    for one in labels[:2]:
        assert one.probability < one.likely_probability <= 1
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
    rows, likely = doubtful_labels(probabilities, labels)
    assert rows.tolist() == likely.tolist() == []


def test_keys_that_an_audit_does_not_look_at_are_refused(planted: Path) -> None:
    for key, value in (("trainer.epochs", 3), ("probe.mirrored", "on"), ("model.drop_rate", 0.1)):
        config = build_config({}, assignments={"data.path": str(planted / "photos"), key: value})
        with pytest.raises(ConfigError, match=rf"{key} cannot apply to an audit that asks no"):
            inspect(config)
        with pytest.raises(ConfigError, match=rf"^{key} cannot apply to an audit\."):
            inspect(replaced(config, {"model.backbone": "test_resnet"}))

"""A dataset of 12-bit images in 16-bit files is trained and predicted in one range of values."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import yaml
from numpy.typing import NDArray
from PIL import Image

import finetune
from finetune.bundle.model_card import read_card_json
from finetune.errors import DataError
from tests.support.child_commands import run_in_child
from tests.support.helpers import RecordingReporter
from tests.support.runs import write_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finetune.commands.fit.fit import FitResult
    from finetune.types import Prediction

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("few_penalties")]

NUM_IMAGES = 12
CONFIG = {
    "data.image_size": 32,
    "data.num_workers": 0,
    "unfreeze.name": "linear_probe",
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.devices": 1,
}


class PlanReporter(RecordingReporter):
    """Reporter that keeps the plan and the result of the probe, too."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: Mapping[str, Any] = {}
        self.probe: Mapping[str, Any] = {}

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Keep the plan."""
        self.plan = plan

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Keep the result of the probe."""
        self.probe = result


def draw_values(label: str, seed: int) -> NDArray[np.uint16]:
    """Return 12 bits of noise, of half the brightness in class "dark", shape (40, 48)."""
    rng = np.random.default_rng([seed, label == "dark"])
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8)).resize((48, 40))
    values = np.asarray(coarse, np.uint16) * 16 + rng.integers(0, 16, (40, 48), dtype=np.uint16)
    return values // 2 if label == "dark" else values


def assert_labels_are_folders(predictions: Sequence[Prediction]) -> None:
    expected = [Path(prediction.path).parent.name for prediction in predictions]
    assert [prediction.labels[0] for prediction in predictions] == expected


def write_image(path: Path, values: NDArray[Any]) -> None:
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, photometric="minisblack", metadata=None)
    else:
        Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two classes that differ in brightness, as PNG and TIFF of 16 bits."""
    root = tmp_path_factory.mktemp("data") / "microscope"
    for label in ("bright", "dark"):
        (root / label).mkdir(parents=True)
        for seed in range(NUM_IMAGES):
            suffix = ".tif" if seed % 3 == 0 else ".png"
            write_image(root / label / f"{seed}{suffix}", draw_values(label, seed))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


@pytest.fixture(scope="module")
def reporter() -> PlanReporter:
    """Return the reporter of ``microscope_run``."""
    return PlanReporter()


@pytest.fixture(scope="module")
def microscope_run(
    microscope: Path,
    weights: Path,
    reporter: PlanReporter,
    tmp_path_factory: pytest.TempPathFactory,
) -> FitResult:
    return finetune.fit(
        microscope,
        backbone="test_resnet",
        weights=str(weights),
        output=tmp_path_factory.mktemp("runs") / "run",
        config=CONFIG,
        reporter=reporter,
    )


def test_fit_finds_the_range_of_a_dataset_and_records_it(
    microscope_run: FitResult, reporter: PlanReporter
) -> None:
    run = microscope_run.run_dir
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["pixel_range"] == "0:4095"
    assert read_card_json(run / "bundle")["pixel_range"] == "0:4095"
    assert "4095 is white" in (run / "bundle" / "README.md").read_text()
    audit = json.loads((run / "audit.json").read_text())
    assert audit["pixel_range"] == "0:4095"
    files = audit["sixteen_bit_files"]
    assert files == {"num_images": 24, "max_value": files["max_value"], "num_bits": 12}
    assert 2**11 < files["max_value"] < 2**12
    assert reporter.plan["data"]["pixel_range"] == "0:4095"
    assert reporter.plan["data"]["sixteen_bit_files"] == files
    # in the range of 16 bits all images are nearly black
    assert not [image for image in audit["suspicious_images"] if image["kind"] in ("dark", "blank")]


def test_fit_learns_12_bit_images_and_evaluate_reads_them_alike(microscope_run: FitResult) -> None:
    result = finetune.evaluate(microscope_run.run_dir, device="cpu")
    assert result.to_json()["metrics"]["accuracy"] == 1


def test_predict_12_bit_images_in_a_new_process_like_their_upper_8_bits(
    microscope_run: FitResult, tmp_path: Path
) -> None:
    images = tmp_path / "new"
    images.mkdir()
    for label in ("bright", "dark"):
        for seed in range(100, 103):
            values = draw_values(label, seed)
            write_image(images / f"{label}_{seed}_sixteen.png", values)
            write_image(images / f"{label}_{seed}_sixteen.tif", values)
            write_image(images / f"{label}_{seed}_eight.png", (values >> 4).astype(np.uint8))
    command = ("predict", microscope_run.run_dir / "bundle", images, "--output", "out.csv")
    code, text = run_in_child(tmp_path, *command, "--device", "cpu")
    assert code == 0, text
    assert "clipped" not in text
    with (tmp_path / "out.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 18
    for name, row in rows.items():
        label, number, _ = name.split("_")
        assert row["label"] == label, name
        assert row["probability"] == rows[f"{label}_{number}_eight.png"]["probability"]


def test_predict_and_evaluate_values_above_the_range_are_clipped_and_said_once(
    microscope_run: FitResult, tmp_path: Path
) -> None:
    for label in ("bright", "dark"):
        (tmp_path / label).mkdir()
        for number in range(2):
            values = draw_values(label, 200 + number)
            values[0, 0] = 60_000
            write_image(tmp_path / label / f"{number}.png", values)
    predicting, evaluating = RecordingReporter(), RecordingReporter()
    predictions = finetune.predict(
        microscope_run.run_dir, tmp_path, device="cpu", reporter=predicting
    ).predictions
    assert_labels_are_folders(predictions)
    finetune.evaluate(microscope_run.run_dir, tmp_path, device="cpu", reporter=evaluating)
    for warnings in (predicting.warnings, evaluating.warnings):
        [clipped] = [text for text in warnings if "clipped" in text]
        assert clipped.startswith("4 images with values above 4,095")
        assert "data.pixel_range=0:4095" in clipped


def test_predict_and_evaluate_warn_of_12_bits_if_the_model_reads_16(
    microscope: Path, weights: Path, tmp_path: Path
) -> None:
    root = tmp_path / "eight"
    for label in ("bright", "dark"):
        (root / label).mkdir(parents=True)
        for seed in range(6):
            values = draw_values(label, seed) >> 4
            write_image(root / label / f"{seed}.png", values.astype(np.uint8))
    arguments: dict[str, Any] = {"backbone": "test_resnet", "weights": str(weights)}
    run = finetune.fit(root, output=tmp_path / "run", config=CONFIG, **arguments).run_dir
    predicting, evaluating, silent = (RecordingReporter() for _ in range(3))
    finetune.predict(run, microscope, device="cpu", reporter=predicting)
    finetune.evaluate(run, microscope, device="cpu", reporter=evaluating)
    for warnings in (predicting.warnings, evaluating.warnings):
        [dark] = [text for text in warnings if "of 16 bits" in text]
        assert dark.startswith("24 images of 16 bits with values up to 4,0")
        assert "bright/0.tif" in dark
        assert "data.pixel_range=0:4095" in dark
    images = tmp_path / "sixteen"
    images.mkdir()
    write_image(images / "12_bits.png", draw_values("bright", 0))
    write_image(images / "16_bits.png", draw_values("bright", 1) * 16)
    finetune.predict(run, images, device="cpu", reporter=silent)
    assert not [text for text in silent.warnings if "of 16 bits" in text]


@pytest.mark.parametrize("dtype", ["float32", "uint32", "int16"])
def test_predict_values_of_any_type_above_the_range_are_clipped_and_said(
    weights: Path, tmp_path: Path, dtype: str
) -> None:
    root, images = tmp_path / "scans", tmp_path / "images"
    images.mkdir()
    for label in ("bright", "dark"):
        (root / label).mkdir(parents=True)
        for seed in range(6):
            write_image(root / label / f"{seed}.tif", draw_values(label, seed).astype(dtype))
    write_image(images / "0.tif", draw_values("bright", 0).astype(dtype))
    write_image(images / "1.tif", draw_values("bright", 1).astype(dtype) * 7)
    reporter = RecordingReporter()
    run = finetune.fit(
        root,
        backbone="test_resnet",
        weights=str(weights),
        output=tmp_path / "run",
        config={**CONFIG, "data.pixel_range": "0:4096"},
    ).run_dir
    finetune.predict(run, images, device="cpu", reporter=reporter)
    [clipped] = [text for text in reporter.warnings if "clipped" in text]
    assert clipped.startswith("1 image with values above 4,096")
    assert "1.tif" in clipped


def test_export_reads_parity_images_in_the_range(microscope_run: FitResult, tmp_path: Path) -> None:
    result = finetune.export(microscope_run.run_dir, tmp_path / "exported")
    assert result.parity is not None
    assert result.parity.max_abs_diff < 1e-5
    assert read_card_json(tmp_path / "exported")["pixel_range"] == "0:4095"


@pytest.mark.parametrize("pixel_range", ["full", "0:2047"])
def test_fit_after_a_change_of_the_range_reuses_no_features(
    microscope_run: FitResult,
    microscope: Path,
    weights: Path,
    tmp_path: Path,
    pixel_range: str,
) -> None:
    reporter = PlanReporter()
    run = finetune.fit(
        microscope,
        backbone="test_resnet",
        weights=str(weights),
        output=tmp_path / "run",
        config={**CONFIG, "data.pixel_range": pixel_range},
        reporter=reporter,
    ).run_dir
    assert reporter.probe["num_images_computed"] == 24
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["pixel_range"] == pixel_range
    expected = None if pixel_range == "full" else pixel_range
    assert read_card_json(run / "bundle")["pixel_range"] == expected
    assert microscope_run.run_dir != run


def test_signed_images_need_a_range_and_are_read_with_it(weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for label in ("bright", "dark"):
        (root / label).mkdir(parents=True)
        for seed in range(6):
            values = draw_values(label, seed).astype(np.int16) - 1000
            write_image(root / label / f"{seed}.tif", values)
    with pytest.raises(DataError, match=r"signed integer pixels have no agreed range.*pixel_range"):
        finetune.inspect(root, output=tmp_path / "audit")
    arguments: dict[str, Any] = {"backbone": "test_resnet", "weights": str(weights)}
    run = finetune.fit(
        root,
        output=tmp_path / "run",
        config={**CONFIG, "data.pixel_range": "-1000:3095"},
        **arguments,
    ).run_dir
    predictions = finetune.predict(run / "bundle", root, device="cpu").predictions
    assert_labels_are_folders(predictions)

"""Tests of exports in int8 and fp16: what they lose, and files that lose too much."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import numpy_helper

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ConfigError, ModelError, RunFolderError
from finetune.exporters.quantization import onnx_files
from finetune.exporters.quantization.quantization_plan import QuantizationRecord
from finetune.inference.predictor import Predictor
from finetune.types import Reporter
from tests.support.helpers import list_names

if TYPE_CHECKING:
    from finetune.commands.export.export_result import ExportResult
    from finetune.commands.fit.fit import FitResult

pytestmark = pytest.mark.runs


def count_operators(folder: Path, name: str) -> int:
    """Return the number of nodes of a type."""
    nodes = onnx.load(folder / "model.onnx").graph.node
    return sum(node.op_type == name for node in nodes)


def check_comparison(result: ExportResult, precision: str, *, smaller_than: float) -> None:
    """Assert what every export of a smaller file has."""
    assert result.comparison is not None
    tree = json.loads((result.output / "parity.json").read_text(encoding="utf-8"))
    assert tree == json.loads(json.dumps(result.to_json()["parity"]))
    comparison = tree["comparison"]
    assert comparison[precision]["bytes"] < smaller_than * comparison["fp32"]["bytes"]
    assert comparison[precision]["images_per_second"] > 0
    lost = comparison["fp32"]["accuracy"] - comparison[precision]["accuracy"]
    assert comparison["drop"]["points"] == pytest.approx(100 * lost)
    low, high = comparison[precision]["accuracy_interval"]
    assert low <= comparison[precision]["accuracy"] <= high
    card = load_model(result.output).card
    (split,) = card.facts["metrics"]
    assert split == "val"
    assert card.facts["precision"] == precision
    assert card.facts["metrics"]["val"]["accuracy"] == comparison[precision]["accuracy"]
    assert card.facts["evaluations"]["val"]["num_images"] == tree["num_images"]
    assert comparison["drop"]["low"] <= comparison["drop"]["points"] <= comparison["drop"]["high"]


@pytest.fixture(scope="module")
def quantized(trained: FitResult, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """Return ``trained`` as an ONNX file in int8; never change it."""
    output = tmp_path_factory.mktemp("exports") / "int8"
    return finetune.export(trained.run_dir, output, format="onnx", precision="int8", max_drop=50)


def test_export_int8_is_smaller_and_measured(quantized: ExportResult) -> None:
    assert list_names(quantized.output) == [
        "config.pbtxt",
        "file_digests.json",
        "labels.txt",
        "model.onnx",
        "parity.json",
    ]
    check_comparison(quantized, "int8", smaller_than=0.4)
    assert count_operators(quantized.output, "QuantizeLinear") > 5
    assert quantized.parity_split == "val"


def test_export_with_changed_classes_is_refused(
    quantized: ExportResult, insects: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(quantized.output, tmp_path / "onnx"))
    file = folder / "model.onnx"
    written = file.read_bytes()
    name = load_model(folder).card.classes[0].encode()
    renamed = written.replace(name, name[::-1])
    assert renamed != written
    file.write_bytes(renamed)
    with pytest.raises(RunFolderError, match=r"SHA-256 of model\.onnx is .* or export the model"):
        finetune.predict(folder, insects)


def test_export_int8_has_metadata_of_what_was_measured(
    quantized: ExportResult, trained: FitResult
) -> None:
    entries = onnx.load(quantized.output / "model.onnx").metadata_props
    metadata = {entry.key: entry.value for entry in entries}
    assert metadata["precision"] == "int8"
    assert quantized.comparison is not None
    own = quantized.comparison.smaller.metrics
    assert json.loads(metadata["metrics"]) == {"val": dict(own)}
    assert own["loss"] != load_model(trained.run_dir).card.facts["metrics"]["val"]["loss"]
    assert quantized.parity is not None
    assert json.loads(metadata["num_metric_images"]) == {"val": quantized.parity.num_images}
    assert json.loads(metadata["names"]) == list(load_model(quantized.output).card.classes)
    assert [entry.key for entry in entries].count("metrics") == 1


def test_export_int8_is_a_model_with_nearly_the_same_probabilities(
    quantized: ExportResult, trained: FitResult, insects: Path
) -> None:
    files = sorted(insects.rglob("*.png"))
    expected, actual = (
        Predictor(load_model(folder), device="cpu").predict_proba(files)
        for folder in (trained.run_dir, quantized.output)
    )
    assert 0 < (actual - expected).abs().max() < 0.1


@pytest.mark.slow
def test_export_int8_with_preprocessing_quantizes_the_network_alone(
    trained: FitResult, quantized: ExportResult, tmp_path: Path
) -> None:
    result = finetune.export(
        trained.run_dir,
        tmp_path / "photos",
        format="onnx",
        include_preprocessing=True,
        precision="int8",
        max_drop=50,
    )
    check_comparison(result, "int8", smaller_than=0.6)
    counts = [count_operators(r.output, "QuantizeLinear") for r in (result, quantized)]
    assert abs(counts[0] - counts[1]) <= 3
    assert result.parity is not None
    assert result.parity.max_abs_diff < 0.15


def test_export_fp16_has_half_the_size(trained: FitResult, tmp_path: Path) -> None:
    result = finetune.export(trained.run_dir, tmp_path / "fp16", format="onnx", precision="fp16")
    check_comparison(result, "fp16", smaller_than=0.6)
    assert result.parity is not None
    assert 0 < result.parity.max_abs_diff < 0.01
    (images,) = onnx.load(result.output / "model.onnx").graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_export_openvino_smaller_files_load_as_models(
    trained: FitResult, insects: Path, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("nncf")
    result = finetune.export(
        trained.run_dir, tmp_path / "out", format="openvino", precision=precision, max_drop=50
    )
    check_comparison(result, precision, smaller_than=0.7)
    files = sorted(insects.rglob("*.png"))
    expected, actual = (
        Predictor(load_model(folder), device="cpu").predict_proba(files)
        for folder in (trained.run_dir, tmp_path / "out")
    )
    assert 0 < (actual - expected).abs().max() < 0.1


def test_export_that_loses_too_much_is_refused(
    trained: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(source: Path, target: Path, inputs: object) -> QuantizationRecord:
        del inputs
        model = onnx.load(source)
        tensor = next(t for t in model.graph.initializer if list(t.dims) == [3])
        values = numpy_helper.to_array(tensor).copy()
        values[0] += 100  # the answer is always the first class
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, target)
        return QuantizationRecord("spoiled", "spoiled")

    monkeypatch.setattr(onnx_files, "quantize_onnx", spoil)
    output = tmp_path / "exports" / "int8"
    with pytest.raises(ModelError, match=r"int8 was not written.*points of accuracy.*--max-drop 1"):
        finetune.export(trained.run_dir, output, format="onnx", precision="int8")
    assert list_names(tmp_path) in ([], ["exports"])
    assert not output.exists()


def test_export_int8_of_a_bundle_calibrates_on_other_half_of_images(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(trained.run_dir / "bundle", tmp_path / "bundle"))
    with pytest.raises(ConfigError, match="--images FOLDER"):
        finetune.export(bundle, tmp_path / "out", format="onnx", precision="int8")

    class Notes(Reporter):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    reporter = Notes()
    result = finetune.export(
        bundle,
        tmp_path / "out",
        format="onnx",
        precision="int8",
        max_drop=50,
        images=insects,
        reporter=reporter,
    )
    assert result.parity is not None
    assert result.parity.num_images == 19
    assert result.comparison is not None
    record = result.comparison.record
    assert record.num_measured_images + record.num_judged_images == 19
    assert any("every second" in note for note in reporter.notes)


@pytest.mark.parametrize("max_drop", [-1, 101, float("nan")])
def test_export_refuses_an_impossible_max_drop(
    trained: FitResult, tmp_path: Path, max_drop: float
) -> None:
    with pytest.raises(ConfigError, match="--max-drop"):
        finetune.export(
            trained.run_dir, tmp_path / "out", format="onnx", precision="int8", max_drop=max_drop
        )


def test_export_refuses_a_max_drop_of_fp32(trained: FitResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-drop 1 cannot apply.*--precision int8"):
        finetune.export(trained.run_dir, tmp_path / "out", max_drop=1)
    assert not (tmp_path / "out").exists()


def test_export_refuses_a_precision_of_another_format(trained: FitResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"int8 cannot apply to --format torch.*onnx or openvino"):
        finetune.export(trained.run_dir, tmp_path / "out", format="torch", precision="int8")

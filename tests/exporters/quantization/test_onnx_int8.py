"""Tests of the choice among ways to quantise an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from finetune.bundle.runtimes.onnx_network import open_onnx_session, read_onnx_metadata
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.onnx.onnx_writer import write_model
from finetune.exporters.quantization.graph_inputs import GraphInputs
from finetune.exporters.quantization.onnx_int8 import quantize_onnx
from finetune.exporters.quantization.quantization_plan import PLANS, QuantizationPlan
from finetune.types import Reporter
from tests.support.calibrated_models import save_calibrated_model
from tests.support.pictures import create_scene

pytestmark = pytest.mark.runs

COARSE = QuantizationPlan("coarse", "ranges of the entropy", method="entropy")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the float32 file of a small model; never change it."""
    folder = tmp_path_factory.mktemp("fp32")
    model = save_calibrated_model(folder / "bundle")
    write_model(model, folder, ExportOptions(), Reporter())
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def inputs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> GraphInputs:
    """Return the inputs of nine images."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(9):
        create_scene(seed).save(folder / f"{seed}.png")
    metadata = read_onnx_metadata(open_onnx_session(source))
    model = save_calibrated_model(folder / "bundle")
    return GraphInputs(tuple(sorted(folder.glob("*.png"))), metadata, model.card.read_options)


def test_quantize_onnx_takes_the_plan_that_changes_least(
    source: Path, inputs: GraphInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.onnx"
    record = quantize_onnx(source, target, inputs, plans=(COARSE, *PLANS))
    best_last = sorted(
        (COARSE, *PLANS), key=lambda plan: record.divergences[plan.name], reverse=True
    )
    assert record.plan == best_last[-1].name
    assert quantize_onnx(source, target, inputs, plans=best_last).plan == record.plan
    assert set(record.divergences) == {"coarse", "all", "inner"}
    assert (record.num_measured_images, record.num_judged_images) == (6, 3)
    assert capsys.readouterr().out == ""  # the quantiser prints what it does
    metadata = read_onnx_metadata(open_onnx_session(target))
    assert metadata == inputs.metadata


def test_quantize_onnx_keeps_first_and_last_layer_where_planned(
    source: Path, inputs: GraphInputs, tmp_path: Path
) -> None:
    counts = {}
    for plan in PLANS:
        target = tmp_path / f"{plan.name}.onnx"
        quantize_onnx(source, target, inputs, plans=(plan,))
        tensors = onnx.load(target).graph.initializer
        int8 = [t for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
        counts[plan.name] = len(int8)
    assert counts["all"] == counts["inner"] + 2


def test_graph_inputs_reads_photos_one_by_one(inputs: GraphInputs, tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "wide.png")
    Image.new("RGB", (10, 30)).save(tmp_path / "high.png")
    files = (tmp_path / "wide.png", tmp_path / "high.png")
    photos = GraphInputs(files, {**inputs.metadata, "output": "probabilities"}, inputs.options)
    assert [p.shape for p in photos] == [(1, 10, 20, 3), (1, 30, 10, 3)]
    assert all(p.dtype == np.uint8 for p in photos)
    assert len(photos.build_batch(8)) == 1
    assert inputs.build_batch(4).shape == (4, 3, 64, 64)

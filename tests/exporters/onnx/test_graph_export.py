"""Tests of ONNX files as they are written: axes, metadata, and exporters that are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.export import ExportedProgram

from finetune.errors import ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.graphs.graph_program import ModelGraph, build_graph, export_program
from finetune.exporters.onnx import graph_export
from finetune.exporters.onnx.graph_export import WRITERS, write_onnx
from tests.exporters.graphs.test_calibrated_network import CLASSES, create_bundle

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    """Return the graph of a small model; never change it."""
    return build_graph(create_bundle(temperature=0.4), ExportOptions())


@pytest.fixture(scope="module")
def program(graph: ModelGraph) -> ExportedProgram:
    """Return the program of ``graph``; never change it."""
    return export_program(graph, source=Path("model"))


def shift_bias(file: Path) -> None:
    """Change one tensor of an ONNX file as a wrong constant folding does."""
    model = onnx.load(str(file))
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [len(CLASSES)])
    values = numpy_helper.to_array(tensor).copy()
    values[1] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    file.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def written(
    graph: ModelGraph, program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the ONNX file of ``graph``; never change it."""
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert write_onnx(graph, program, 18, file) == next(iter(WRITERS))
    return file


def copy_written(written: Path, *, is_wrong: bool = False) -> graph_export.Writer:
    """Return a writer of a file that was written before, or of one with a wrong bias."""

    def write(graph: ModelGraph, program: ExportedProgram, opset: int, file: Path) -> None:
        del graph, program, opset
        shutil.copy(written, file)
        if is_wrong:
            shift_bias(file)

    return write


def test_write_onnx_names_axes_and_stores_metadata(written: Path) -> None:
    assert [file.name for file in written.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(str(written))
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 18)]
    (given,), (returned,) = model.graph.input, model.graph.output
    assert (given.name, returned.name) == ("images", "logits")
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 32, 32]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["names"]) == list(CLASSES)
    assert metadata["exporter"] == next(iter(WRITERS))
    assert metadata["interpolation"] == "bilinear"
    assert json.loads(metadata["input_size"]) == [3, 32, 32]
    assert float(metadata["temperature"]) == 0.4
    assert {"torch", "timm", "finetune"} <= json.loads(metadata["versions"]).keys()
    assert json.loads(metadata["finetune"])["classes"] == list(CLASSES)


@pytest.mark.slow
def test_write_onnx_opset_can_be_newer(
    graph: ModelGraph, program: ExportedProgram, tmp_path: Path
) -> None:
    write_onnx(graph, program, 21, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    assert next(o.version for o in model.opset_import if o.domain == "") == 21


@pytest.mark.slow
def test_write_onnx_large_model_has_weights_beside_it(
    graph: ModelGraph,
    program: ExportedProgram,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_export, "MAX_FILE_BYTES", 1000)
    write_onnx(graph, program, 18, tmp_path / "model.onnx")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_write_onnx_by_each_exporter(
    name: str,
    graph: ModelGraph,
    program: ExportedProgram,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_export, "WRITERS", {name: WRITERS[name]})
    assert write_onnx(graph, program, 18, tmp_path / "model.onnx") == name


@pytest.mark.parametrize("num_wrong", [1, 2])
def test_write_onnx_passes_over_exporters_that_are_wrong(
    graph: ModelGraph,
    program: ExportedProgram,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_wrong: int,
) -> None:
    writers = {
        name: copy_written(written, is_wrong=number < num_wrong)
        for number, name in enumerate(WRITERS)
    }
    monkeypatch.setattr(graph_export, "WRITERS", writers)
    name = write_onnx(graph, program, 18, tmp_path / "model.onnx")
    assert name == list(WRITERS)[num_wrong]
    model = onnx.load(str(tmp_path / "model.onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["exporter"] == name
    assert json.loads(metadata["names"]) == list(CLASSES)


def test_write_onnx_removes_what_a_failed_exporter_left(
    graph: ModelGraph,
    program: ExportedProgram,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(graph: ModelGraph, program: ExportedProgram, opset: int, file: Path) -> None:
        del graph, program, opset
        for name in ("model.onnx", "model.onnx.data", "fc.weight"):
            (file.parent / name).write_bytes(b"weights")
        raise RuntimeError("the disk is odd")

    (tmp_path / "labels.txt").write_text("bee", encoding="utf-8")
    monkeypatch.setattr(graph_export, "WRITERS", {"a": fail, "b": copy_written(written)})
    assert write_onnx(graph, program, 18, tmp_path / "model.onnx") == "b"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["labels.txt", "model.onnx"]


def test_write_onnx_without_right_exporter_raises_model_error(
    graph: ModelGraph,
    program: ExportedProgram,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no operator\nfor this")

    first, second, third = WRITERS
    writers = {first: copy_written(written, is_wrong=True), second: fail, third: fail}
    monkeypatch.setattr(graph_export, "WRITERS", writers)
    with pytest.raises(
        ModelError, match=r"probability differs by 0\.\d+; .*no operator; .*--opset"
    ):
        write_onnx(graph, program, 18, tmp_path / "model.onnx")


def test_export_program_of_network_with_fixed_batch_raises_model_error() -> None:
    class FixedBatch(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.reshape(2, -1)[:, :3]

    graph = build_graph(create_bundle(), ExportOptions())
    fixed = ModelGraph(
        FixedBatch(), graph.examples, graph.dynamic_axes, "logits", graph.card, graph.metadata
    )
    with pytest.raises(ModelError, match=r"my_model cannot be exported.*number of images"):
        export_program(fixed, source=Path("my_model"))

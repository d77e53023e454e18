"""Tests of exports to ONNX and to programs of torch: parity, sabotage, and loading them again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
import torch
from PIL import Image

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ConfigError, ModelError, RunFolderError
from finetune.exporters.graphs import calibrated_network, graph_program
from finetune.exporters.graphs.calibrated_network import CalibratedMember
from finetune.exporters.graphs.photo_preprocessing import PhotoPreprocessing
from finetune.exporters.metadata import build_metadata
from finetune.inference.predictor import Predictor
from tests.support.helpers import list_names

if TYPE_CHECKING:
    from finetune.commands.export.export_result import ExportResult
    from finetune.commands.fit.fit import FitResult

pytestmark = pytest.mark.runs

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
Export = Callable[[str, bool], "ExportResult"]

CASES = [
    ("onnx", False),
    pytest.param("onnx", True, marks=pytest.mark.slow),
    pytest.param("torch", False, marks=pytest.mark.slow),
    ("torch", True),
]


@pytest.fixture(scope="module")
def export_once(
    trained: FitResult, insects: Path, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    """Return a function that exports ``trained``, once for each format and kind of input."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def export(name: str, takes_photos: bool) -> ExportResult:
        return finetune.export(
            trained.run_dir,
            folder / f"{name} {takes_photos}",
            format=name,
            include_preprocessing=takes_photos,
            images=insects,
        )

    return export


@pytest.mark.parametrize(("name", "takes_photos"), CASES)
def test_export_graph_has_parity_and_metrics(
    export_once: Export, name: str, takes_photos: bool
) -> None:
    result = export_once(name, takes_photos)
    triton = ["config.pbtxt", "labels.txt"] if name == "onnx" else []
    assert list_names(result.output) == sorted(
        [*triton, FILES[name], "file_digests.json", "parity.json"]
    )
    parity = result.parity
    assert parity is not None
    assert parity.num_images == parity.num_same_top1 == 38
    assert 0 <= parity.max_abs_diff < (0.02 if takes_photos else 1e-5)
    assert parity.metrics is not None
    accuracy = parity.metrics["accuracy"]
    assert accuracy["model"] == accuracy["export"]
    stored = json.loads((result.output / "parity.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(result.parity_to_json()))


@pytest.mark.parametrize(("name", "takes_photos"), CASES)
def test_exported_graph_predicts_as_run(
    export_once: Export,
    trained: FitResult,
    insects: Path,
    name: str,
    takes_photos: bool,
) -> None:
    file = export_once(name, takes_photos).output / FILES[name]
    files = sorted(insects.rglob("*.png"))
    expected = Predictor(load_model(trained.run_dir), device="cpu").predict_proba(files)
    for path in (file, file.parent):
        actual = Predictor(load_model(path), device="cpu").predict_proba(files)
        assert torch.allclose(actual, expected, atol=0.02 if takes_photos else 1e-5)
    result = finetune.evaluate(file, insects, device="cpu")
    reference = finetune.evaluate(trained.run_dir / "bundle", insects, device="cpu")
    assert result.evaluation.metrics["accuracy"] == reference.evaluation.metrics["accuracy"]


def test_exported_photo_graph_reads_photos_of_any_size(
    export_once: Export, trained: FitResult, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for number, size in enumerate([(50, 33), (33, 90), (200, 130)]):
        small = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=generator)
        photo = Image.fromarray(small.numpy()).resize(size, Image.Resampling.BILINEAR)
        photo.save(tmp_path / f"{number}.png")
    models = (trained.run_dir, export_once("torch", True).output)
    ours, theirs = (
        finetune.predict(model, tmp_path, top_k=3, device="cpu").predictions for model in models
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert dict(zip(mine.labels, mine.probabilities, strict=True)) == pytest.approx(
            dict(zip(other.labels, other.probabilities, strict=True)), abs=0.02
        )


@pytest.mark.slow
def test_exported_onnx_runs_without_finetune(export_once: Export, insects: Path) -> None:
    session = onnxruntime.InferenceSession(str(export_once("onnx", True).output / "model.onnx"))
    file = sorted(insects.rglob("*.png"))[0]
    photo = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
    batch = photo.reshape(1, 36, 40, 3).repeat(2, 1, 1, 1).numpy()
    (probabilities,) = session.run(None, {"images": batch})
    assert probabilities.shape == (2, 3)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_exported_photo_graph_refuses_views_and_sizes(
    export_once: Export, trained: FitResult, insects: Path
) -> None:
    photos, pixels = export_once("torch", True).output, export_once("onnx", False).output
    with pytest.raises(ConfigError, match=r"--tta crops cannot apply.*--include-preprocessing"):
        finetune.predict(photos, insects, tta="crops")
    with pytest.raises(ConfigError, match=r"--image-size 40 cannot apply.*part of the file"):
        finetune.predict(photos, insects, image_size=40)
    with pytest.raises(ConfigError, match=r"takes whole photos.*Combine models of one kind"):
        finetune.predict([photos, pixels], insects)
    with pytest.raises(ConfigError, match=r"exported file.*Name the run"):
        finetune.export(photos, photos.parent / "again", format="onnx", images=insects)
    mean = finetune.predict([pixels, trained.run_dir], insects, device="cpu")
    alone = finetune.predict(trained.run_dir, insects, device="cpu")
    for one, other in zip(mean.predictions, alone.predictions, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_export_graph_default_output_is_in_run_folder(trained: FitResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names a file.*--output model$"):
        finetune.export(trained.run_dir, "model.onnx", format="onnx")
    with pytest.raises(ConfigError, match=r"--opset 12: choose one from 18 to"):
        finetune.export(trained.run_dir, tmp_path / "a", format="onnx", opset=12)
    with pytest.raises(ConfigError, match=r"--opset 18 cannot apply to --format torch"):
        finetune.export(trained.run_dir, tmp_path / "a", format="torch", opset=18)
    with pytest.raises(ConfigError, match=r"--format onx: unknown\. Did you mean 'onnx'"):
        finetune.export(trained.run_dir, tmp_path / "a", format="onx")
    with pytest.raises(ConfigError, match=r"--include-preprocessing cannot apply to --format timm"):
        finetune.export(trained.run_dir, tmp_path / "a", include_preprocessing=True)
    assert list_names(tmp_path) == []


def _change_metadata(**values: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        def build_changed(*args: Any, **options: Any) -> dict[str, str]:
            return {**build_metadata(*args, **options), **values}

        monkeypatch.setattr(graph_program, "build_metadata", build_changed)

    return change


def _swap_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    original = CalibratedMember.compute_logits
    monkeypatch.setattr(
        CalibratedMember, "compute_logits", lambda self, pixels: original(self, pixels.flip(1))
    )


def _normalise_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    original = CalibratedMember.forward
    monkeypatch.setattr(
        CalibratedMember, "forward", lambda self, pixels: original(self, pixels - 0.05)
    )


def _change_spec(**values: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            calibrated_network,
            "PhotoPreprocessing",
            lambda spec: PhotoPreprocessing(replace(spec, **values)),
        )

    return change


PIXEL_SABOTAGE = {
    "wrong mean": _change_metadata(mean="[0.4, 0.4, 0.4]"),
    "swapped channels": _swap_channels,
    "another size": _change_metadata(input_size="[3, 40, 40]"),
    "wrong interpolation": _change_metadata(interpolation="nearest"),
    "another crop": _change_metadata(crop_pct="0.6"),
}
PHOTO_SABOTAGE = {
    "wrong mean": _normalise_wrongly,
    "swapped channels": _swap_channels,
    "another size": _change_spec(input_size=(3, 40, 40)),
    "wrong interpolation": _change_spec(interpolation="nearest"),
    "another crop": _change_spec(crop_pct=0.6),
}
SABOTAGE = [
    pytest.param(
        name,
        takes_photos,
        sabotage,
        id=f"{name}-{'photos' if takes_photos else 'pixels'}-{title}",
        marks=() if title == "swapped channels" and not takes_photos else pytest.mark.slow,
    )
    for name in FILES
    for takes_photos, rows in ((False, PIXEL_SABOTAGE), (True, PHOTO_SABOTAGE))
    for title, sabotage in rows.items()
]


@pytest.fixture(scope="module")
def dotted(trained: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photos of bright dots, which are all that "nearest" takes of them."""
    folder = tmp_path_factory.mktemp("dotted")
    spec = load_model(trained.run_dir).card.spec
    side = 4 * math.floor(spec.input_size[1] / spec.crop_pct)
    for channel in range(3):
        pixels = torch.zeros(side, side, 3, dtype=torch.uint8)
        pixels[2::4, 2::4, channel] = 255
        Image.fromarray(pixels.numpy()).save(folder / f"{channel}.png")
    return folder


@pytest.mark.parametrize(("name", "takes_photos", "sabotage"), SABOTAGE)
def test_export_of_sabotaged_writer_raises_and_leaves_nothing(
    trained: FitResult,
    insects: Path,
    dotted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    name: str,
    takes_photos: bool,
    sabotage: Callable[[pytest.MonkeyPatch], None],
) -> None:
    images = dotted if "interpolation" in request.node.name else insects
    sabotage(monkeypatch)
    with pytest.raises(ModelError, match=r"Do not use this export"):
        finetune.export(
            trained.run_dir,
            tmp_path / "model",
            format=name,
            include_preprocessing=takes_photos,
            images=images,
        )
    assert list_names(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "takes_photos"), [(n, p) for n in FILES for p in (False, True)])
def test_export_of_right_writer_passes_on_dotted_photos(
    trained: FitResult, dotted: Path, tmp_path: Path, name: str, takes_photos: bool
) -> None:
    result = finetune.export(
        trained.run_dir,
        tmp_path / "model",
        format=name,
        include_preprocessing=takes_photos,
        images=dotted,
    )
    assert result.parity is not None
    assert result.parity.num_same_top1 == 3


def test_load_foreign_onnx_raises_run_folder_error(export_once: Export, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(export_once("onnx", False).output / "model.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(RunFolderError, match=r"foreign\.onnx was not written by finetune export"):
        load_model(tmp_path / "foreign.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"empty\.onnx cannot be read by ONNX Runtime"):
        load_model(tmp_path / "empty.onnx")


def test_load_onnx_of_other_classes_raises_run_folder_error(
    export_once: Export, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(str(export_once("onnx", False).output / "model.onnx"))
    for entry in model.metadata_props:
        if entry.key == "finetune":
            tree = json.loads(entry.value)
            tree["classes"].append("more")
            tree["priors"] = None
            entry.value = json.dumps(tree)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(RunFolderError, match=r"output of shape \(1, 3\).* name 4 classes"):
        load_model(tmp_path)

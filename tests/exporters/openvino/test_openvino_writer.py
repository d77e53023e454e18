"""Tests of model files of OpenVINO, which OpenVINO runs in the tests."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import finetune
from finetune.bundle.bundle import ModelBundle, load_model
from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.openvino_network import OpenVinoNetwork, read_openvino_metadata
from finetune.bundle.verification.file_digests import DIGESTS_FILE
from finetune.errors import FinetuneError, ModelError, RunFolderError
from finetune.exporters.graphs.graph_program import build_graph
from finetune.exporters.openvino.model_info import build_model_info
from finetune.exporters.openvino.openvino_writer import predict_files
from finetune.exporters.parity import check_parity, measure_parity
from finetune.inference.predictor import Predictor
from finetune.types import PreprocessSpec
from tests.support.calibrated_models import CLASSES, save_calibrated_model, write_kinds_of_photos

pytestmark = pytest.mark.runs

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """Return a calibrated model with a target prior."""
    return save_calibrated_model(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return photos of several kinds."""
    return write_kinds_of_photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def folder(model: ModelBundle, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported folder; the export itself checks its parity."""
    assert predict(model, files).std(0).max() > 0.05, "the images must differ"
    output = tmp_path_factory.mktemp("exports") / "openvino"
    result = finetune.export(model.source, output, format="openvino", images=files[0].parent)
    assert result.parity is not None
    assert result.parity.num_same_top1 == len(files)
    assert result.parity.max_abs_diff < 1e-4
    return output


def predict(model: ModelBundle, files: list[Path]) -> Tensor:
    return Predictor(model, device="cpu").predict_proba(files)


def test_export_runs_in_openvino_for_any_batch(folder: Path, model: ModelBundle) -> None:
    network = OpenVinoNetwork(folder / "model.xml")
    images = torch.randn(5, *model.card.spec.input_size)
    with torch.inference_mode():
        whole = network(images)
        with ThreadPoolExecutor(3) as pool:
            single = torch.cat(list(pool.map(lambda image: network(image[None]), images)))
    assert whole.shape == (5, len(CLASSES))
    assert float((whole - single).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["", "model.xml"])
def test_load_model_of_export_predicts_as_the_model(
    folder: Path, model: ModelBundle, files: list[Path], name: str
) -> None:
    loaded = load_model(folder / name)
    assert loaded.card.classes == CLASSES
    assert float((predict(loaded, files) - predict(model, files)).abs().max()) < 1e-4


def test_export_has_metadata_for_finetune_and_openvino(folder: Path) -> None:
    metadata = read_openvino_metadata(folder / "model.xml")
    assert json.loads(metadata["names"]) == list(CLASSES)
    assert json.loads(metadata["temperature"]) == 1.5
    text = (folder / "model.xml").read_text(encoding="utf-8")
    assert '<labels value="bée fly wasp,_red" />' in text
    assert '<mean_values value="127.5 102 76.5" />' in text
    assert '<resize_type value="crop" />' in text
    assert 'layout="[N,C,H,W]"' in text


@pytest.mark.slow
def test_export_with_preprocessing_takes_photos(
    model: ModelBundle, files: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = finetune.export(
        model.source,
        output,
        format="openvino",
        include_preprocessing=True,
        images=files[0].parent,
    )
    assert result.parity is not None
    assert result.parity.num_same_top1 == len(files)
    assert result.parity.max_abs_diff < 0.005
    predictions = finetune.predict(output, files).predictions
    expected = predict(model, files).max(1).values.tolist()
    assert [p.probabilities[0] for p in predictions] == pytest.approx(expected, abs=0.005)
    assert 'layout="[N,H,W,C]"' in (output / "model.xml").read_text(encoding="utf-8")
    assert "mean_values" not in (output / "model.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<mean value="[0.5, 0.4, 0.3]"', '<mean value="[0.485, 0.456, 0.406]"'),
        ('<mean value="[0.5, 0.4, 0.3]"', '<mean value="[0.3, 0.4, 0.5]"'),
        ('<crop_pct value="0.9"', '<crop_pct value="0.6"'),
        ('<interpolation value="bicubic"', '<interpolation value="nearest"'),
    ],
)
def test_parity_of_sabotaged_metadata_raises_model_error(
    folder: Path, model: ModelBundle, files: list[Path], tmp_path: Path, old: str, new: str
) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    text = (changed / "model.xml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (changed / "model.xml").write_text(text.replace(old, new), encoding="utf-8")
    parity = measure_parity(predict_files(changed, files), predict(model, files), card=model.card)
    with pytest.raises(ModelError, match="differs from the evaluated model"):
        check_parity(parity, name=str(changed))


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", ["channels", "mean", "size"])
def test_export_of_sabotaged_graph_fails_and_leaves_nothing(
    model: ModelBundle,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: str,
) -> None:
    # the file computes something else than the evaluated model, although it is what it should be
    from finetune.exporters.openvino import openvino_writer

    spec = model.card.spec
    spec = {
        "channels": replace(spec, mean=spec.mean[::-1], std=spec.std[::-1]),
        "mean": replace(spec, mean=(0.0, 0.0, 0.0)),
        "size": replace(spec, input_size=(3, 96, 96)),
    }[sabotage]

    def build_other(bundle: ModelBundle, options: object) -> object:
        other = replace(bundle, card=replace(bundle.card, spec=spec))
        return build_graph(other, options)  # type: ignore[arg-type]

    monkeypatch.setattr(openvino_writer, "build_graph", build_other)
    with pytest.raises(ModelError, match="differs from the evaluated model"):
        finetune.export(
            model.source,
            tmp_path / "out",
            format="openvino",
            include_preprocessing=True,
            images=files[0].parent,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("<net", ModelError, "cannot be read by OpenVINO"),
        ("<finetune>", RunFolderError, "not written by finetune export"),
        ("&quot;classes&quot;", RunFolderError, "model card in its metadata is invalid"),
    ],
)
def test_load_model_of_foreign_or_damaged_file_says_what_is_missing(
    folder: Path, tmp_path: Path, change: str, error: type[FinetuneError], message: str
) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    text = (changed / "model.xml").read_text(encoding="utf-8")
    assert change in text
    text = text.replace(change, change.replace("net", "nxt").replace("class", "clxss"))
    text = text.replace("</finetune>", "</finxtune>").replace("<finxtune>", "<finxtune>")
    if change == "<finetune>":
        text = text.replace("<finetune>", "<finxtune>")
    else:
        text = text.replace("</finxtune>", "</finetune>")
    (changed / "model.xml").write_text(text, encoding="utf-8")
    (changed / DIGESTS_FILE).unlink(missing_ok=True)  # with them, any change is refused
    with pytest.raises(error, match=message):
        load_model(changed)


def test_build_model_info_of_labels_and_crop_modes() -> None:
    spec = PreprocessSpec((3, 8, 8), (0.5,) * 3, (1.0,) * 3, crop_mode="border")
    card = ModelCard("resnet18", {}, ("a b", "c"), spec, thresholds=(0.5, 0.5))
    info = build_model_info(card, takes_photos=False)
    assert info["labels"] == "a_b c"
    assert info["multilabel"] == "True"
    assert info["resize_type"] == "fit_to_window_letterbox"
    assert info["scale_values"] == "255 255 255"
    assert "resize_type" not in build_model_info(card, takes_photos=True)

"""Tests of folders for transformers, which load and run them in the tests."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import finetune
from finetune.bundle.bundle import ModelBundle, combine_models, load_model
from finetune.errors import ConfigError, ModelError
from finetune.exporters.export_formats import ExportOptions
from finetune.exporters.huggingface.transformers_folder import explain_refusal, predict_files
from finetune.exporters.parity import check_parity, measure_parity
from finetune.inference.predictor import Predictor
from finetune.types import PreprocessSpec
from tests.support.calibrated_models import (
    CLASSES,
    SPEC,
    save_calibrated_model,
    write_kinds_of_photos,
)

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """Return a calibrated model with a target prior."""
    return save_calibrated_model(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return photos of several kinds, one of them transparent."""
    files = write_kinds_of_photos(tmp_path_factory.mktemp("images") / "photos")
    transparent = files[0].parent / "transparent.png"
    image = Image.open(files[0]).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(transparent)
    return [*files, transparent]


@pytest.fixture(scope="module")
def folder(model: ModelBundle, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported folder; the export itself checks its parity."""
    assert predict(model, files).std(0).max() > 0.05, "the images must differ"
    output = tmp_path_factory.mktemp("exports") / "huggingface"
    result = finetune.export(model.source, output, format="huggingface", images=files[0].parent)
    assert result.parity is not None
    assert result.parity.num_same_top1 == len(files)
    assert result.parity.max_abs_diff < 1e-5
    return output


def predict(model: ModelBundle, files: list[Path]) -> Tensor:
    return Predictor(model, device="cpu").predict_proba(files)


def test_export_loads_in_transformers_without_network_or_code(
    folder: Path, model: ModelBundle, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    assert network.config.id2label == dict(enumerate(CLASSES))
    assert not list(folder.glob("*.bin"))
    assert not list(folder.glob("*.py"))
    with torch.inference_mode():
        logits = network(**processor(Image.open(files[1]), return_tensors="pt")).logits
    expected = predict(model, [files[1]])
    assert float((logits.softmax(1) - expected).abs().max()) < 1e-5


def test_export_loads_in_timm_and_finetune(
    folder: Path, model: ModelBundle, files: list[Path]
) -> None:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config: Any = network.pretrained_cfg
    assert config["label_names"] == list(CLASSES)
    assert float((predict(load_model(folder), files) - predict(model, files)).abs().max()) < 1e-5


def test_export_saved_again_by_transformers_loads_in_finetune(
    folder: Path, model: ModelBundle, files: list[Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageClassification

    saved = tmp_path / "saved"
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(saved)
    assert not (saved / "finetune.json").exists()
    again = load_model(saved)
    assert again.card.classes == CLASSES
    assert float((predict(again, files) - predict(model, files)).abs().max()) < 1e-5


def test_export_of_labels_has_a_sigmoid_in_the_pipeline(files: list[Path], tmp_path: Path) -> None:
    model = save_calibrated_model(tmp_path / "bundle", is_multi_label=True)
    result = finetune.export(
        model.source, tmp_path / "out", format="huggingface", images=files[0].parent
    )
    assert result.parity is not None
    assert result.parity.num_same_labels == len(files)
    assert float((predict(model, files).sum(1) - 1).abs().max()) > 0.01, "no softmax"
    (tmp_path / "out" / "finetune.json").unlink()
    assert load_model(tmp_path / "out").card.thresholds == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("sabotage", ["mean", "channels", "size", "names"])
def test_parity_of_sabotaged_folder_raises_model_error(
    folder: Path, model: ModelBundle, files: list[Path], tmp_path: Path, sabotage: str
) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    config = json.loads((changed / "config.json").read_text(encoding="utf-8"))
    cfg = config["pretrained_cfg"]
    if sabotage == "mean":
        cfg["mean"] = [0.485, 0.456, 0.406]
    elif sabotage == "size":
        cfg["input_size"] = [3, 96, 96]
    elif sabotage == "names":
        config["label_names"].reverse()
    else:
        state = load_file(changed / "model.safetensors")
        name = f"{cfg['first_conv']}.weight"
        state[name] = state[name].flip(1).contiguous()
        save_file(state, changed / "model.safetensors")
    (changed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"differs from the evaluated model|has classes"):
        check_parity(
            measure_parity(predict_files(changed, files), predict(model, files), card=model.card),
            name=str(changed),
        )


def test_explain_refusal_names_model_and_remedy(model: ModelBundle) -> None:
    def explain(changed: ModelBundle) -> str:
        return explain_refusal(changed, ExportOptions()) or ""

    def change(**values: object) -> ModelBundle:
        return replace(model, card=replace(model.card, **values))  # type: ignore[arg-type]

    assert explain(model) == ""
    assert "'googlenet'" in explain(change(backbone="googlenet"))
    assert "--format onnx" in explain(change(backbone="alexnet.tv_in1k"))
    assert "'my_net:build'" in explain(change(backbone="my_net:build"))
    assert "model.head=mlp" in explain(change(head={"name": "mlp"}))
    four = PreprocessSpec((4, 32, 32), (0.5,) * 4, (0.5,) * 4)
    assert "4 channels" in explain(change(spec=four))
    assert "3 channels of 16 bits" in explain(change(bit_depth=16))
    assert "ensemble" in explain(combine_models([model, model]))
    no_weights = replace(model, network=torch.nn.Identity())
    assert "library" in explain(no_weights)


def test_export_of_refused_model_writes_nothing(tmp_path: Path) -> None:
    spec = replace(SPEC, input_size=(1, 64, 64), mean=(0.5,), std=(0.25,))
    model = save_calibrated_model(tmp_path / "bundle", spec=spec)
    with pytest.raises(ConfigError, match=r"1 channel: .*--format timm"):
        finetune.export(model.source, tmp_path / "out", format="huggingface")
    assert not (tmp_path / "out").exists()

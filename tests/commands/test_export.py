"""Tests of ``finetune.commands.export``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model, save_bundle
from finetune.bundle.model_card import ModelCard
from finetune.errors import DataError, ModelError, RunFolderError, StorageError
from finetune.exporters.parity import ParityLimits
from finetune.models.backbone import create_network
from tests.commands.test_evaluate import rows_of
from tests.support.helpers import RecordingReporter, list_names, mount_tiny_disk
from tests.support.networks import randomise, set_batch_norm_statistics

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_export_run_has_parity_and_equal_predictions(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    recorder = RecordingReporter()
    result = finetune.export(trained.run_dir, tmp_path / "model", reporter=recorder)
    assert recorder.warnings == []
    assert result.parity is not None
    assert result.parity.num_images == len(rows_of(trained.run_dir, "val"))
    assert result.parity.num_same_top1 == result.parity.num_images
    assert 0 < result.parity.max_abs_diff < 1e-3
    tree = json.loads(json.dumps(result.to_json()))
    assert tree["files"] == list_names(tmp_path / "model")
    assert tree["parity"]["num_images"] == result.parity.num_images

    ours, exported = (
        finetune.predict(model, insects, top_k=3, device="cpu").predictions
        for model in (trained.run_dir, tmp_path / "model")
    )
    assert exported == ours
    assert list_names(tmp_path) == ["model"]


def test_export_of_export_is_identical_and_loads_as_weights(
    trained: FitResult, tmp_path: Path
) -> None:
    finetune.export(trained.run_dir, tmp_path / "one")
    finetune.export(tmp_path / "one", tmp_path / "two")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")
    )
    assert first == second
    network = create_network("resnet10t", num_classes=5, weights=str(tmp_path / "one"))
    assert network.report.loaded_fraction == 1


def test_export_folds_temperature_into_classifier(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    bundle = load_model(trained.run_dir)
    save_bundle(bundle.network, replace(bundle.card, temperature=0.4), tmp_path / "calibrated")
    recorder = RecordingReporter()
    result = finetune.export(
        tmp_path / "calibrated", tmp_path / "model", images=insects, reporter=recorder
    )
    assert recorder.warnings == []
    assert result.parity is not None  # of timm alone with what is calibrated
    assert result.parity.num_same_top1 == 38
    exported_bundle = load_model(tmp_path / "model")
    assert exported_bundle.card.temperature == 1
    readme = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "temperature 0.4" in readme
    plain, ours, exported = (
        finetune.predict(model, insects, top_k=3, device="cpu").predictions
        for model in (trained.run_dir, tmp_path / "calibrated", tmp_path / "model")
    )
    gain = 0.0
    for before, mine, theirs in zip(plain, ours, exported, strict=True):
        assert theirs.labels == mine.labels == before.labels
        assert theirs.probabilities == pytest.approx(mine.probabilities, abs=1e-5)
        gain = max(gain, mine.probabilities[0] - before.probabilities[0])
    assert gain > 0.05, "a temperature of 0.4 changes the probabilities"
    finetune.export(tmp_path / "model", tmp_path / "again")
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("model", "again"))
    assert first == second, "the temperature is folded in once"


def test_export_without_linear_head_warns_about_temperature(insects: Path, tmp_path: Path) -> None:
    created = create_network(
        "deit_tiny_distilled_patch16_224", num_classes=2, weights="random", image_size=32
    )
    randomise(created.module)
    card = ModelCard(
        "deit_tiny_distilled_patch16_224",
        created.model_args,
        ("a", "b"),
        created.spec,
        temperature=0.5,
    )
    save_bundle(created.module, card, tmp_path / "bundle")
    recorder = RecordingReporter()
    result = finetune.export(
        tmp_path / "bundle", tmp_path / "model", images=insects / "fly", reporter=recorder
    )
    assert result.parity is not None
    assert "divide the logits by 0.5" in recorder.warnings[0]
    assert load_model(tmp_path / "model").card.temperature == 0.5
    assert " / 0.5).softmax(1)" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_export_checkpoint_with_images_checks_parity(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    result = finetune.export(alone, tmp_path / "model", images=insects / "fly")
    assert result.parity is not None
    assert result.parity.num_images == 12


def test_export_bundle_without_images_warns_without_parity(
    trained: FitResult, tmp_path: Path
) -> None:
    recorder = RecordingReporter()
    bundle = trained.run_dir / "bundle"
    result = finetune.export(bundle, tmp_path / "model", reporter=recorder)
    assert result.parity is None
    assert result.to_json()["parity"] is None
    assert "--images" in recorder.warnings[0]


def test_export_to_nonempty_output_raises_run_folder_error(
    trained: FitResult, tmp_path: Path
) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "holiday.txt"):
        with pytest.raises(RunFolderError, match=rf"{output.name} .*--output"):
            finetune.export(trained.run_dir, output)
    assert (tmp_path / "holiday.txt").read_text() == "mine"
    assert list_names(tmp_path) == ["holiday.txt"]


def test_export_without_parity_removes_folder(
    trained: FitResult, insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a zero tolerance fails on the small differences between the two resizing implementations
    monkeypatch.setattr("finetune.commands.export.checked_files.EXACT", ParityLimits(0.0, 1.0))
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        finetune.export(trained.run_dir, tmp_path / "model", images=insects)
    assert list_names(tmp_path) == []


def test_export_unreadable_image_removes_folder(trained: FitResult, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png"):
        finetune.export(trained.run_dir, tmp_path / "model", images=tmp_path / "images")
    with pytest.raises(DataError, match="gone"):
        finetune.export(trained.run_dir, tmp_path / "model", images=tmp_path / "gone")
    assert list_names(tmp_path) == ["images"]


def test_export_full_disk_removes_folder(trained: FitResult, tmp_path: Path) -> None:
    with mount_tiny_disk(tmp_path / "disk", size="1m") as disk:
        with pytest.raises(StorageError, match=r"no space .*there, or choose another --output\.$"):
            finetune.export(trained.run_dir, disk / "model")
        assert list_names(disk) == []


def test_export_googlenet_readme_imports_finetune(insects: Path, tmp_path: Path) -> None:
    bundle = write_googlenet_bundle(tmp_path / "bundle")
    result = finetune.export(bundle, tmp_path / "model", images=insects / "fly" / "fly 00.png")
    assert result.parity is not None
    assert "import finetune" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def write_googlenet_bundle(folder: Path) -> Path:
    """Write a bundle of a GoogLeNet with BatchNorm statistics of real activations."""
    created = create_network("googlenet", num_classes=2, weights="random", image_size=64)
    randomise(created.module)
    set_batch_norm_statistics(created.module, torch.randn(4, 3, 64, 64))
    card = ModelCard("googlenet", created.model_args, ("a", "b"), created.spec)
    save_bundle(created.module, card, folder)
    return folder

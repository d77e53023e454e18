"""Shipping a model as a folder."""

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
from finetune.models.backbone import create_network
from tests.commands.test_evaluate import rows_of
from tests.support.helpers import Recorder, names_in, tiny_disk
from tests.support.networks import randomise, settle

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_an_export_is_the_model_and_is_compared_on_the_images_held_out(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    recorder = Recorder()
    result = finetune.export(trained.run_dir, tmp_path / "model", reporter=recorder)
    assert recorder.warnings == []
    assert result.parity is not None
    assert result.parity.num_images == len(rows_of(trained.run_dir, "val"))
    assert result.parity.same_top_class == result.parity.num_images
    assert 0 < result.parity.max_difference < 1e-3
    tree = json.loads(json.dumps(result.to_json()))
    assert tree["files"] == names_in(tmp_path / "model")
    assert tree["parity"]["num_images"] == result.parity.num_images

    ours, exported = (
        finetune.predict(model, insects, top_k=3, device="cpu").predictions
        for model in (trained.run_dir, tmp_path / "model")
    )
    assert exported == ours
    assert names_in(tmp_path) == ["model"]


def test_an_export_can_be_exported_and_fine_tuned_again(trained: FitResult, tmp_path: Path) -> None:
    finetune.export(trained.run_dir, tmp_path / "one")
    finetune.export(tmp_path / "one", tmp_path / "two")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")
    )
    assert first == second
    network = create_network("resnet10t", num_classes=5, weights=str(tmp_path / "one"))
    assert network.report.loaded_fraction == 1


def test_a_temperature_goes_into_the_exported_classifier(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    bundle = load_model(trained.run_dir)
    save_bundle(bundle.network, replace(bundle.card, temperature=0.4), tmp_path / "calibrated")
    recorder = Recorder()
    result = finetune.export(
        tmp_path / "calibrated", tmp_path / "model", images=insects, reporter=recorder
    )
    assert recorder.warnings == []
    assert result.parity is not None  # of timm alone with what is calibrated
    assert result.parity.same_top_class == 38
    shipped = load_model(tmp_path / "model")
    assert shipped.card.temperature == 1
    assert "the classifier holds the temperature 0.4" in (
        (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    )
    plain, ours, exported = (
        finetune.predict(model, insects, top_k=3, device="cpu").predictions
        for model in (trained.run_dir, tmp_path / "calibrated", tmp_path / "model")
    )
    gain = 0.0
    for before, mine, theirs in zip(plain, ours, exported, strict=True):
        assert theirs.labels == mine.labels == before.labels
        assert theirs.probabilities == pytest.approx(mine.probabilities, abs=1e-5)
        gain = max(gain, mine.probabilities[0] - before.probabilities[0])
    assert gain > 0.05, "a temperature of 0.4 is seen"
    finetune.export(tmp_path / "model", tmp_path / "again")
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("model", "again"))
    assert first == second, "once is enough"


def test_a_head_that_cannot_hold_the_temperature_says_who_must_divide(
    insects: Path, tmp_path: Path
) -> None:
    made = create_network(
        "deit_tiny_distilled_patch16_224", num_classes=2, weights="random", image_size=32
    )
    randomise(made.module)
    card = ModelCard(
        "deit_tiny_distilled_patch16_224", made.model_args, ("a", "b"), made.spec, temperature=0.5
    )
    save_bundle(made.module, card, tmp_path / "bundle")
    recorder = Recorder()
    result = finetune.export(
        tmp_path / "bundle", tmp_path / "model", images=insects / "fly", reporter=recorder
    )
    assert result.parity is not None
    assert "whoever uses timm alone divides the logits by 0.5" in recorder.warnings[0]
    assert load_model(tmp_path / "model").card.temperature == 0.5
    assert " / 0.5).softmax(1)" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_the_images_to_compare_on_can_be_named(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    result = finetune.export(alone, tmp_path / "model", images=insects / "fly")
    assert result.parity is not None
    assert result.parity.num_images == 12


def test_without_any_image_it_says_that_nothing_was_compared(
    trained: FitResult, tmp_path: Path
) -> None:
    recorder = Recorder()
    bundle = trained.run_dir / "bundle"
    result = finetune.export(bundle, tmp_path / "model", reporter=recorder)
    assert result.parity is None
    assert result.to_json()["parity"] is None
    assert "no images to compare the export with" in recorder.warnings[0]


def test_a_folder_that_holds_something_is_never_replaced(
    trained: FitResult, tmp_path: Path
) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "holiday.txt"):
        with pytest.raises(RunFolderError, match="exists and is not empty"):
            finetune.export(trained.run_dir, output)
    assert (tmp_path / "holiday.txt").read_text() == "mine"
    assert names_in(tmp_path) == ["holiday.txt"]


def test_an_export_that_differs_is_not_left_behind(
    trained: FitResult, insects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with no difference allowed, that of the two resizing codes is too much
    monkeypatch.setattr("finetune.exporters.parity.MAX_DIFFERENCE", 0.0)
    with pytest.raises(ModelError, match="differs from the measured model"):
        finetune.export(trained.run_dir, tmp_path / "model", images=insects)
    assert names_in(tmp_path) == []


def test_nothing_is_left_behind_when_an_image_cannot_be_read(
    trained: FitResult, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: empty file"):
        finetune.export(trained.run_dir, tmp_path / "model", images=tmp_path / "images")
    with pytest.raises(DataError, match="gone does not exist"):
        finetune.export(trained.run_dir, tmp_path / "model", images=tmp_path / "gone")
    assert names_in(tmp_path) == ["images"]


def test_nothing_is_left_behind_on_a_full_disk(trained: FitResult, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", size="1m") as disk:
        with pytest.raises(StorageError, match="no space is left"):
            finetune.export(trained.run_dir, disk / "model")
        assert names_in(disk) == []


def test_an_exported_classic_says_what_timm_must_be_told(insects: Path, tmp_path: Path) -> None:
    bundle = load_classic(tmp_path / "bundle")
    result = finetune.export(bundle, tmp_path / "model", images=insects / "fly" / "fly 00.png")
    assert result.parity is not None
    assert "import finetune" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def load_classic(folder: Path) -> Path:
    """Write a bundle of a GoogLeNet whose statistics are those of real activations."""
    made = create_network("googlenet", num_classes=2, weights="random", image_size=64)
    randomise(made.module)
    settle(made.module, torch.randn(4, 3, 64, 64))
    card = ModelCard("googlenet", made.model_args, ("a", "b"), made.spec)
    save_bundle(made.module, card, folder)
    return folder

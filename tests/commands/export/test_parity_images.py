"""Tests of the images on which an export is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune.bundle.model_card import ModelCard
from finetune.commands.export.parity_images import select_parity_images
from finetune.types import PreprocessSpec
from tests.support.helpers import RecordingReporter

CARD = ModelCard("resnet18", {}, ("bee", "wasp"), PreprocessSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with two images of each of three classes."""
    for number, name in enumerate(("ant", "bee", "wasp")):
        (tmp_path / name).mkdir()
        for image in range(2):
            color = (80 * number, 90 * image, 0)
            Image.new("RGB", (8, 8), color).save(tmp_path / name / f"{image}.png")
    return tmp_path


def test_select_parity_images_warns_of_an_unknown_class(images: Path) -> None:
    recorder = RecordingReporter()
    found = select_parity_images([], images, card=CARD, reporter=recorder)
    assert (len(found.files), found.targets) == (6, None)
    (warning,) = recorder.warnings
    assert "no class 'ant' (2 images)." in warning
    assert "bee and wasp" in warning


def test_select_parity_images_warns_of_labels_of_another_kind(images: Path) -> None:
    recorder = RecordingReporter()
    card = replace(CARD, classes=("ant", "bee", "wasp"), thresholds=(0.5,) * 3)
    assert select_parity_images([], images, card=card, reporter=recorder).targets is None
    (warning,) = recorder.warnings
    assert "one class each" in warning


def test_select_parity_images_of_known_classes_has_targets_and_no_warning(images: Path) -> None:
    recorder = RecordingReporter()
    card = replace(CARD, classes=("ant", "bee", "wasp"))
    found = select_parity_images([], images, card=card, reporter=recorder)
    assert found.targets is not None
    assert found.targets.tolist() == [0, 0, 1, 1, 2, 2]
    unlabelled = select_parity_images([], images / "bee", card=card, reporter=recorder)
    assert (len(unlabelled.files), unlabelled.targets) == (2, None)
    assert recorder.warnings == []

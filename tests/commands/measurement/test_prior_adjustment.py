"""Strength of the adjustment of a run: its images, its place in bundle and report, and resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.commands.fit.fit import FitResult
from finetune.commands.measurement import prior_adjustment
from finetune.evaluation.prior_strength import choose_strength
from finetune.evaluation.priors import interpolate_priors
from finetune.types import Split
from tests.support.runs import create_small_config, write_photos, write_weights

pytestmark = pytest.mark.runs

TRAIN_IMAGES = {"ant": 12, "bee": 6, "cow": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return photos of an imbalance ratio of 6, and of weights beside them; never change them."""
    root = write_photos(tmp_path_factory.mktemp("data") / "photos", num_train=12)
    for name, count in TRAIN_IMAGES.items():
        for file in sorted((root / "train" / name).iterdir())[count:]:
            file.unlink()
    for name in ("bee", "cow"):  # as rare as in training
        for file in sorted((root / "val" / name).iterdir())[2:]:
            file.unlink()
    write_weights(root.parent / "weights.pth")
    return root


def fit(photos: Path, output: Path, **more: object) -> FitResult:
    settings: dict[str, object] = {
        "data__path": str(photos),
        "data__min_images_per_class": 1,
        "output": str(output),
        "model__weights": str(photos.parent / "weights.pth"),
        "imbalance__strategy": "auto",
        "trainer__monitor": "macro_f1",
        "trainer__epochs": 1,
    }
    return finetune.fit(create_small_config(**settings | more))


def force_strength(monkeypatch: pytest.MonkeyPatch, strength: float) -> list[dict[str, Any]]:
    """Replace every chosen strength; return the arguments of the calls, filled by them."""
    calls: list[dict[str, Any]] = []

    def choose(logits: Any, target: Any, shift: Any, **options: Any) -> Any:
        calls.append({"logits": logits, "target": target, "shift": shift, **options})
        return replace(choose_strength(logits, target, shift, **options), strength=strength)

    monkeypatch.setattr(prior_adjustment, "choose_strength", choose)
    return calls


def test_automatic_adjustment_is_chosen_on_held_out_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = force_strength(monkeypatch, 0.5)
    result = fit(photos, tmp_path / "run", probe__enabled="on")
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert stored["imbalance"]["strategy"] == "post_hoc"
    assert stored["imbalance"]["post_hoc_strength"] == "held_out"
    assert stored["loss"]["label_smoothing"] == 0.1, "trained as without adjustment"
    adjustment = result.prior_adjustment
    assert adjustment is not None
    assert adjustment["strength"] == 0.5
    # few validation images: the training images of the probe's folds count, too
    assert adjustment["num_train_images"] in (0, 20)
    assert adjustment["num_val_images"] == 9
    assert adjustment["num_images"] == len(calls[0]["target"])
    counts = np.array([12, 6, 2])
    expected = np.log(1 / 3) - np.log(counts / counts.sum())
    assert calls[0]["shift"].numpy() == pytest.approx(expected, abs=1e-5)
    # the bundle holds what was chosen, for logits without a temperature
    card = load_model(result.run_dir).card
    assert card.priors is not None
    assert card.temperature == 1
    target = interpolate_priors(
        card.priors.model, (1 / 3,) * 3, strength=0.5 * adjustment["temperature"]
    )
    assert card.priors.target == pytest.approx(target)
    best = load_model(result.run_dir / "checkpoints" / "best.ckpt").card
    assert best.priors is not None
    assert best.priors.target is None
    evaluated = finetune.evaluate(result.run_dir, photos, split=Split.VAL, device="cpu")
    assert dict(evaluated.evaluation.metrics) == dict(result.metrics["val"])
    # a run that was killed before its end chooses the same
    before = read_card_json(result.run_dir / "bundle")
    (result.run_dir / ".done").unlink()
    again = finetune.resume(result.run_dir)
    assert again.prior_adjustment == adjustment
    assert read_card_json(result.run_dir / "bundle") == before


def test_chosen_strength_of_zero_leaves_probabilities_as_trained(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_strength(monkeypatch, 0.0)
    result = fit(photos, tmp_path / "run", probe__enabled="off")
    assert result.prior_adjustment is not None
    assert result.prior_adjustment["num_train_images"] == 0
    assert result.evaluations["val"]["prior"]["adjusted"] is False
    assert load_model(result.run_dir).card.shift is None


@pytest.mark.parametrize("strength", ["auto", 0.25])
def test_requested_adjustment_has_its_strength(
    strength: str | float, photos: Path, tmp_path: Path
) -> None:
    more = {"imbalance__strategy": "post_hoc", "imbalance__post_hoc_strength": strength}
    result = fit(photos, tmp_path / "run", probe__enabled="off", **more)
    assert result.prior_adjustment is None
    priors = load_model(result.run_dir).card.priors
    assert priors is not None
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert stored["loss"]["label_smoothing"] == 0
    number = 1.0 if strength == "auto" else 0.25
    expected = interpolate_priors(priors.model, (1 / 3,) * 3, strength=number)
    assert priors.target == pytest.approx(expected)


def build_part(num_images: int, accuracy: float) -> prior_adjustment.HeldOutLogits:
    target = torch.arange(num_images) % 3
    logits = 4.0 * torch.nn.functional.one_hot(target, 3)
    wrong = torch.arange(num_images) >= accuracy * num_images
    logits[wrong] = logits[wrong].roll(1, dims=1)
    return prior_adjustment.HeldOutLogits(logits, target, np.arange(num_images))


def test_folds_far_better_than_validation_are_leaky() -> None:
    val = build_part(90, 0.6)
    assert prior_adjustment._is_leaky(build_part(300, 0.9), val)
    assert not prior_adjustment._is_leaky(build_part(300, 0.65), val)
    assert not prior_adjustment._is_leaky(build_part(300, 0.4), val)
    # a few independent images prove little
    assert not prior_adjustment._is_leaky(build_part(9, 0.7), val)

"""Metrics with and without leaked images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.commands.fit.fit import FitResult
from finetune.inference.predictor import Predictor
from finetune.types import Split
from tests.support.pictures import create_scene, write_jpeg
from tests.support.runs import create_small_config


def write_garden(root: Path, *, seed: int) -> Path:
    """Write train and val folders of two classes without duplicates."""
    for number, label in enumerate(("ant", "bee")):
        for split, count in (("train", 6), ("val", 3)):
            (root / split / label).mkdir(parents=True)
            for image in range(count):
                picture = create_scene(seed + image + 10 * number + 100 * (split == "val"))
                write_jpeg(root / split / label / f"{image}.jpg", picture)
    return root


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a run on photos of which two of eight validation images leak."""
    folder = tmp_path_factory.mktemp("leaky")
    root = write_garden(folder / "garden", seed=0)
    shutil.copyfile(root / "train/ant/0.jpg", root / "val/ant/same.jpg")
    write_jpeg(root / "val/bee/again.jpg", create_scene(11), quality=60)
    config = create_small_config(
        data__path=str(root), output=str(folder / "run"), trainer__epochs=1
    )
    result: FitResult = finetune.fit(config)
    return result


def test_fit_reports_metrics_with_and_without_leaks(leaky: FitResult) -> None:
    assert leaky.metrics.keys() == {"val", "val_without_leaks"}
    assert leaky.evaluations["val"]["num_images"] == 8
    assert leaky.evaluations["val_without_leaks"]["num_images"] == 6
    model = Predictor(load_model(leaky.run_dir), device="cpu")
    root = leaky.run_dir.parent / "garden" / "val"
    clean = [root / label / f"{n}.jpg" for label in ("ant", "bee") for n in range(3)]
    right = model.predict_proba(clean).argmax(dim=1) == torch.tensor([0] * 3 + [1] * 3)
    expected = float(right.double().mean())
    assert leaky.metrics["val_without_leaks"]["accuracy"] == pytest.approx(expected)
    facts = read_card_json(leaky.run_dir / "bundle")["facts"]
    assert facts["metrics"].keys() == {"val", "val_without_leaks"}


@pytest.mark.parametrize("named", [None, "", "val"])
def test_evaluate_own_images_reports_metrics_without_leaks(
    leaky: FitResult, named: str | None
) -> None:
    data = None if named is None else leaky.run_dir.parent / "garden" / named
    found = finetune.evaluate(leaky.run_dir, data, device="cpu")
    assert found.evaluation.num_images == 8
    assert found.without_leaks is not None
    assert found.without_leaks.num_images == 6
    tree = found.to_json()["without_leaks"]
    assert tree["metrics"]["accuracy"] == leaky.metrics["val_without_leaks"]["accuracy"]


def test_evaluate_other_images_of_the_same_names_do_not_leak(
    leaky: FitResult, tmp_path: Path
) -> None:
    other = write_garden(tmp_path / "other", seed=1000)
    for name in ("ant/same.jpg", "bee/again.jpg"):
        write_jpeg(other / "val" / name, create_scene(5000 + len(name)))
    found = finetune.evaluate(leaky.run_dir, other, split=Split.VAL, device="cpu")
    assert found.evaluation.num_images == 8
    assert found.without_leaks is None
    assert found.to_json()["without_leaks"] is None


def test_fit_temperature_shift_accounts_for_the_class_prior() -> None:
    from finetune.evaluation.calibration import fit_temperature

    # logits that are exact for balanced classes, evaluated where one class is rare
    random = np.random.default_rng(2)
    labels = random.choice(2, size=20_000, p=[0.97, 0.03])
    values = random.normal(np.where(labels == 0, 0.0, 1.5), np.where(labels == 0, 1.0, 2.0))
    densities = [-(values**2) / 2, -(((values - 1.5) / 2) ** 2) / 2 - np.log(2)]
    logits = torch.from_numpy(np.stack(densities, axis=1))
    target = torch.from_numpy(labels)
    shift = torch.tensor([0.97 / 0.5, 0.03 / 0.5]).log()
    assert fit_temperature(logits, target, shift=shift) == pytest.approx(1.0, abs=0.1)
    assert abs(fit_temperature(logits, target) - 1.0) > 0.2

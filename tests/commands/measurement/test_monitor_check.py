"""Tests of plans whose metric is undefined on the images that choose the best epoch."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.commands.fit.fit import plan_fit
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import DataError

WEIGHTS = {"imbalance.strategy": "class_weights"}
CASES = [
    (WEIGHTS, r"checkpoint\.monitor=mean_average_precision \(the loss distorts"),
    ({"loss.name": "asymmetric"}, r"checkpoint\.monitor=mean_average_precision \("),
    ({"trainer.monitor": "micro_f1"}, r"checkpoint\.monitor=micro_f1 \(trainer\.monitor is set\)"),
    ({"checkpoint.monitor": "macro_f1"}, r"checkpoint\.monitor=macro_f1, which chooses"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images, with CSVs in which two thirds of them have no label."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    rows = []
    for row in range(18):
        name = f"{row}.png"
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(root / name)
        kind = min(row // 3, 2)
        rows.append((name, ("a", "a|b", "")[kind], kind))
    for file, header, last in (
        ("split.csv", "split", ("train", "train", "val")),
        ("groups.csv", "group", ("first", "second", "")),
    ):
        with (root / file).open("w", newline="") as stream:
            lines = [(path, labels, last[kind]) for path, labels, kind in rows]
            csv.writer(stream).writerows([("path", "labels", header), *lines])
    return root


@pytest.fixture
def build(pictures: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return a function that returns the config of a small run."""

    def build(file: str, settings: dict[str, Any]) -> Config:
        small = {
            "data.path": str(pictures / file),
            "data.image_size": 32,
            "data.num_workers": 0,
            "model.backbone": "test_resnet",
            "model.weights": "random",
            "augment.name": "none",
            "optim.lr": 0.01,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.batch_size": 4,
            "trainer.epochs": 1,
            "output": str(tmp_path / "run"),
        }
        return build_config({}, assignments={**small, **settings})

    return build


@pytest.mark.parametrize(("settings", "message"), CASES)
def test_validation_images_without_labels_are_refused_where_a_metric_needs_them(
    settings: dict[str, Any], message: str, build: Callable[..., Config]
) -> None:
    with pytest.raises(DataError, match=rf"^None of the 12 validation .*, so that {message}.*Add"):
        plan_fit(build("split.csv", settings))


@pytest.mark.parametrize(("settings", "message"), CASES[::3])
@pytest.mark.parametrize("num_folds", [2, 3])
def test_fold_without_labels_is_named_where_a_metric_needs_them(
    num_folds: int, settings: dict[str, Any], message: str, build: Callable[..., Config]
) -> None:
    config = build("groups.csv", {**settings, "cross_validation.num_folds": num_folds})
    with pytest.raises(DataError, match=r"^None of the \d images that fold \d holds out") as error:
        plan_fit(config)
    error.match(message)
    assert ("Use fewer folds (--folds), or set" in str(error.value)) == (num_folds == 3)
    error.match(r"et checkpoint\.monitor=calibrated_loss\.$")


def test_other_metrics_need_no_label(
    build: Callable[..., Config],
) -> None:
    remedied = {**WEIGHTS, "checkpoint.monitor": "calibrated_loss"}
    plan_fit(build("split.csv", {"checkpoint.monitor": "subset_accuracy"}))
    plan_fit(build("groups.csv", {**remedied, "cross_validation.num_folds": 3}))

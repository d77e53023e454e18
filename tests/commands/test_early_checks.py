"""What needs no image is checked before any is read."""

from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.builders.constraints.early_check import check_before_images
from finetune.config.load import build_config
from finetune.errors import FinetuneError

PRETRAINED = {"model.backbone": "test_resnet", "model.weights": "weights.pth"}

MISTAKES: dict[str, dict[str, Any]] = {
    "Did you mean 'resnet18'": {"model.backbone": "resnet-18"},
    "cannot import 'mynt'": {"model.backbone": "mynt:create_model"},
    "nothing.pth does not exist": {"model.weights": "nothing.pth"},
    "hub cannot apply": {"model.backbone": "torchvision.models:resnet18", "model.weights": "hub"},
    "does not smooth labels": {"loss.name": "hinge", "loss.label_smoothing": 0.1},
    "whose first weights it replaces": {"model.head_init": "he"},
    "unknown parameter 'rho'": {"optim.params": {"rho": 1}},
    "without epochs": {"unfreeze.name": "linear_probe", "augment.mixup": 0.2},
    "optim.lr=0.5 cannot apply": {"unfreeze.name": "linear_probe", "optim.lr": 0.5},
    "augment.name: gone.json does not exist": {"augment.name": "gone.json"},
    "exists and is not empty": {"output": "taken"},
    "share. Add --output": {"cross_validation.num_folds": 3, "cross_validation.fold": 2},
    "margin=0 is not": {"loss.name": "hinge", "loss.params": {"margin": 0}},
    "gamma_neg=-1": {"loss.name": "asymmetric", "loss.params": {"gamma_neg": -1}},
    "beta=2": {
        "imbalance.class_weights": "effective_number",
        "imbalance.class_weights_params": {"beta": 2},
    },
    "not 3": {"imbalance.sampler": "effective_number", "imbalance.sampler_params": {"beta": 3}},
    "not divisible": {"trainer.accumulate_grad_batches": 3, "trainer.batch_size": 8},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_found_before_images_are_read(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"not read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    settings = {**PRETRAINED, "data.path": "photos", "trainer.accelerator": "cpu"}
    config = build_config({}, assignments={**settings, **MISTAKES[message]})
    # the folder has no images, which would be the error of whatever reads them
    with pytest.raises(FinetuneError, match=message):
        finetune.fit(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "taken", "weights.pth"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim.swa_fraction": 0.1},
        {"augment.rare_class_preset": "strong", "augment.name": "light"},
        {"data.train_image_size": [96, 96], "unfreeze.name": "linear_probe"},
        {"data.image_size": 32, "unfreeze.name": "linear_probe"},
        {"loss.name": "asymmetric"},
        {"imbalance.strategy": "class_weights", "loss.name": "bce"},
        {"trainer.accumulate_grad_batches": 64, "trainer.batch_size": 64},
        {"model.head": "mlp", "model.head_init": "he"},
        {"unfreeze.name": "head_first", "unfreeze.params": {"epochs": 2}, "trainer.epochs": 3},
        {"trainer.monitor": "mean_average_precision"},
    ],
)
def test_early_check_leaves_to_the_images_what_depends_on_them(settings: dict[str, Any]) -> None:
    values = {**PRETRAINED, "data.path": "labels.csv", "trainer.accelerator": "cpu", **settings}
    check_before_images(build_config({}, assignments=values))

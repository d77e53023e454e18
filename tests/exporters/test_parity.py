"""Tests of the parity check of exports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torch import Tensor

from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import ModelCard
from finetune.errors import ModelError
from finetune.exporters.parity import EXACT, OWN_PREPROCESSING, Parity, check_parity, measure_parity
from finetune.exporters.timm_writer import predict_files
from finetune.inference.predictor import Predictor
from finetune.types import PreprocessSpec

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


CARD = ModelCard("resnet18", {}, ("a", "b"), PreprocessSpec((3, 8, 8), (0.5,) * 3, (0.5,) * 3))
LABEL_CARD = replace(CARD, thresholds=(0.3, 0.6))


def compare(actual: Tensor, expected: Tensor) -> Parity:
    return measure_parity(actual, expected, card=CARD)


def test_measure_parity_counts_difference_top1_and_ties() -> None:
    ours = torch.tensor([[0.6, 0.4], [0.5002, 0.4998], [0.1, 0.9]])
    theirs = torch.tensor([[0.6001, 0.3999], [0.4998, 0.5002], [0.1, 0.9]])
    parity = compare(theirs, ours)
    assert parity.num_images == 3
    assert parity.num_same_top1 == 2
    assert parity.num_ties == 1
    assert parity.agreement == 1
    assert parity.max_abs_diff == pytest.approx(4e-4, abs=1e-6)
    assert parity.metrics is None


def test_measure_parity_has_metrics_of_both_models() -> None:
    ours = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    theirs = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    parity = measure_parity(theirs, ours, card=CARD, targets=torch.tensor([0, 1, 1, 0]))
    assert parity.metrics is not None
    assert parity.metrics["accuracy"] == {"model": 1.0, "export": 0.75}
    expected = [-np.log([0.8, 0.6, 0.7, last]).mean() for last in (0.9, 0.2)]
    assert list(parity.metrics["loss"].values()) == pytest.approx(expected, abs=1e-6)


def test_measure_parity_of_labels_has_mean_average_precision() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    ours = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.7]])
    theirs = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.05, 0.7]])
    parity = measure_parity(theirs, ours, card=LABEL_CARD, targets=targets)
    assert parity.num_same_labels == 2
    assert parity.metrics is not None
    values = parity.metrics["mean_average_precision"]
    references = [
        np.mean([average_precision_score(targets[:, k], p[:, k]) for k in range(2)])
        for p in (ours, theirs)
    ]
    assert [values["model"], values["export"]] == pytest.approx(references)


def test_check_parity_over_tolerance_raises_model_error() -> None:
    ours = torch.tensor([[0.6, 0.4]])
    with pytest.raises(ModelError, match=r"model/ .* 0\.1 .*0\.001"):
        check_parity(compare(ours + torch.tensor([[0.1, -0.1]]), ours), name="model/")
    with pytest.raises(ModelError, match="nan"):
        check_parity(compare(torch.full((1, 2), torch.nan), ours), name="model/")
    check_parity(compare(ours + EXACT.max_abs_diff / 2, ours), name="model/")


def test_check_parity_refuses_other_classes_but_no_ties() -> None:
    limits = replace(OWN_PREPROCESSING, max_abs_diff=0.02)
    parity = Parity(num_images=100, max_abs_diff=0.01, num_same_top1=98, num_ties=2)
    check_parity(parity, name="model/", limits=limits)
    with pytest.raises(ModelError, match=r"model/ .* on 2 of 100 .*99\.5%"):
        check_parity(replace(parity, num_ties=0), name="model/", limits=limits)


def test_check_parity_refuses_other_labels_but_no_ties() -> None:
    ours = torch.full((100, 2), 0.9)
    ours[:3, 0], ours[3, 1] = 0.308, 0.615  # thresholds: 0.3 and 0.6
    theirs = ours.clone()
    theirs[:3, 0] -= 0.01
    parity = measure_parity(theirs, ours, card=LABEL_CARD, limits=OWN_PREPROCESSING)
    assert (parity.num_same_labels, parity.num_label_ties, parity.agreement) == (97, 3, 1)
    check_parity(parity, name="model/", limits=OWN_PREPROCESSING)
    theirs[3, 1] -= 0.018
    parity = measure_parity(theirs, ours, card=LABEL_CARD, limits=OWN_PREPROCESSING)
    assert (parity.num_same_top1 + parity.num_ties, parity.max_abs_diff < 0.02) == (100, True)
    with pytest.raises(ModelError, match=r"model/ predicts other labels .* on 1 of 100 .*99\.5%"):
        check_parity(parity, name="model/", limits=OWN_PREPROCESSING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", None),
        ("weights", r"model .*0\.001"),
        ("preprocessing", r"model .*0\.001"),
        ("names", "wasp.*bée.*not.*bée"),
    ],
)
def test_timm_folder_that_was_changed_has_no_parity(
    trained: FitResult, insects: Path, tmp_path: Path, change: str, message: str | None
) -> None:
    bundle = load_model(trained.run_dir)
    folder = Path(shutil.copytree(trained.run_dir / "bundle", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if change == "weights":
        state = load_file(folder / "model.safetensors")
        state["fc.bias"][0] += 0.05
        save_file(state, folder / "model.safetensors")
    elif change == "preprocessing":
        config["pretrained_cfg"]["mean"] = [0.2, 0.2, 0.2]
    elif change == "names":
        config["label_names"].reverse()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    files = sorted(insects.rglob("*.png"))[::4]
    ours = Predictor(bundle, device="cpu").predict_proba(files)

    def compare_folder() -> Parity:
        parity = measure_parity(predict_files(folder, files), ours, card=bundle.card)
        check_parity(parity, name=str(folder))
        return parity

    if message is None:
        parity = compare_folder()
        assert parity.num_images == parity.num_same_top1 == len(files)
        return
    with pytest.raises(ModelError, match=message):
        compare_folder()

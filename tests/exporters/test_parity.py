"""Tests of the parity check of exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.bundle.bundle import load_model
from finetune.errors import ModelError
from finetune.exporters.parity import MAX_ABS_DIFF, check_parity, compare_timm_folder
from finetune.inference.predictor import Predictor

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_check_parity_counts_difference_and_top1() -> None:
    ours = torch.tensor([[0.6, 0.4], [0.5002, 0.4998], [0.1, 0.9]])
    theirs = torch.tensor([[0.6001, 0.3999], [0.4998, 0.5002], [0.1, 0.9]])
    parity = check_parity(theirs, ours, name="a")
    assert parity.num_images == 3
    assert parity.num_same_top1 == 2
    assert parity.max_abs_diff == pytest.approx(4e-4, abs=1e-6)


def test_check_parity_over_tolerance_raises_model_error() -> None:
    ours = torch.tensor([[0.6, 0.4]])
    with pytest.raises(ModelError, match=r"model/ .* 0\.1 .*0\.001"):
        check_parity(ours + torch.tensor([[0.1, -0.1]]), ours, name="model/")
    with pytest.raises(ModelError, match="nan"):
        check_parity(torch.full((1, 2), torch.nan), ours, name="model/")
    check_parity(ours + MAX_ABS_DIFF / 2, ours, name="model/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", None),
        ("weights", r"model .*0\.001"),
        ("preprocessing", r"model .*0\.001"),
        ("names", "wasp.*bée.*not.*bée"),
    ],
)
def test_compare_timm_folder_changed_folder_raises_model_error(
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
    if message is None:
        parity = compare_timm_folder(folder, files, expected=ours, classes=bundle.card.classes)
        assert parity.num_images == parity.num_same_top1 == len(files)
    else:
        with pytest.raises(ModelError, match=message):
            compare_timm_folder(folder, files, expected=ours, classes=bundle.card.classes)

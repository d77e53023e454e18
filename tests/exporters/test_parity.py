"""The comparison that an export must pass."""

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
from finetune.exporters.parity import MAX_DIFFERENCE, check_parity, compare_timm_folder
from finetune.inference.predictor import Predictor

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult


def test_the_largest_difference_and_the_top_classes_are_counted() -> None:
    ours = torch.tensor([[0.6, 0.4], [0.5002, 0.4998], [0.1, 0.9]])
    theirs = torch.tensor([[0.6001, 0.3999], [0.4998, 0.5002], [0.1, 0.9]])
    parity = check_parity(theirs, ours, name="a")
    assert parity.num_images == 3
    assert parity.same_top_class == 2
    assert parity.max_difference == pytest.approx(4e-4, abs=1e-6)


def test_more_than_rounding_is_refused() -> None:
    ours = torch.tensor([[0.6, 0.4]])
    with pytest.raises(ModelError, match=r"model/ differs .* by 0\.1 .*not to be used"):
        check_parity(ours + torch.tensor([[0.1, -0.1]]), ours, name="model/")
    with pytest.raises(ModelError, match="differs"):
        check_parity(torch.full((1, 2), torch.nan), ours, name="model/")
    check_parity(ours + MAX_DIFFERENCE / 2, ours, name="model/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", None),
        ("weights", "differs from the measured model"),
        ("preprocessing", "differs from the measured model"),
        ("names", "gives classes .*not"),
    ],
)
def test_a_folder_that_timm_reads_otherwise_is_found(
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
        assert parity.num_images == parity.same_top_class == len(files)
    else:
        with pytest.raises(ModelError, match=message):
            compare_timm_folder(folder, files, expected=ours, classes=bundle.card.classes)

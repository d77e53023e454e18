"""Pickled files: none is opened as a model, and one given as weights runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.errors import ModelError, RunFolderError
from finetune.models.pretrained.weights import read_state_dict


class Trap:
    """Object whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize(
    "name", ["model.pt", "MODEL.PTH", "pytorch_model.bin", "m.pkl", "m.joblib", "m.pth.tar"]
)
def test_load_model_refuses_pickles_by_name_without_opening_them(tmp_path: Path, name: str) -> None:
    file = tmp_path / "downloaded" / name
    file.parent.mkdir()
    torch.save({"finetune": Trap(tmp_path / "ran")}, file)
    file.chmod(0)  # not even readable
    for path in (file, file.parent):
        with pytest.raises(RunFolderError, match=r"not opened as a model.*--weights") as caught:
            load_model(path)
        assert str(file) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_commands_refuse_a_pickle(tmp_path: Path, photos: Path) -> None:
    torch.save({"finetune": Trap(tmp_path / "ran")}, tmp_path / "model.pth")
    with pytest.raises(RunFolderError, match="not opened as a model"):
        finetune.evaluate(tmp_path / "model.pth", photos, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_weights_file_with_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {"fc.weight": Trap(tmp_path / "ran")}}, file)
    with pytest.raises(ModelError, match="objects other than tensors, so it is not loaded") as one:
        read_state_dict(file)
    assert len(str(one.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    torch.serialization.load(file, weights_only=False, map_location="cpu")  # the trap works
    assert (tmp_path / "ran").exists()


def test_package_opens_no_pickle() -> None:
    """Every ``torch.load`` of the package reads tensors alone, and nothing else reads pickles.

    What other libraries would execute for a model is tested in ``test_foreign_code``.
    """
    package = Path(finetune.__file__).parent
    forbidden = (
        "allow_pickle=True", "weights_only=False", "import pickle", "import joblib", "import dill",
        "yaml.unsafe_load", "yaml.Loader", "yaml.FullLoader", "read_pickle(",
    )  # fmt: skip
    calls = 0
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], file
        for rest in text.split("torch.load(")[1:]:
            assert "weights_only=True" in rest[:120], file
            calls += 1
    assert calls >= 3

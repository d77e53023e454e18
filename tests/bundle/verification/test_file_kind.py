"""Files that are given as models, and are none or have names in capitals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.bundle.bundle import load_model
from finetune.bundle.runtimes.model_paths import find_model_file
from finetune.errors import RunFolderError


def refuse(path: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        load_model(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["notes.txt", "photo.png", "model.h5", "model.safetensors"])
def test_load_model_of_unknown_kind_says_what_to_pass(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    message = refuse(tmp_path / name)
    assert name in message
    assert "Pass " in message
    assert "mmap" not in message


def test_load_model_of_a_part_of_a_model_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert refuse(tmp_path / "config.json").endswith(f"Pass its folder: {tmp_path}")
    (tmp_path / "config.json").unlink()
    for name in ("config.yaml", "manifest.csv"):
        (tmp_path / name).touch()
    assert refuse(tmp_path / "config.yaml").endswith(f"Pass the run folder: {tmp_path}")


def test_load_model_of_foreign_checkpoint_gives_no_advice_to_execute_it(tmp_path: Path) -> None:
    torch.save({"other": Path("x")}, tmp_path / "a.ckpt")
    assert "objects other than tensors" in refuse(tmp_path / "a.ckpt")


def test_load_model_of_openvino_weights_names_the_network(tmp_path: Path) -> None:
    for name in ("model.bin", "model.xml"):
        (tmp_path / name).touch()
    assert refuse(tmp_path / "model.bin").endswith(f"Pass {tmp_path / 'model.xml'}")


@pytest.mark.parametrize("name", ["MODEL.ONNX", "Model.Pt2", "model.XML"])
def test_find_model_file_of_name_in_capitals(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert find_model_file(tmp_path) == find_model_file(tmp_path / name) == tmp_path / name

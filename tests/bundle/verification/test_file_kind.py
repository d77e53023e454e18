"""Files that are given as models, and are none or have names in capitals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from finetune.bundle.bundle import load_model
from finetune.bundle.runtimes.model_paths import find_model_file
from finetune.data.streams.open_stream import open_stream
from finetune.errors import DataError, ModelError, RunFolderError
from finetune.models.pretrained.weights import read_state_dict


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


def write_pickles(folder: Path) -> None:
    """Write pickles under the name of safetensors, as an archive of torch and bare."""
    torch.save({"weight": torch.ones(1)}, folder / "archive.safetensors")
    for protocol in (2, 4):
        content = pickle.dumps({"weight": Path("x")}, protocol=protocol)
        (folder / f"protocol{protocol}.safetensors").write_bytes(content)


@pytest.mark.parametrize("name", ["archive", "protocol2", "protocol4"])
def test_pickle_named_safetensors_is_called_a_pickle(tmp_path: Path, name: str) -> None:
    write_pickles(tmp_path)
    file = tmp_path / f"{name}.safetensors"
    assert "contains a pickle" in refuse(file)
    with pytest.raises(ModelError, match="contains a pickle"):
        read_state_dict(file)
    folder = tmp_path / "timm"
    folder.mkdir()
    file.rename(folder / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "contains a pickle" in refuse(folder)


@pytest.mark.parametrize("size", [0x280, 0x380, 0x480])
def test_safetensors_whose_header_size_begins_as_a_pickle_is_read(
    tmp_path: Path, size: int
) -> None:
    tensors = {"weight": torch.ones(2)}
    plain = save(tensors, {"text": ""})
    own = int.from_bytes(plain[:8], "little")
    content = save(tensors, {"text": "x" * (size - own)})
    assert content[0] == 0x80
    (tmp_path / "a.safetensors").write_bytes(content)
    assert read_state_dict(tmp_path / "a.safetensors")["weight"].tolist() == [1, 1]


def test_pickle_as_weights_is_refused_without_a_warning_of_torch(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": Path("x")}, protocol=4))
    with pytest.raises(ModelError, match="other than tensors"):
        read_state_dict(tmp_path / "a.pt")


def test_folders_that_are_no_model_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "photos" / "bees").mkdir(parents=True)
    (tmp_path / "photos" / "bees" / "a.JPG").touch()
    for folder in (tmp_path / "photos", tmp_path / "photos" / "bees"):
        message = refuse(folder)
        assert message.startswith(f"{folder} is a folder of images, and no model.")
        assert "--resume" not in message
    for name in ("exports/onnx/model.onnx", "exports/torch/model.pt2"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    models = [str(tmp_path / "exports" / name) for name in ("onnx", "torch")]
    assert refuse(tmp_path / "exports").endswith(f"Pass one of them: {', '.join(models)}")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refuse(tmp_path / "empty")


def test_stopped_run_is_to_be_resumed(tmp_path: Path) -> None:
    for name in ("config.yaml", "manifest.csv"):
        (tmp_path / name).touch()
    assert "--resume" in refuse(tmp_path)


def test_address_is_named_with_both_slashes() -> None:
    message = refuse(Path("https://example.com/model.onnx"))
    assert message.startswith("https://example.com/model.onnx is an address")
    with pytest.raises(DataError, match=r"https://example\.com/a\.jpg is an address, .* Download"):
        open_stream([Path("https://example.com/a.jpg")])

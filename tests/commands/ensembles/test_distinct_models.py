"""Tests that an ensemble is one of different models."""

import shutil
from pathlib import Path

import pytest
from torch import nn

import finetune
from finetune.bundle.bundle import ModelBundle
from finetune.bundle.model_card import ModelCard
from finetune.commands.ensembles.distinct_models import check_distinct_paths
from finetune.commands.ensembles.model_digest import compute_model_digest
from finetune.errors import ConfigError
from finetune.types import PreprocessSpec
from tests.commands.predict.conftest import write_bundle
from tests.support.helpers import write_images


def test_copies_of_a_model_are_refused(tmp_path: Path) -> None:
    first, other = (write_bundle(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    images = write_images(tmp_path / "photos", "a.png")
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    with pytest.raises(ConfigError, match=rf"{first} and {copy} are copies of one model"):
        finetune.predict([first, other, copy], images, device="cpu")
    assert finetune.predict([first, other], images, device="cpu").num_images == 1


@pytest.mark.parametrize(
    "parts", [("run", "run/bundle"), ("onnx", "onnx/model.onnx"), ("hf-hub:a/b", "hf-hub:a/b")]
)
def test_paths_of_one_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str]
) -> None:
    for name in ("run/bundle/finetune.json", "onnx/model.onnx", "other/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    paths = [Path(part) for part in parts]
    with pytest.raises(ConfigError, match=rf"^{parts[1]} is .*given twice"):
        check_distinct_paths([Path("other"), *paths])
    check_distinct_paths([Path("other"), paths[0]])


@pytest.mark.parametrize("names", [("model.xml", "model.bin"), ("model.onnx", "model.onnx.data")])
def test_digest_has_the_weights_beside_a_model_file(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"first")
    card = ModelCard("resnet18", {}, ("a", "b"), PreprocessSpec((3, 8, 8), (0.5,) * 3, (1.0,) * 3))
    bundle = ModelBundle(nn.Identity(), card, tmp_path / names[0])
    before = compute_model_digest(bundle)
    assert compute_model_digest(bundle) == before
    (tmp_path / names[1]).write_bytes(b"other")
    assert compute_model_digest(bundle) != before

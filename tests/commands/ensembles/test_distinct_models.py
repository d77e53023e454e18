"""Tests that an ensemble is one of different models."""

import shutil
from pathlib import Path

import pytest

import finetune
from finetune.commands.ensembles.distinct_models import check_distinct_paths
from finetune.errors import ConfigError
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

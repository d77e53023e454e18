"""Tests that outputs replace no file of a run, a study or a model."""

from pathlib import Path

import pytest

from finetune.commands.early_checks.stored_files import check_no_stored_file
from finetune.errors import ConfigError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder of a run ``a``, a study ``study`` and an exported model ``onnx``."""
    files = (
        "a/config.yaml", "a/manifest.csv", "a/metrics.csv", "a/val_predictions.npz",
        "a/bundle/finetune.json", "a/bundle/config.json", "a/bundle/rejection.safetensors",
        "a/bundle/predictions.csv", "a/checkpoints/held_out.npz", "a/predictions.csv",
        "a/folds/1/config.yaml", "a/folds/1/manifest.csv", "study/study.json", "study/trials.csv",
        "study/old.csv", "onnx/model.onnx", "onnx/parity.json", "onnx/old.csv", "metrics.csv",
    )  # fmt: skip
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("a/manifest.csv", "run in .*a"),
        ("a/metrics.csv", "run in .*a"),
        ("a/val_predictions.npz", "run in .*a"),
        ("a/checkpoints/held_out.npz", "run in .*a"),
        ("a/bundle/config.json", "model in .*bundle"),
        ("a/bundle/rejection.safetensors", "model in .*bundle"),
        ("a/folds/1/manifest.csv", "run in .*folds/1"),
        ("study/trials.csv", "study in .*study"),
        ("onnx/parity.json", "model in .*onnx"),
    ],
)
def test_stored_files_are_not_replaced(runs: Path, name: str, owner: str) -> None:
    with pytest.raises(ConfigError, match=rf"--output .* would replace a file of the {owner}\. "):
        check_no_stored_file("--output", runs / name)


def test_new_files_and_earlier_outputs_are_allowed(runs: Path) -> None:
    names = ("a/new.csv", "a/predictions.csv", "a/bundle/new.csv", "a/bundle/predictions.csv",
             "study/old.csv", "onnx/old.csv", "metrics.csv")  # fmt: skip
    for name in names:
        check_no_stored_file("--output", runs / name)

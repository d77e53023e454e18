"""Result of ``finetune fit``: what is proposed next."""

from pathlib import Path

import pytest

from finetune.cli.main import run as run_command
from tests.support.runs import write_photos, write_weights

CODE = """
from torch import nn


def create_model(num_classes):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, num_classes))
"""


@pytest.mark.parametrize(
    ("options", "is_exported"),
    [
        (("--backbone", "test_resnet"), True),
        (("--backbone", "test_resnet", "model.head=mlp"), False),
        (("--backbone", "test_resnet", "model.head=mlp", "--folds", "2"), True),
        (("--backbone", "own_of_fit_result:create_model"), False),
    ],
)
def test_fit_proposes_the_export_only_where_it_is_not_refused(
    options: tuple[str, ...],
    is_exported: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_of_fit_result.py").write_text(CODE)
    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    command = [
        "fit", str(tmp_path / "photos"), *options, "--output", str(tmp_path / "run"),
        "--weights", str(tmp_path / "weights.pth") if options[-1] == "test_resnet" else "random",
        "--epochs", "1",
        "data.image_size=32", "data.num_workers=0", "trainer.accelerator=cpu",
        "trainer.precision=32-true",
    ]  # fmt: skip
    assert run_command(command) == 0
    output = capsys.readouterr()
    text = " ".join((output.out + output.err).split())
    assert f"finetune predict {tmp_path}" in text
    assert (f"finetune export {tmp_path}" in text) == is_exported
    export = ["export", str(tmp_path / "run"), "--output", str(tmp_path / "model")]
    assert (run_command(export) == 0) == is_exported

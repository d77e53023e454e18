"""Errors of a network of one's own on the command line."""

from pathlib import Path

import pytest

from finetune.cli.main import run as run_command
from tests.support.runs import write_photos

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        if features.requires_grad:
            raise ValueError("no gradient, please")
        return self.fc(features)
"""


def test_fit_of_a_failing_network_names_it_with_its_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "own_of_user_code.py"
    module.write_text(CODE)
    write_photos(tmp_path / "photos")
    command = [
        "fit", str(tmp_path / "photos"), "--backbone", "own_of_user_code:Net",
        "--weights", "random", "--output", str(tmp_path / "run"), "--epochs", "1",
        "data.image_size=32", "data.num_workers=0", "trainer.accelerator=cpu",
    ]  # fmt: skip
    assert run_command(command) == 1
    text = "".join(capsys.readouterr().err.split())
    line = CODE.splitlines().index('            raise ValueError("no gradient, please")') + 1
    assert "'own_of_user_code:Net'failswithValueError:nogradient,please" in text
    assert f"{module},line{line},inforward".replace(" ", "") in text
    assert "bug" not in text

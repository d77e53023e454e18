"""Result of ``finetune fit``: what is proposed next."""

import json
from pathlib import Path

import pytest

from finetune.cli.main import run as run_command
from finetune.cli.render.console import ConsoleReporter
from finetune.cli.render.fit_result import show_fit
from finetune.system.run_folder import RunFolder
from tests.support.runs import write_photos, write_weights

pytestmark = pytest.mark.runs

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


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([60.0], "(60 s)"),
        ([540.0, 60.0], "(60 s now, 10 min in 2 sessions)"),
        ([540.0], "(60 s now, 9 min when it was trained)"),  # a complete run is shown again
    ],
)
def test_time_of_a_resumed_run_is_that_of_all_its_sessions(
    seconds: list[float], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = {"version": 1, "sessions": [{"seconds": one} for one in seconds]}
    RunFolder(tmp_path).sessions_path.write_text(json.dumps(sessions))
    tree = {
        "run_dir": str(tmp_path), "seconds": 60.0, "metrics": {}, "evaluations": {},
        "cross_validation": None, "calibration": None, "diagnosis": None, "plan": {},
    }  # fmt: skip
    show_fit(ConsoleReporter(), tree)
    assert f"Run folder: {tmp_path} {expected}\n" in capsys.readouterr().out

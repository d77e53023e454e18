"""Tests of ``finetune tune`` on the command line, also with killed and with several processes."""

import importlib.util
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from tests.cli.conftest import Cli
from tests.commands.tune.conftest import write_classes
from tests.support.runs import start_finetune

SETTINGS = (
    "model.backbone=test_resnet", "model.weights=random", "data.image_size=32",
    "data.num_workers=0", "augment.name=none", "optim.lr=1e-7", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "trainer.batch_size=8",
)  # fmt: skip
SEARCH = ("--search", "optim.lr=1e-3:1e-2:log")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with class folders."""
    write_classes(tmp_path / "photos", num_images=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start_tune(folder: Path, *words: object) -> subprocess.Popen[str]:
    """Start ``finetune tune`` in a process of its own."""
    return start_finetune(folder, "tune", *words)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Return the output of a process, which must end with an exit code."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def read_trials(study: Path) -> list[tuple[Any, ...]]:
    """Return what must not depend on interruptions."""
    trials = json.loads((study / "tune.json").read_text())["trials"]
    return [(t["number"], t["state"], t["value"], t["epochs"], t["values"]) for t in trials]


def wait_for(path: Path) -> None:
    """Wait until a file exists."""
    end = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.01)


@pytest.mark.runs
def test_tune_prints_plan_trials_and_result_within_80_columns(
    workdir: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = cli.ok(
        "tune", "photos", *SETTINGS, "--epochs", "1", "--trials", "2", *SEARCH, "--output", "study"
    )
    assert "set aside before the search" in output.words
    assert "0.001 to 0.01, logarithmic 1e-7" in output.words
    lines = output.out.splitlines()
    assert [line for line in lines if line.startswith("trial 1/2: calibrated_loss")]
    assert "Best trial against the default settings, on 6 images that chose nothing:" in lines
    assert any(line.startswith("accuracy ") for line in lines)
    command = json.loads((workdir / "study" / "tune.json").read_text())["next_command"]
    assert command[:3] == ["finetune", "fit", "--config"]
    assert " ".join(command) in output.words
    assert [line for line in lines if len(line.rstrip()) > 80] == []


def test_tune_dry_run_writes_nothing_and_lists_the_default_space(workdir: Path, cli: Cli) -> None:
    output = cli.ok("tune", "photos", *SETTINGS, "--dry-run", "--json", "--output", "study")
    tree = output.json
    keys = [dimension["key"] for dimension in tree["space"]]
    assert "optim.weight_decay" in keys
    assert "trainer.epochs" in keys
    assert "optim.lr" not in keys, "it is given"
    assert "augment.name" not in keys
    assert not (workdir / "study").exists()


def test_tune_search_default_extends_the_default_space(workdir: Path, cli: Cli) -> None:
    arguments = ("--dry-run", "--json", "--search", "default", "--search", "optim.momentum=0.8:0.9")
    tree = cli.ok("tune", "photos", *SETTINGS, "optim.name=sgd", *arguments).json
    keys = [dimension["key"] for dimension in tree["space"]]
    assert {"optim.weight_decay", "optim.momentum"} <= set(keys)


def test_tune_space_file_is_read(workdir: Path, cli: Cli) -> None:
    (workdir / "space.yaml").write_text("optim.weight_decay: {low: 1e-4, high: 1, log: true}\n")
    words = ("tune", "photos", *SETTINGS, "--dry-run", "--space", "space.yaml")
    tree = cli.ok(*words, "--json").json
    assert [dimension["key"] for dimension in tree["space"]] == ["optim.weight_decay"]
    error = cli.fails(*words, "--search", "optim.weight_decay=0:1", code=2)
    assert "space.yaml" in error


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ((), 2, ["No data path", "finetune tune photos/"]),
        (("photos", "--trials", "1"), 2, ["--trials 1", "default settings"]),
        (("photos", "--jobs", "0"), 2, ["--jobs 0"]),
        (("photos", "--timeout", "2"), 2, ["--timeout 2", "90min"]),
        (("photos", "--search", "optim.lrr=0:1"), 2, ["Did you mean 'optim.lr'?"]),
        (("photos", "--search", "seed=1:9"), 2, ["seed", "all trials"]),
        (("photos", "trainer.devices=2"), 2, ["trainer.devices=2", "--jobs"]),
        (("nowhere",), 3, ["nowhere"]),
        (("--resume", "photos"), 5, ["not the folder of a study"]),
        (("--resume", "photos", "--epochs", "3"), 2, ["--epochs", "own settings"]),
        (("photos", "--resume", "study"), 2, ["photos", "own settings"]),
        (("--resume", "photos", "--search", "optim.lr=0:1"), 2, ["--search"]),
    ],
)
def test_tune_bad_input_is_one_message(
    words: tuple[str, ...], code: int, parts: list[str], workdir: Path, cli: Cli
) -> None:
    error = cli.fails("tune", *words, code=code)
    assert [part for part in parts if part not in error] == []


def test_tune_linear_probe_only_is_refused(place: Path, cli: Cli) -> None:
    error = cli.fails(
        "tune", place / "photos", "--backbone", "test_resnet", "--weights",
        place / "weights.pth", "--image-size", "32", "unfreeze.name=linear_probe",
        "trainer.accelerator=cpu", code=2,
    )  # fmt: skip
    assert "unfreeze.name=linear_probe" in error
    assert "cross-validation" in error


def test_tune_without_optuna_names_the_install_command(
    workdir: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "optuna" else find_spec(name)
    )
    error = cli.fails("tune", "photos", code=2)
    assert "pip install 'finetune-vision[tune]'" in error


@pytest.mark.slow
@pytest.mark.timeout(900)  # several processes, each with all imports
def test_tune_killed_and_stopped_studies_end_as_an_uninterrupted_one(workdir: Path) -> None:
    words = ["photos", *SETTINGS, *SEARCH, "--epochs", "3", "--trials", "3"]
    words.append("checkpoint.every_minutes=0.00001")
    finish(start_tune(workdir, *words, "--output", "whole"))
    killed = start_tune(workdir, *words, "--output", "killed")
    wait_for(workdir / "killed" / "trials" / "002" / "checkpoints" / "last.ckpt")
    killed.send_signal(signal.SIGKILL)
    finish(killed, -signal.SIGKILL)
    stopped = start_tune(workdir, "--resume", "killed")
    wait_for(workdir / "killed" / "trials" / "003" / "config.yaml")
    stopped.send_signal(signal.SIGTERM)
    assert "Continue with: finetune tune --resume killed" in finish(stopped, 85)
    output = finish(start_tune(workdir, "--resume", "killed"))
    assert "trial 3/3" in output
    assert "trial 2/3" not in output
    assert read_trials(workdir / "killed") == read_trials(workdir / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)  # several processes, each with all imports
def test_tune_two_processes_share_one_study(workdir: Path) -> None:
    words = ("photos", *SETTINGS, *SEARCH, "--epochs", "2", "--trials", "4", "--output", "study")
    first = start_tune(workdir, *words)
    wait_for(workdir / "study" / "trials" / "001" / "config.yaml")
    second = start_tune(workdir, "--resume", "study")
    outputs = [finish(first), finish(second)]
    trials = read_trials(workdir / "study")
    assert [trial[:2] for trial in trials] == [(number, "completed") for number in (1, 2, 3, 4)]
    assert json.loads((workdir / "study" / "tune.json").read_text())["gain"] is not None
    assert any("chose nothing:" in output for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(900)  # several processes, each with all imports
def test_tune_jobs_run_trials_at_the_same_time(workdir: Path) -> None:
    words = ("photos", *SETTINGS, *SEARCH, "--epochs", "2", "--trials", "3", "--jobs", "2")
    output = finish(start_tune(workdir, *words, "--output", "study"))
    ended = [line for line in output.splitlines() if line.startswith("trial ") and "/3:" in line]
    assert len(ended) == 3
    assert "chose nothing:" in output
    study = workdir / "study"
    assert [trial[1] for trial in read_trials(study)] == ["completed"] * 3
    logs = [(study / f"worker-{number}.log").read_text() for number in (1, 2)]
    assert sum("trial " in log for log in logs) == 2, "each has run some"


@pytest.mark.slow
@pytest.mark.timeout(900)  # several processes, each with all imports
def test_tune_jobs_stop_together(workdir: Path) -> None:
    words = ("photos", *SETTINGS, *SEARCH, "--epochs", "50", "--trials", "3", "--jobs", "2")
    process = start_tune(workdir, *words, "--output", "study")
    for number in ("001", "002"):
        wait_for(workdir / "study" / "trials" / number / "metrics.csv")
    process.send_signal(signal.SIGTERM)
    assert "Continue with: finetune tune --resume study" in finish(process, 85)
    for number in ("001", "002"):
        assert (workdir / "study" / "trials" / number / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)  # several processes, each with all imports
def test_tune_failing_worker_is_reported_with_its_log(workdir: Path) -> None:
    words = ("photos", *SETTINGS, *SEARCH, "--trials", "2", "--jobs", "2", "--output", "study")
    output = finish(start_tune(workdir, *words, "loss.params={gamma: 2}"), 2)
    assert "loss.params" in output

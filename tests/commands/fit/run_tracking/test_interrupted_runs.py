"""Tracked runs that end by a signal, and runs of a W&B sweep, in processes of their own."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.fault_runs import run_fit, write_workspace
from tests.support.helpers import ROOT
from tests.support.runs import (
    accept_ctrl_c,
    build_environment,
    read_rows,
    write_photos,
    write_weights,
)
from tests.support.tracked_runs import get_csv_curves, read_event_files, read_mlflow_run
from tests.support.wandb_file import OfflineRun, read_offline_runs

pytestmark = [
    pytest.mark.slow,
    # MLflow asks SQLAlchemy for a strategy that 2.1 deprecates, https://github.com/mlflow/mlflow
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def run(workspace: Path) -> Path:
    """Return a run that was preempted, killed and resumed; never change it."""
    run = workspace / "run"
    args = (
        "trainer.epochs=3",
        "report.enabled=off",
        "tracking.tensorboard=true",
        f"tracking.mlflow=sqlite:///{workspace}/mlflow.db",
    )
    code, _ = run_fit(workspace, run, *args, fault=("mid-epoch", signal.SIGTERM, 0))
    assert code == 85
    code, _ = run_fit(workspace, run, *args, fault=("validation", signal.SIGKILL, 0))
    assert code == -signal.SIGKILL
    code, _ = run_fit(workspace, run, *args)
    assert code == 0
    return run


@pytest.fixture(scope="module")
def parts(run: Path) -> list[OfflineRun]:
    return read_offline_runs(run)


def test_parts_of_a_wandb_run_join_in_order(run: Path, parts: list[OfflineRun]) -> None:
    # a killed process may not have written a record yet, but its file has the name of the run
    assert len({part.path.name for part in parts}) == 1
    assert {part.run_id for part in parts} <= {parts[0].run_id, ""}
    assert [part.exit_code for part in parts] == [85, None, 0]
    assert [part.is_preempted for part in parts] == [True, False, False]
    rows = [row for part in parts for row in part.rows]
    own_steps = [row["_step"] for row in rows]
    assert own_steps == sorted(own_steps), "W&B drops rows whose step is behind another"
    for name, curve in get_csv_curves(read_rows(run)).items():
        joined = {row["trainer/global_step"]: row[name] for row in rows if name in row}
        assert sorted(joined.items()) == curve, name


def test_summaries_of_a_resumed_wandb_run_are_over_all_parts(
    run: Path, parts: list[OfflineRun]
) -> None:
    curves = get_csv_curves(read_rows(run))
    for name, goal, choose in (("val/accuracy", "max", max), ("train/loss", "min", min)):
        best = choose(value for _, value in curves[name])
        assert parts[-1].summary[name] == {goal: best}


def test_parts_that_ended_cleanly_have_the_same_input(parts: list[OfflineRun]) -> None:
    first, _, last = (
        [name for name, one in part.artifact_records.items() if one.is_input] for part in parts
    )
    assert len(first) == 1
    assert first == last


def test_tensorboard_and_mlflow_have_each_epoch_once(run: Path, workspace: Path) -> None:
    tracked = read_mlflow_run(f"sqlite:///{workspace}/mlflow.db")
    assert tracked.status == "FINISHED"
    for one in (tracked, read_event_files(run / "tensorboard")):
        for name, curve in get_csv_curves(read_rows(run)).items():
            steps, values = zip(*curve, strict=True)
            assert tuple(step for step, _ in one.curves[name]) == steps, name
            found = [value for _, value in one.curves[name]]
            assert found == pytest.approx(values, rel=1e-6), name


STOPPER = """
import os, signal

def stopping(progress, *, final_factor):
    if os.environ.get("STOP") and progress > 0.4:
        os.kill(os.getpid(), signal.SIGTERM)
    return 1 - (1 - final_factor) * progress
"""


def build_agent_command(values: dict[str, object]) -> list[str]:
    """Return the command that an agent issues for ``configs/sweep.yaml``, as its own code does."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text(encoding="utf-8"))
    assert values.keys() == sweep["parameters"].keys()
    arguments = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in values.items()}}
    )
    arguments |= {"program": [sweep["program"]], "env": ["/usr/bin/env"]}
    command: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        is_macro = word.startswith("${") and word.endswith("}")
        command += arguments[word[2:-1]] if is_macro else [word]
    return command


def test_command_of_a_sweep_trains_and_resumes_the_run_of_the_agent(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    write_weights(tmp_path / "weights.pth")
    (tmp_path / "stopper.py").write_text(STOPPER)
    values = {
        "optim.feature_change": 0.5, "optim.weight_decay": 0.01, "augment.name": "light",
        "loss.label_smoothing": 0.1,
    }  # fmt: skip
    offline = (
        "--wandb", "offline", "--backbone", "test_resnet", "--weights", "weights.pth",
        "--image-size", "32", "--epochs", "3", "--batch-size", "8", "--unfreeze", "all",
        "--no-report", "lr_schedule.name=stopper:stopping",
    )  # fmt: skip
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        yaml.safe_dump({"wandb_version": 1, **{k: {"value": v} for k, v in values.items()}})
    )
    environment = {
        "WANDB_SWEEP_ID": "swp12345",
        "WANDB_RUN_ID": "agent001",
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
        "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
    }
    codes = []
    for stop in ({"STOP": "1"}, {}):
        process = subprocess.run(
            [*build_agent_command(values), *offline],
            cwd=tmp_path,
            env=build_environment(tmp_path, {**environment, **stop}),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            preexec_fn=accept_ctrl_c,
        )
        codes.append(process.returncode)
        assert "Traceback" not in process.stderr
    assert codes == [85, 0], process.stderr
    first, second = read_offline_runs(tmp_path / "runs" / "sweep-swp12345" / "agent001")
    for part in (first, second):
        assert (part.run_id, part.sweep_id, part.job_type) == ("agent001", "swp12345", "sweep")
        assert {name: part.config[name] for name in values} == values
    assert (first.is_preempted, second.is_preempted) == (True, False)
    assert isinstance(second.summary["final/val/loss"], float)
    assert any("final/val/loss" in row for row in second.history)

"""Tests of ``finetune.commands.submit.submit``: checks of the request, and the script."""

import os
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.submit.batch_script import JobResources
from finetune.commands.submit.submit import Submission, submit
from finetune.config.load import build_config
from finetune.config.schema import Config
from finetune.errors import ConfigError, FinetuneError, ModelError, RunFolderError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()


def config_of(**assignments: object) -> Config:
    given = {key.replace("__", "."): value for key, value in assignments.items()}
    return build_config({}, assignments={"data.path": "photos", "output": "runs/one"} | given)


def submit_dry(resources: JobResources | None = None, **assignments: object) -> Submission:
    return submit(config_of(**assignments), ("photos",), resources or JobResources(), dry_run=True)


@pytest.mark.parametrize(
    ("resources", "settings", "error", "parts"),
    [
        (
            JobResources(gpus_per_node=2, tasks_per_node=1), {}, ConfigError,
            ["--tasks-per-node 1", "--gpus-per-node 2"],
        ),
        (JobResources(extra_options=("mem=1",)), {}, ConfigError, ["--sbatch 'mem=1'"]),
        (JobResources(extra_options=("--a\nrm",)), {}, ConfigError, [r"'--a\nrm'"]),
        (
            JobResources(nodes=2), {"trainer__num_nodes": 3}, ConfigError,
            ["trainer.num_nodes=3", "2 nodes", "1 processes"],
        ),
        (
            JobResources(tasks_per_node=2), {"trainer__devices": 4}, ConfigError,
            ["trainer.devices=4", "1 nodes", "2 processes"],
        ),
        (
            JobResources(nodes=2, gpus_per_node=4), {"trainer__batch_size": 12}, ConfigError,
            ["trainer.batch_size=12", "8 processes", "2 nodes with 4 each", "multiple of 8"],
        ),
        (
            JobResources(nodes=2),
            {"trainer__batch_size": 10, "trainer__accumulate_grad_batches": 3},
            ConfigError,
            ["trainer.batch_size=10", "trainer.accumulate_grad_batches=3", "multiple of 6"],
        ),
        (
            JobResources(extra_options=("--nodes=4",)), {}, ConfigError,
            ["--sbatch=--nodes=4", " --nodes "],
        ),
        (
            JobResources(extra_options=("--ntasks=4",)), {}, ConfigError,
            ["--sbatch=--ntasks=4", "--tasks-per-node"],
        ),
        (JobResources(), {"model__weights": "none.pth"}, ModelError, ["none.pth"]),
        (JobResources(), {"output": "photos"}, RunFolderError, ["photos"]),
    ],
)  # fmt: skip
def test_submit_invalid_request_raises_error(
    resources: JobResources,
    settings: dict[str, Any],
    error: type[FinetuneError],
    parts: list[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(error) as caught:
        submit_dry(resources, **settings)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_submit_dry_run_writes_nothing(tmp_path: Path) -> None:
    submission = submit_dry(JobResources(nodes=2))
    assert submission.job_id is None
    assert submission.run_dir == tmp_path / "runs" / "one"
    assert "#SBATCH --nodes=2\n" in submission.script_text
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_submit_matching_sizes_are_accepted() -> None:
    submit_dry(
        JobResources(nodes=2, gpus_per_node=4),
        trainer__batch_size=24,
        trainer__accumulate_grad_batches=3,
    )
    submit_dry(JobResources(nodes=2, tasks_per_node=4), trainer__devices=4, trainer__num_nodes=2)
    submit_dry(JobResources(nodes=8, gpus_per_node=8))


def write_program(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, body: str) -> None:
    """Write a program that replaces one of SLURM."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)


def submit_with_program(monkeypatch: pytest.MonkeyPatch, folder: Path, sbatch: str) -> Submission:
    """Submit to a program that replaces sbatch."""
    write_program(monkeypatch, folder, "sbatch", sbatch)
    return submit(config_of(), ("photos",), JobResources())


def test_submit_writes_script_next_to_run_and_passes_it_to_sbatch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submission = submit_with_program(
        monkeypatch, tmp_path, f'echo "$@" > {tmp_path}/arguments; echo "17;cluster"'
    )
    assert submission.job_id == "17"
    assert submission.script == tmp_path / "runs" / "one.sbatch"
    assert submission.script.read_text() == submission.script_text
    assert (tmp_path / "arguments").read_text() == f"--parsable {submission.script}\n"
    tree = submission.to_json()
    assert {key: tree[key] for key in ("job_id", "run_dir", "script", "log")} == {
        "job_id": "17",
        "run_dir": str(tmp_path / "runs" / "one"),
        "script": str(tmp_path / "runs" / "one.sbatch"),
        "log": str(tmp_path / "runs" / "one.log"),
    }


def test_submit_rejected_by_sbatch_raises_config_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = 'printf "sbatch: error: invalid partition: x\\nsbatch: error: no job\\n" >&2; exit 1'
    with pytest.raises(ConfigError, match="invalid partition: x; no job"):
        submit_with_program(monkeypatch, tmp_path, program)


def test_submit_without_sbatch_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"sbatch .*--dry-run"):
        submit(config_of(), ("photos",), JobResources())
    assert not (tmp_path / "runs").exists()


def test_submit_existing_run_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("config.yaml", "manifest.csv"):
        (tmp_path / "runs" / "one" / name).touch()
    assert f"run={tmp_path}/runs/one\n" in submit_dry().script_text


def test_folds_are_a_job_array_and_a_job_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(monkeypatch, tmp_path, "sbatch", 'echo "$@" >> sbatch.log; wc -l < sbatch.log')
    write_program(monkeypatch, tmp_path, "squeue", "true")
    config = config_of(cross_validation__num_folds=5)
    result = submit(config, ("photos", "--folds", "5"), JobResources())
    assert result.folds is not None
    assert (result.folds.job_id, result.job_id) == ("1", "2")
    calls = (tmp_path / "sbatch.log").read_text().splitlines()
    assert calls == [
        f"--parsable {tmp_path}/runs/one.folds.sbatch",
        f"--parsable --dependency=afterany:1 {tmp_path}/runs/one.sbatch",
    ]
    array = (tmp_path / "runs" / "one.folds.sbatch").read_text()
    assert "#SBATCH --array=1-5\n" in array
    assert f"#SBATCH --output={tmp_path}/runs/one.fold-%a.log\n" in array
    assert 'set -- photos --folds 5 --fold "$SLURM_ARRAY_TASK_ID"\n' in array
    last = (tmp_path / "runs" / "one.sbatch").read_text()
    assert "--array" not in last
    assert "set -- photos --folds 5\n" in last
    assert result.to_json()["folds"]["job_id"] == "1"


def test_rejected_job_after_the_folds_names_the_array_that_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject = 'case "$*" in *afterany*) echo "sbatch: error: QOSMaxSubmitJob" >&2; exit 1;; esac'
    config = config_of(cross_validation__num_folds=5)
    write_program(monkeypatch, tmp_path, "sbatch", f"{reject}; echo 7")
    with pytest.raises(ConfigError, match=r"QOSMaxSubmitJob.* Job 7, .* queued.* scancel 7, ") as e:
        submit(config, ("photos", "--folds", "5"), JobResources())
    assert f"sbatch --dependency=afterany:7 {tmp_path}/runs/one.sbatch" in str(e.value)


def test_queued_folds_are_named_once_by_the_id_of_their_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    tasks = f"3 {runs}/one.folds.sbatch\n" * 2
    queue = f"4 {runs}/one.sbatch\n{tasks}5 other\n"
    write_program(monkeypatch, tmp_path, "squeue", f"printf '{queue}'")
    write_program(monkeypatch, tmp_path, "sbatch", "echo 7")
    config = config_of(cross_validation__num_folds=5)
    with pytest.raises(RunFolderError, match=r"Jobs 3 and 4 of this run are .* scancel 3 4,"):
        submit(config, ("photos", "--folds", "5"), JobResources())
    assert not (runs / "one.sbatch").exists()

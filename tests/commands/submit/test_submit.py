"""Submitting a run: what is refused before, and what becomes of the script."""

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


def dry(asked: JobResources | None = None, **assignments: object) -> Submission:
    return submit(config_of(**assignments), ("photos",), asked or JobResources(), dry_run=True)


@pytest.mark.parametrize(
    ("asked", "settings", "error", "message"),
    [
        (
            JobResources(gpus_per_node=2, tasks_per_node=1), {}, ConfigError,
            "--tasks-per-node 1 and --gpus-per-node 2 differ: a process has one GPU",
        ),
        (JobResources(extra_options=("mem=1",)), {}, ConfigError, "--sbatch 'mem=1' is no option of sbatch"),
        (JobResources(extra_options=("--a\nrm",)), {}, ConfigError, r"'--a\\nrm' is no option of sbatch"),
        (
            JobResources(nodes=2), {"trainer__num_nodes": 3}, ConfigError,
            "trainer.num_nodes is 3, but the job asks for 2 nodes with 1 processes each",
        ),
        (
            JobResources(tasks_per_node=2), {"trainer__devices": 4}, ConfigError,
            "trainer.devices is 4, but the job asks for 1 nodes with 2 processes each",
        ),
        (
            JobResources(nodes=2, gpus_per_node=4), {"trainer__batch_size": 12}, ConfigError,
            r"trainer.batch_size=12 does not divide by 8 processes \(2 nodes with 4 each\)",
        ),
        (
            JobResources(nodes=2), {"trainer__batch_size": 10, "trainer__accumulate_grad_batches": 3}, ConfigError,
            "trainer.accumulate_grad_batches=3. Take a multiple of 6",
        ),
        (
            JobResources(extra_options=("--nodes=4",)), {}, ConfigError,
            "--sbatch=--nodes=4: say that with submit's own --nodes",
        ),
        (
            JobResources(extra_options=("--ntasks=4",)), {}, ConfigError,
            "--sbatch=--ntasks=4: say that with submit's own --tasks-per-node",
        ),
        (
            JobResources(), {"model__weights": "none.pth"}, ModelError,
            "The weights none.pth do not exist",
        ),
        (JobResources(), {"output": "photos"}, RunFolderError, "photos exists and is not empty"),
    ],
)  # fmt: skip
def test_what_could_only_fail_is_refused(
    asked: JobResources,
    settings: dict[str, Any],
    error: type[FinetuneError],
    message: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(error, match=message):
        dry(asked, **settings)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    made = dry(JobResources(nodes=2))
    assert made.job_id is None
    assert made.run_dir == tmp_path / "runs" / "one"
    assert "#SBATCH --nodes=2\n" in made.text
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_sizes_that_fit_are_not_refused() -> None:
    dry(
        JobResources(nodes=2, gpus_per_node=4),
        trainer__batch_size=24,
        trainer__accumulate_grad_batches=3,
    )
    dry(JobResources(nodes=2, tasks_per_node=4), trainer__devices=4, trainer__num_nodes=2)
    dry(JobResources(nodes=8, gpus_per_node=8))


def submitted(monkeypatch: pytest.MonkeyPatch, folder: Path, sbatch: str) -> Submission:
    """Submit to a program that stands in for sbatch."""
    program = folder / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\n{sbatch}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    return submit(config_of(), ("photos",), JobResources())


def test_the_script_lies_beside_the_run_and_is_what_sbatch_gets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = submitted(monkeypatch, tmp_path, f'echo "$@" > {tmp_path}/said; echo "17;cluster"')
    assert made.job_id == "17"
    assert made.script == tmp_path / "runs" / "one.sbatch"
    assert made.script.read_text() == made.text
    assert (tmp_path / "said").read_text() == f"--parsable {made.script}\n"
    tree = made.to_json()
    assert {key: tree[key] for key in ("job_id", "run_dir", "script", "log")} == {
        "job_id": "17",
        "run_dir": str(tmp_path / "runs" / "one"),
        "script": str(tmp_path / "runs" / "one.sbatch"),
        "log": str(tmp_path / "runs" / "one.log"),
    }


def test_what_sbatch_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    says = 'printf "sbatch: error: invalid partition: x\\nsbatch: error: no job\\n" >&2; exit 1'
    message = "sbatch refuses the job: invalid partition: x; no job. Mend the options"
    with pytest.raises(ConfigError, match=message):
        submitted(monkeypatch, tmp_path, says)


def test_without_sbatch_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="There is no sbatch on this machine"):
        submit(config_of(), ("photos",), JobResources())
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_there_goes_on(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("config.yaml", "manifest.csv"):
        (tmp_path / "runs" / "one" / name).touch()
    assert f"run={tmp_path}/runs/one\n" in dry().text

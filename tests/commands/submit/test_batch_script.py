"""Batch scripts: what they ask for, the words that they pass on, and what they do at the end."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.commands.submit.batch_script import JobResources, read_body, render_batch_script
from finetune.errors import ConfigError
from tests.support.helpers import ROOT

SCRIPTS = ROOT / "scripts" / "slurm"
SHIPPED = sorted(SCRIPTS.glob("*.sbatch"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(*words: str, run: str = "runs/one", **asked: object) -> str:
    """Return a script for a run in the working folder."""
    resources = JobResources(**asked)  # type: ignore[arg-type]
    return render_batch_script(("photos", *words), resources, Path.cwd() / run)


def options_of(text: str) -> dict[str, str]:
    """Return what a script asks sbatch for, of two that are the same the later."""
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def stub(folder: Path, name: str, script: str) -> Path:
    """Write a program that stands in for one of the cluster."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)
    return folder


def job(script: Path, folder: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a batch script as a job, with an ``srun`` that shows the words of its command."""
    stub(folder / "bin", "srun", 'while [ "$1" != _ ]; do shift; done; shift; printf "<%s>" "$@"')
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(script), *words],
        env={**clean, **job, "PATH": path, **extra},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_script_asks_for_the_job_and_runs_the_words(tmp_path: Path) -> None:
    text = made(
        "optim.lr=0.1", "--epochs", "3", nodes=2, gpus_per_node=4, cpus_per_task=8, partition="gpu",
        time="4:00:00", account="me", extra_options=("--mem=64G", "--signal=USR1@30"),
    )  # fmt: skip
    assert options_of(text) == {
        "--job-name": "one",
        "--chdir": str(tmp_path),
        "--output": f"{tmp_path}/runs/one.log",
        "--nodes": "2",
        "--ntasks-per-node": "4",
        "--gpus-per-node": "4",
        "--cpus-per-task": "8",
        "--partition": "gpu",
        "--time": "4:00:00",
        "--account": "me",
        "--signal": "USR1@30",
        "--open-mode": "append",
        "--requeue": "",
        "--mem": "64G",
    }
    assert "\nset -- photos optim.lr=0.1 --epochs 3\n" in text
    assert text.endswith(f"\n\n{read_body()}")


def test_what_is_not_asked_for_is_left_to_the_cluster() -> None:
    asked = options_of(made())
    assert (asked["--nodes"], asked["--ntasks-per-node"]) == ("1", "1")
    for name in ("gpus-per-node", "cpus-per-task", "partition", "time", "account"):
        assert f"--{name}" not in asked


ODD = 'it\'s "50%" $HOME `x` \\ é'


def test_odd_words_and_paths_reach_the_command_as_they_are(tmp_path: Path) -> None:
    text = made("--config", ODD, "unfreeze.params={a: [1, *]}", run=f"runs/{ODD}")
    (tmp_path / "script").write_text(text)
    ended = job(tmp_path / "script", tmp_path, FINETUNE="'my finetune' --x")
    assert ended.returncode == 0, ended.stderr
    run = f"<--output><{tmp_path}/runs/{ODD}>"
    words = f"<photos><--config><{ODD}><unfreeze.params={{a: [1, *]}}>"
    assert ended.stdout == f"<my finetune><--x><fit>{run}<resume=auto>{words}"


def test_without_another_command_the_job_runs_this_python(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(made())
    ended = job(tmp_path / "script", tmp_path, FINETUNE="")
    assert ended.stdout.startswith(f"<{sys.executable}><-m><finetune><fit>")


def test_a_percent_sign_is_no_pattern_in_the_name_of_the_log(tmp_path: Path) -> None:
    assert options_of(made(run="50%j"))["--output"] == f"{tmp_path}/50%%j.log"


def test_words_of_options_are_quoted_as_sbatch_reads_them(tmp_path: Path) -> None:
    asked = options_of(made(run='a "b" \\ c'))
    assert asked["--job-name"] == '"a \\"b\\" \\\\ c"'


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("1", 15), ("0:40", 10), ("4:00:00", 120), ("1-0", 120), ("0-0:2", 30), ("0-00:01:20", 20),
        ("UNLIMITED", 120), ("0", 120), (None, 120),
    ],
)  # fmt: skip
def test_a_job_saves_two_minutes_or_a_quarter_of_its_time_before_the_end(
    time: str | None, seconds: int
) -> None:
    assert options_of(made(time=time))["--signal"] == f"USR1@{seconds}"


@pytest.mark.parametrize("time", ["4h", "1:2:3:4", "1-", "-5", "", "1-2:3:4:5", "4.5"])
def test_a_malformed_time_is_refused_with_the_forms_that_there_are(time: str) -> None:
    with pytest.raises(ConfigError, match=r"--time .*: give minutes, .*, as in 4:00:00"):
        made(time=time)


@pytest.mark.parametrize("script", SHIPPED, ids=[script.stem for script in SHIPPED])
def test_a_shipped_script_ends_with_the_body(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.endswith(f"\n\n{read_body()}"), "bash scripts/slurm/refresh.sh"
    asked = options_of(text)
    assert asked["--requeue"] == ""
    assert asked["--open-mode"] == "append"
    assert asked["--signal"] == "USR1@120"
    assert "--gpus-per-task" not in asked


def test_there_are_shipped_scripts_and_refreshing_them_changes_nothing(tmp_path: Path) -> None:
    assert [script.name for script in SHIPPED] == [
        "array.sbatch", "fit-multinode.sbatch", "fit.sbatch",
    ]  # fmt: skip
    copied = Path(shutil.copytree(SCRIPTS, tmp_path / "repo" / "scripts" / "slurm"))
    (tmp_path / "repo" / "finetune" / "commands").mkdir(parents=True)
    (tmp_path / "repo" / "finetune" / "commands" / "batch_body.sh").write_text(read_body())
    with (copied / "fit.sbatch").open("a") as stream:
        stream.write("echo changed by hand\n")
    subprocess.run(["bash", str(copied / "refresh.sh")], check=True)
    for script in SHIPPED:
        assert (copied / script.name).read_text() == script.read_text()


@pytest.mark.parametrize(
    ("task", "words"),
    [("0", ["--backbone", "vgg16"]), ("1", ["seed=3", "x={a: 1}"])],
)
def test_each_task_of_an_array_gets_its_own_words(
    task: str, words: list[str], tmp_path: Path
) -> None:
    given = ("photos", "--lr", "0.1", "--", "--backbone vgg16", "seed=3 'x={a: 1}'")
    ids = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": task}
    ended = job(SCRIPTS / "array.sbatch", tmp_path, *given, **ids, FINETUNE="ft")
    assert ended.returncode == 0, ended.stderr
    own = "".join(f"<{word}>" for word in words)
    run = f"<--output><{tmp_path}/runs/5_{task}><resume=auto>"
    assert ended.stdout == f"<ft><fit>{run}<photos><--lr><0.1>{own}"


def test_a_task_without_words_of_its_own_has_its_seed_or_ends(tmp_path: Path) -> None:
    ids = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "RUN": "here/seeds"}
    ended = job(SCRIPTS / "array.sbatch", tmp_path, "photos", **ids, FINETUNE="ft")
    assert ended.stdout.endswith(f"<{tmp_path}/here/seeds_2><resume=auto><photos><seed=2>")
    ended = job(SCRIPTS / "array.sbatch", tmp_path, "photos", "--", "seed=1", **ids)
    assert ended.returncode == 2
    assert "Task 2 has no words: 1 stand after --" in ended.stderr


def test_outside_of_a_job_a_script_says_what_it_is(tmp_path: Path) -> None:
    ended = job(SCRIPTS / "fit.sbatch", tmp_path, "photos", SLURM_JOB_ID="")
    assert ended.returncode == 1
    assert "SLURM_JOB_ID: is not set: this is a batch script" in ended.stderr


def test_a_job_tells_its_tasks_where_to_write_and_how_many_threads_to_take(tmp_path: Path) -> None:
    show = 'echo "$@"; env'
    names = (
        "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "FINETUNE_CACHE", "FINETUNE_REQUEUE_FILE",
    )  # fmt: skip
    stub(tmp_path / "shows", "srun", show)
    path = os.pathsep.join([str(tmp_path / "shows"), os.environ["PATH"]])
    unset = dict.fromkeys(names, "")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "7.requeue").touch()  # of an earlier start; it must not count
    ended = job(
        SCRIPTS / "fit.sbatch", tmp_path, "photos",
        **unset, PATH=path, SLURM_CPUS_PER_TASK="6", SLURM_TMPDIR="/local/7",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    first, *lines = ended.stdout.splitlines()
    assert first.startswith(
        "--export=ALL --kill-on-bad-exit=1 --wait=0 --cpus-per-task=6 bash -c trap"
    )
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert [found[name] for name in names] == [
        "6", "1", "/local/7/finetune", f"{tmp_path}/runs/7.requeue",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "crash", "again"),
    [
        (7, "0", False),
        (7, "1", True),
        (139, "1", True),
        (2, "1", False),
        (127, "1", False),
        (128 + signal.SIGUSR1, "0", True),
    ],
)
def test_what_a_job_does_after_a_crash(code: int, crash: str, again: bool, tmp_path: Path) -> None:
    stub(tmp_path / "fails", "srun", f"exit {code}")
    stub(tmp_path / "fails", "scontrol", f'echo "$@" > {tmp_path}/asked; exit 1')
    path = os.pathsep.join([str(tmp_path / "fails"), os.environ["PATH"]])
    ended = job(
        SCRIPTS / "fit.sbatch", tmp_path, "photos", PATH=path, FINETUNE="ft", REQUEUE_ON_CRASH=crash
    )
    assert ended.returncode == code
    assert (tmp_path / "asked").exists() == again
    if again:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
        assert "scontrol could not requeue it" in ended.stderr


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ({}, "requeue 7\n"),
        ({"SLURM_RESTART_COUNT": "19"}, "requeue 7\n"),
        ({"SLURM_RESTART_COUNT": "20"}, None),
        ({"SLURM_RESTART_COUNT": "1", "MAX_RESTARTS": "1"}, None),
        # the array's number alone would start all of its tasks again, also those that are done
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 7_3\n"),
    ],
)
def test_after_a_signal_a_job_begins_again_as_often_as_it_may(
    extra: dict[str, str], asked: str | None, tmp_path: Path
) -> None:
    stub(tmp_path / "stops", "srun", 'echo SIGUSR1 > "$FINETUNE_REQUEUE_FILE"')
    stub(tmp_path / "stops", "scontrol", f'echo "$@" > {tmp_path}/asked; exit 1')
    path = os.pathsep.join([str(tmp_path / "stops"), os.environ["PATH"]])
    ended = job(SCRIPTS / "fit.sbatch", tmp_path, "photos", PATH=path, **extra)
    assert ended.returncode == 85, "not complete, whatever becomes of it"
    said = tmp_path / "asked"
    assert (said.read_text() if said.exists() else None) == asked
    assert f"Submitted once more with RUN={tmp_path}/runs/7 it goes on." in ended.stderr
    assert not list((tmp_path / "runs").glob("*.requeue"))

"""Batch scripts: resources, quoting of arguments, and requeueing after signals and crashes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.commands.submit.batch_script import JobResources, read_body, render_batch_script
from finetune.errors import ConfigError
from scripts.slurm.generate_sample import SAMPLE_FILE, build_sample


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def render(*fit_args: str, run: str = "runs/one", **resources: object) -> str:
    """Return the script of a run in the working folder."""
    job_resources = JobResources(**resources)  # type: ignore[arg-type]
    return render_batch_script(("photos", *fit_args), job_resources, Path.cwd() / run)


def parse_options(text: str) -> dict[str, str]:
    """Return the sbatch options of a script; the last of equal ones counts."""
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def write_stub(folder: Path, name: str, script: str) -> Path:
    """Write a program that replaces one of the cluster's."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)
    return folder


def run_job(
    text: str, *, stubs: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a batch script as a job in the working folder.

    Args:
        text: Text of the script.
        stubs: Folder with programs of the cluster; None takes an ``srun`` that prints the
            arguments of its command.
        extra: Environment variables.
    """
    if stubs is None:
        show = 'while [ "$1" != _ ]; do shift; done; shift; printf "<%s>" "$@"'
        stubs = write_stub(Path.cwd() / "bin", "srun", show)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    path = os.pathsep.join([str(stubs), os.environ["PATH"]])
    Path("job.sbatch").write_text(text, encoding="utf-8")
    return subprocess.run(
        ["bash", "job.sbatch"],
        env={**clean, **job, "PATH": path, **extra},
        capture_output=True,
        text=True,
        check=False,
    )


def test_render_batch_script_contains_resources_and_arguments(tmp_path: Path) -> None:
    text = render(
        "optim.lr=0.1", "--epochs", "3", nodes=2, gpus_per_node=4, cpus_per_task=8, partition="gpu",
        time="4:00:00", account="me", extra_options=("--mem=64G", "--signal=USR1@30"),
    )  # fmt: skip
    assert parse_options(text) == {
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


def test_render_batch_script_leaves_other_options_to_the_cluster() -> None:
    options = parse_options(render())
    assert (options["--nodes"], options["--ntasks-per-node"]) == ("1", "1")
    for name in ("gpus-per-node", "cpus-per-task", "partition", "time", "account"):
        assert f"--{name}" not in options


SPECIAL = 'it\'s "50%" $HOME `x` \\ é'


def test_batch_script_passes_special_characters_unchanged(tmp_path: Path) -> None:
    text = render("--config", SPECIAL, "unfreeze.params={a: [1, *]}", run=f"runs/{SPECIAL}")
    job = run_job(text, FINETUNE="'my finetune' --x")
    assert job.returncode == 0, job.stderr
    run = f"<--output><{tmp_path}/runs/{SPECIAL}>"
    words = f"<photos><--config><{SPECIAL}><unfreeze.params={{a: [1, *]}}>"
    assert job.stdout == f"<my finetune><--x><fit>{run}<resume=auto>{words}"


def test_batch_script_runs_the_python_that_rendered_it() -> None:
    job = run_job(render(), FINETUNE="")
    assert job.stdout.startswith(f"<{sys.executable}><-m><finetune><fit>")


def test_render_batch_script_escapes_percent_in_log_path(tmp_path: Path) -> None:
    assert parse_options(render(run="50%j"))["--output"] == f"{tmp_path}/50%%j.log"


def test_render_batch_script_quotes_options_for_sbatch() -> None:
    options = parse_options(render(run='a "b" \\ c'))
    assert options["--job-name"] == '"a \\"b\\" \\\\ c"'


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("1", 15), ("0:40", 10), ("4:00:00", 120), ("1-0", 120), ("0-0:2", 30), ("0-00:01:20", 20),
        ("UNLIMITED", 120), ("0", 120), (None, 120),
    ],
)  # fmt: skip
def test_render_batch_script_signals_two_minutes_or_a_quarter_before_the_limit(
    time: str | None, seconds: int
) -> None:
    assert parse_options(render(time=time))["--signal"] == f"USR1@{seconds}"


@pytest.mark.parametrize("time", ["4h", "1:2:3:4", "1-", "-5", "", "1-2:3:4:5", "4.5"])
def test_render_batch_script_malformed_time_raises_config_error(time: str) -> None:
    with pytest.raises(ConfigError, match=r"--time .*minutes, .*4:00:00"):
        render(time=time)


def test_sample_script_equals_output_of_submit_dry_run() -> None:
    text = SAMPLE_FILE.read_text(encoding="utf-8")
    assert text == build_sample(), "run: uv run python scripts/slurm/generate_sample.py"
    assert text.endswith(f"\n\n{read_body()}")
    assert "--gpus-per-task" not in text
    assert [file.name for file in SAMPLE_FILE.parent.glob("*.sbatch")] == ["fit.sbatch"]


@pytest.mark.parametrize(
    ("task", "args"), [("0", ["--backbone", "vgg16"]), ("1", ["seed=3", "--lr", "0.1"])]
)
def test_batch_script_edited_for_an_array_gives_each_task_its_run_and_arguments(
    task: str, args: list[str], tmp_path: Path
) -> None:
    """The edit that the SLURM guide describes."""
    text = render("--epochs", "3").replace(
        f"run={tmp_path}/runs/one\n",
        f"run={tmp_path}/runs/one_$SLURM_ARRAY_TASK_ID\n"
        'variants=("--backbone vgg16" "seed=3 --lr 0.1")\n',
    )
    text = text.replace(
        "set -- photos --epochs 3\n",
        "set -- photos --epochs 3 ${variants[$SLURM_ARRAY_TASK_ID]}\n",
    )
    ids = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": task}
    job = run_job(text, stubs=None, **ids, FINETUNE="ft")
    assert job.returncode == 0, job.stderr
    own = "".join(f"<{arg}>" for arg in args)
    run = f"<--output><{tmp_path}/runs/one_{task}><resume=auto>"
    assert job.stdout == f"<ft><fit>{run}<photos><--epochs><3>{own}"


def test_batch_script_outside_of_a_job_fails() -> None:
    job = run_job(render(), SLURM_JOB_ID="")
    assert job.returncode == 1
    assert "SLURM_JOB_ID" in job.stderr


def test_batch_script_exports_threads_cache_and_requeue_file(tmp_path: Path) -> None:
    names = (
        "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "FINETUNE_CACHE", "FINETUNE_REQUEUE_FILE",
    )  # fmt: skip
    stubs = write_stub(tmp_path / "shows", "srun", 'echo "$@"; env')
    unset = dict.fromkeys(names, "")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.requeue").touch()  # of an earlier start; it must not count
    job = run_job(render(), stubs=stubs, **unset, SLURM_CPUS_PER_TASK="6", SLURM_TMPDIR="/local/7")
    assert job.returncode == 0, job.stderr
    first, *lines = job.stdout.splitlines()
    assert first.startswith(
        "--export=ALL --kill-on-bad-exit=1 --wait=0 --cpus-per-task=6 bash -c trap"
    )
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert [variables[name] for name in names] == [
        "6", "1", "/local/7/finetune", f"{tmp_path}/runs/one.requeue",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "crash", "is_requeued"),
    [
        (7, "0", False),
        (7, "1", True),
        (139, "1", True),
        (2, "1", False),
        (127, "1", False),
        (128 + signal.SIGUSR1, "0", True),
    ],
)
def test_batch_script_requeues_after_a_crash_by_exit_code(
    code: int, crash: str, is_requeued: bool, tmp_path: Path
) -> None:
    stubs = write_stub(tmp_path / "fails", "srun", f"exit {code}")
    write_stub(stubs, "scontrol", f'echo "$@" > {tmp_path}/requeued; exit 1')
    job = run_job(render(), stubs=stubs, FINETUNE="ft", REQUEUE_ON_CRASH=crash)
    assert job.returncode == code
    assert (tmp_path / "requeued").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
        assert "scontrol" in job.stderr


@pytest.mark.parametrize(
    ("extra", "requeued"),
    [
        ({}, "requeue 7\n"),
        ({"SLURM_RESTART_COUNT": "19"}, "requeue 7\n"),
        ({"SLURM_RESTART_COUNT": "20"}, None),
        ({"SLURM_RESTART_COUNT": "1", "MAX_RESTARTS": "1"}, None),
        # the array's number alone would requeue all of its tasks, also the finished ones
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 7_3\n"),
    ],
)
def test_batch_script_after_a_signal_requeues_up_to_max_restarts(
    extra: dict[str, str], requeued: str | None, tmp_path: Path
) -> None:
    stubs = write_stub(tmp_path / "stops", "srun", 'echo SIGUSR1 > "$FINETUNE_REQUEUE_FILE"')
    write_stub(stubs, "scontrol", f'echo "$@" > {tmp_path}/requeued; exit 1')
    job = run_job(render(), stubs=stubs, **extra)
    assert job.returncode == 85, "the job must not look complete"
    output = tmp_path / "requeued"
    assert (output.read_text() if output.exists() else None) == requeued
    assert "Submit it again to resume the run." in job.stderr
    assert not list((tmp_path / "runs").glob("*.requeue"))

"""Runs in a SLURM cluster of two nodes: every kind of stop ends with the weights of one process."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune.cli.main import run as run_command
from finetune.commands.submit.batch_script import JobResources, render_batch_script
from tests.support.runs import (
    CLASSES,
    assert_close_rows,
    compute_largest_difference,
    load_checkpoint,
    load_weights,
    read_rows,
    write_photos,
    write_weights,
)
from tests.support.slurm import PACKAGES, Cluster, Job, find_missing_program

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        find_missing_program() is not None,
        reason=f"{find_missing_program()} is not installed: apt-get install {PACKAGES}",
    ),
]

NUM_EPOCHS = 3
STEPS_PER_EPOCH = 6
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
BATCH_SIZE = 8

# a user-defined schedule that records each step, sleeps in it until the job was requeued
# PACED_RESTARTS times, and kills its rank at a step if asked to
PACED = f"""
import os, signal, time
from pathlib import Path

begun = set()

def paced(progress, *, final_factor):
    step, rank = round(progress * {NUM_STEPS}), os.environ.get("SLURM_PROCID")
    if "PACE_SECONDS" in os.environ and step not in begun:
        begun.add(step)
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if restarts < int(os.environ.get("PACED_RESTARTS", "1")):
            time.sleep(float(os.environ["PACE_SECONDS"]))
        log = Path(os.environ["STEPS"] + rank)
        with log.open("a") as stream:
            stream.write(f"{{step}} {{os.getpid()}}\\n")
        killed = Path(os.environ["STEPS"] + "killed")
        if os.environ.get("KILL") == f"{{rank}}@{{step}}" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return 1 - (1 - final_factor) * progress
"""

CONFIG = f"""
data: {{image_size: 32, num_workers: 0}}
model: {{backbone: test_resnet, weights: weights.pth, batch_norm: frozen}}
probe: {{enabled: "off"}}
unfreeze: {{name: gradual, params: {{start: 1, every: 1, step: 0.5}}}}
augment: {{name: light}}
optim: {{name: sgd, lr: 0.2, backbone_lr_scale: 1, layer_decay: 1, weight_decay: 0}}
lr_schedule: {{name: "paced:paced"}}
trainer:
  {{epochs: {NUM_EPOCHS}, batch_size: {BATCH_SIZE}, precision: 32-true, accelerator: cpu,
  collective_timeout_seconds: 30}}
"""

FIT_ARGS = ("photos", "--config", "config.yaml")
FINETUNE = (sys.executable, "-m", "finetune")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights, a config and the user-defined schedule."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos", num_train=STEPS_PER_EPOCH * BATCH_SIZE // len(CLASSES))
    write_weights(folder / "weights.pth")
    (folder / "paced.py").write_text(PACED)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> Path:
    """Return an uninterrupted run of one process."""
    return run_in_this_process(place, "expected")


def run_in_this_process(place: Path, name: str, *args: str) -> Path:
    """Return an uninterrupted run, made in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert run_command(["fit", *FIT_ARGS, *args, "--output", name]) == 0
    return place / name


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(started_cluster: Cluster) -> Iterator[Cluster]:
    """Yield the cluster without jobs."""
    yield started_cluster
    started_cluster.clear()


@pytest.fixture
def paced(tmp_path: Path) -> dict[str, str]:
    """Return variables with which a training takes seconds and records its steps."""
    return {"PACE_SECONDS": "0.4", "STEPS": f"{tmp_path}/steps-of-"}


def read_steps(paced: dict[str, str], rank: int) -> list[tuple[int, int]]:
    """Return each step that a rank has begun, and the id of its process."""
    log = Path(f"{paced['STEPS']}{rank}")
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(step), int(pid)) for step, pid in (line.split() for line in lines)]


def wait_for_step(job: Job, paced: dict[str, str], step: int, *, rank: int = 0) -> None:
    """Wait until a rank has begun a step."""
    job.wait_until(
        lambda: any(number >= step for number, _ in read_steps(paced, rank)),
        f"step {step} of rank {rank}",
        60,
    )


def assert_same_result(run: Path, expected: Path) -> None:
    """Check that two runs agree, up to the order of floating-point additions."""
    assert load_checkpoint(run)["global_step"] == NUM_STEPS
    assert compute_largest_difference(load_weights(run), load_weights(expected)) <= 1e-6
    assert (
        compute_largest_difference(load_weights(run, "best"), load_weights(expected, "best"))
        <= 1e-6
    )
    actual_rows, expected_rows = read_rows(run), read_rows(expected)
    assert [row["epoch"] for row in actual_rows] == [str(n + 1) for n in range(NUM_EPOCHS)]
    for row, other in zip(actual_rows, expected_rows, strict=True):
        assert_close_rows(row, other)
    assert (run / "bundle" / "model.safetensors").is_file()


def write_script(
    place: Path,
    run: Path,
    *args: str,
    nodes: int = 2,
    tasks: int = 1,
    options: tuple[str, ...] = (),
) -> Path:
    """Write the batch script of ``finetune submit`` for a run and return its path."""
    resources = JobResources(nodes=nodes, tasks_per_node=tasks, time="5", extra_options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        text = render_batch_script((*FIT_ARGS, *args), resources, run)
    script = run.with_suffix(".sbatch")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text, encoding="utf-8")
    return script


@pytest.fixture
def run_dir(place: Path) -> Path:
    """Return the path of a new run folder."""
    return place / "runs" / f"run-{time.monotonic_ns()}"


@pytest.mark.parametrize("tasks", [1, 2])
def test_job_on_two_nodes_equals_one_process(
    tasks: int, cluster: Cluster, place: Path, expected: Path, run_dir: Path
) -> None:
    job = cluster.submit(place, write_script(place, run_dir, tasks=tasks))
    job.wait_until_completed()
    assert f"cpu x {2 * tasks}" in job.log_text
    assert job.restarts == 0
    assert_same_result(run_dir, expected)


def test_job_stopped_by_signal_requeue_and_preemption_resumes_each_time(
    cluster: Cluster, place: Path, paced: dict[str, str], expected: Path, run_dir: Path
) -> None:
    job = cluster.submit(place, write_script(place, run_dir), **paced, PACED_RESTARTS="3")
    wait_for_step(job, paced, 4, rank=1)
    cluster.run("scancel", "--signal=USR1", job.id)
    job.wait_until(lambda: job.restarts == 1, "requeued after the signal")
    wait_for_step(job, paced, 8, rank=1)
    cluster.run("scontrol", "requeue", job.id)
    job.wait_until(lambda: job.restarts == 2, "requeued by scontrol")
    wait_for_step(job, paced, 12, rank=1)
    options = ("--partition=urgent", "--nodes=2", "--ntasks-per-node=2", "--output=/dev/null")
    other = cluster.submit(Path("/"), "--wrap=srun sleep 1", options=options)
    other.wait_until_completed()
    job.wait_until_completed()
    assert job.restarts == 3
    assert_same_result(run_dir, expected)
    assert not list(run_dir.parent.glob("*.requeue"))
    for rank in range(2):
        steps = read_steps(paced, rank)
        assert len({pid for _, pid in steps}) == 4
        # a resumed process asks for the rate of step 0, where it begins, and of the step in which
        # the one before was stopped; no other step is repeated
        assert len(steps) <= NUM_STEPS + 1 + 3 * 2


def test_job_longer_than_time_limit_is_requeued_and_resumes(
    cluster: Cluster, place: Path, paced: dict[str, str], expected: Path, run_dir: Path
) -> None:
    # every 30 seconds the controller checks whether less than 30 seconds and these 25 are left
    options = ("--time=1", "--signal=USR1@25")
    script = write_script(place, run_dir, nodes=1, options=options)
    job = cluster.submit(place, script, **paced | {"PACE_SECONDS": "3"})
    job.wait_until_completed(240)
    assert job.restarts >= 1
    assert "SIGUSR1" in job.log_text
    assert_same_result(run_dir, expected)


def test_job_resumes_after_a_node_failure(
    cluster: Cluster, place: Path, paced: dict[str, str], expected: Path, run_dir: Path
) -> None:
    job = cluster.submit(place, write_script(place, run_dir), **paced)
    wait_for_step(job, paced, 8, rank=1)
    cluster.kill_node("n2")
    job.wait_until(lambda: job.restarts == 1, "requeued", 90)
    cluster.start_node("n2")
    job.wait_until_completed()
    assert_same_result(run_dir, expected)


def test_job_with_requeue_on_crash_resumes_after_a_crash(
    cluster: Cluster, place: Path, paced: dict[str, str], expected: Path, run_dir: Path
) -> None:
    crash = {"KILL": "1@8", "REQUEUE_ON_CRASH": "1"}
    job = cluster.submit(place, write_script(place, run_dir), **paced, **crash)
    job.wait_until_completed()
    assert job.restarts == 1
    assert_same_result(run_dir, expected)


def test_cancelled_job_is_saved_and_not_requeued(
    cluster: Cluster, place: Path, paced: dict[str, str], expected: Path, run_dir: Path
) -> None:
    job = cluster.submit(place, write_script(place, run_dir), **paced)
    wait_for_step(job, paced, 8)
    cluster.run("scancel", job.id)
    assert job.wait_until_ended() == "CANCELLED"
    assert job.restarts == 0
    assert 8 <= load_checkpoint(run_dir)["global_step"] < NUM_STEPS

    # submitted again, by hand and on one node
    resubmitted = cluster.submit(place, write_script(place, run_dir, nodes=1))
    resubmitted.wait_until_completed()
    assert_same_result(run_dir, expected)


def test_job_out_of_restarts_fails_with_exit_code_85(
    cluster: Cluster, place: Path, paced: dict[str, str], run_dir: Path
) -> None:
    job = cluster.submit(place, write_script(place, run_dir, nodes=1), **paced, MAX_RESTARTS="0")
    wait_for_step(job, paced, 2)
    cluster.run("scancel", "--signal=USR1", job.id)
    assert job.wait_until_ended() == "FAILED"
    assert job.properties["ExitCode"] == "85:0"
    assert job.restarts == 0
    assert "MAX_RESTARTS" in job.log_text


@pytest.mark.parametrize(
    ("args", "extra", "code"),
    [(("optim.lrr=1",), {}, 2), ((), {"FINETUNE": "not-installed"}, 127)],
    ids=["config", "command"],
)
def test_job_with_a_final_error_is_not_requeued(
    args: tuple[str, ...],
    extra: dict[str, str],
    code: int,
    cluster: Cluster,
    place: Path,
    run_dir: Path,
) -> None:
    script = write_script(place, run_dir, *args, nodes=1)
    job = cluster.submit(place, script, REQUEUE_ON_CRASH="1", **extra)
    assert job.wait_until_ended() == "FAILED"
    assert job.properties["ExitCode"] == f"{code}:0"
    assert job.restarts == 0
    assert ("'optim.lr'" in job.log_text) == (code == 2)


def test_array_tasks_are_separate_runs_and_resume_separately(
    cluster: Cluster, place: Path, paced: dict[str, str], run_dir: Path
) -> None:
    """The edit of a script that the SLURM guide describes."""
    variants = ("seed=3", "seed=4 --lr 0.1")
    script = write_script(place, run_dir, nodes=1)
    text = script.read_text().replace(
        f"\nrun={run_dir}\n",
        f"\nrun={run_dir}_$SLURM_ARRAY_TASK_ID\nvariants=({shlex.join(variants)})\n",
    )
    arguments = f"set -- {shlex.join(FIT_ARGS)}"
    assert f"{arguments}\n" in text
    text = text.replace(arguments, arguments + " ${variants[$SLURM_ARRAY_TASK_ID]}")
    script.write_text(text)
    options = ("--array=0-1", f"--output={run_dir}_%a.log")
    array = cluster.submit(place, script, options=options, **paced)
    tasks = [Job(cluster, f"{array.id}_{number}") for number in range(2)]
    run_dirs = [run_dir.with_name(f"{run_dir.name}_{number}") for number in range(2)]
    tasks[1].wait_until((run_dirs[1] / "metrics.csv").exists, "an epoch of task 1")
    cluster.run("scancel", "--full", "--signal=USR1", tasks[1].id)  # also to the script
    for task in tasks:
        task.wait_until_completed()
    assert [task.restarts for task in tasks] == [0, 1]
    for run, args in zip(run_dirs, variants, strict=True):
        expected = run_in_this_process(place, f"expected-{run.name}", *args.split())
        assert_same_result(run, expected)


def test_staged_images_are_read_from_the_local_disk_and_removed(
    cluster: Cluster, place: Path, tmp_path: Path, expected: Path, run_dir: Path
) -> None:
    disk = tmp_path / "disk"
    script = write_script(place, run_dir, nodes=1)
    job = cluster.submit(place, script, STAGE="1", LOCAL_DISK=str(disk), FINETUNE_CACHE="")
    job.wait_until_completed()
    assert_same_result(run_dir, expected)
    with (run_dir / "config.yaml").open() as stream:
        assert yaml.safe_load(stream)["data"]["path"] == f"{disk}/finetune-job-{job.id}"
    assert sorted(path.name for path in disk.iterdir()) == ["finetune"]
    assert list(disk.glob("finetune/pixels/*")), "the pixel cache stays on the local disk"


def test_submit_runs_a_job_and_refuses_to_queue_it_twice(
    cluster: Cluster, place: Path, expected: Path
) -> None:
    output = 'submitted/it\'s "50%" é'
    args = (
        "submit", *FIT_ARGS, "--output", output, "--nodes", "2", "--gpus-per-node", "1",
        "--cpus-per-task", "2", "--time", "5", "--sbatch", '--comment="two words"', "--json",
    )  # fmt: skip
    tree = json.loads(cluster.run(*FINETUNE, *args, folder=place))
    job = Job(cluster, tree["job_id"])
    second = cluster.try_run(*FINETUNE, *args, folder=place)
    assert second.returncode == 5
    assert f"Job {tree['job_id']} " in " ".join(second.stderr.split())
    job.wait_until_completed()
    properties = job.properties
    keys = ("NumNodes", "NumCPUs", "CPUs/Task", "TresPerNode", "Comment")
    assert [properties[key] for key in keys] == ["2", "4", "2", "gres:gpu:1", "two"]
    assert_same_result(place / output, expected)
    assert "cpu x 2" in Path(tree["log"]).read_text()
    assert Path(tree["script"]).read_text() == tree["script_text"]


def test_submit_dry_run_queues_nothing(cluster: Cluster, place: Path) -> None:
    script = cluster.run(*FINETUNE, "submit", *FIT_ARGS, "--nodes", "2", "--dry-run", folder=place)
    assert "#SBATCH --nodes=2\n" in script
    assert cluster.run("squeue", "--noheader") == ""
    (place / "dry-run.sbatch").write_text(script)
    cluster.run("sbatch", "--test-only", place / "dry-run.sbatch")


def test_submit_rejected_by_the_cluster_shows_the_reason(cluster: Cluster, place: Path) -> None:
    process = cluster.try_run(*FINETUNE, "submit", *FIT_ARGS, "--partition", "none", folder=place)
    assert process.returncode == 2
    message = " ".join(process.stderr.split())
    assert "invalid partition specified: none" in message


def start_wrongly(cluster: Cluster, place: Path, launcher: str, *args: str) -> str:
    """Return the messages of a launch that must fail at once in all of its processes."""
    start = time.monotonic()
    output = f"refused-{time.monotonic_ns()}"
    command = (*shlex.split(launcher), *FINETUNE, "fit", *FIT_ARGS, "--output", output, *args)
    process = cluster.try_run(*command, folder=place)
    assert time.monotonic() - start < 60
    assert process.returncode == 2, process.stderr
    assert not (place / output).exists()
    lines = process.stderr.splitlines()
    lines = [line for line in lines if not line.startswith(("srun: ", "salloc: "))]
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize(
    ("launcher", "args", "names"),
    [
        (
            "srun --ntasks=2 --nodes=1", ("--devices", "1"),
            ["--devices", "srun started 2 processes", "--num-nodes"],
        ),
        (
            "srun --nodes=2 --ntasks-per-node=1", ("--num-nodes", "1"),
            ["--num-nodes", "srun started 1 process", "--devices"],
        ),
        (
            "salloc --nodes=1 --ntasks-per-node=2", (),
            ["2 tasks", "srun --nodes=1 --ntasks-per-node=2"],
        ),
        (
            "salloc --nodes=2 --ntasks-per-node=1", ("--devices", "1"),
            ["2 tasks", "srun --nodes=2 --ntasks-per-node=1"],
        ),
        ("srun --nodes=2 --ntasks=3", (), ["2, 1 tasks", "srun --nodes=2 --ntasks-per-node=1"]),
    ],
)  # fmt: skip
def test_wrong_launch_fails_at_once_with_the_right_command(
    launcher: str, args: tuple[str, ...], names: list[str], cluster: Cluster, place: Path
) -> None:
    message = start_wrongly(cluster, place, launcher, *args)
    assert message.lower().count("error: ") == 1, "one process reports for all"
    for name in names:
        assert name in message


def test_job_named_bash_is_one_run(cluster: Cluster, place: Path, expected: Path) -> None:
    # Lightning takes this name for an interactive shell, and every task would train alone
    run = place / "named-bash"
    launcher = ("srun", "--job-name=bash", "--nodes=2", "--ntasks-per-node=1")
    output = cluster.run(*launcher, *FINETUNE, "fit", *FIT_ARGS, "--output", run, folder=place)
    assert output.count("cpu x 2") == 1
    assert_same_result(run, expected)

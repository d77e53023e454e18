"""Whole runs in a real SLURM of two nodes: stopped in every way that it has, and yet the same."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from finetune.cli.main import run as run_command
from tests.support.networks import one_thread
from tests.support.runs import (
    CLASSES,
    checkpoint,
    largest_difference,
    rows,
    weights,
    write_photos,
    write_weights,
)
from tests.support.slurm import PACKAGES, Cluster, Job, missing_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        missing_program() is not None,
        reason=f"{missing_program()} is not installed: apt-get install {PACKAGES}",
    ),
]

SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
NUM_EPOCHS = 3
STEPS_PER_EPOCH = 6
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
BATCH_SIZE = 8

# a learning rate of the user's own: it tells of each step, takes its time until the job begins
# again, and may kill its rank
PACED = f"""
import os, signal, time
from pathlib import Path

begun = set()

def paced(progress, *, final_factor):
    step, rank = round(progress * {NUM_STEPS}), os.environ.get("SLURM_PROCID")
    if "PACE_SECONDS" in os.environ and step not in begun:
        begun.add(step)
        if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            time.sleep(float(os.environ["PACE_SECONDS"]))
        told = Path(os.environ["STEPS"] + rank)
        with told.open("a") as stream:
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

FIT = ("photos", "--config", "config.yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights, a config and the user's own code."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos", num_train=STEPS_PER_EPOCH * BATCH_SIZE // len(CLASSES))
    write_weights(folder / "weights.pth")
    (folder / "paced.py").write_text(PACED)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> Path:
    """Return the run of one process that nothing stopped."""
    return run_here(place, "expected")


def run_here(place: Path, name: str, *more: str) -> Path:
    """Return a run that one process makes, this one."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert run_command(["fit", *FIT, *more, "--output", name]) == 0
    return place / name


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.environment["FINETUNE"] = shlex.join(finetune())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(started_cluster: Cluster) -> Iterator[Cluster]:
    """Return the cluster without a job."""
    yield started_cluster
    started_cluster.clear()


@pytest.fixture
def slowed(tmp_path: Path) -> dict[str, str]:
    """Return variables that make a training last some seconds and tell of its steps."""
    return {"PACE_SECONDS": "0.4", "STEPS": f"{tmp_path}/steps-of-"}


def steps_of(slowed: dict[str, str], rank: int) -> list[tuple[int, int]]:
    """Return each step that a rank has begun, and its process."""
    told = Path(f"{slowed['STEPS']}{rank}")
    lines = told.read_text().splitlines() if told.exists() else []
    return [(int(step), int(pid)) for step, pid in (line.split() for line in lines)]


def until_step(job: Job, slowed: dict[str, str], step: int, *, rank: int = 0) -> None:
    """Return once a rank is at a step."""

    def reached() -> bool:
        return any(number >= step for number, _ in steps_of(slowed, rank))

    job.until(reached, f"step {step} of rank {rank}", 60)


def assert_same(run: Path, expected: Path) -> None:
    """Fail unless two runs ended alike, to what addition in another order costs."""
    assert checkpoint(run)["global_step"] == NUM_STEPS
    assert largest_difference(weights(run), weights(expected)) <= 1e-6
    assert largest_difference(weights(run, "best"), weights(expected, "best")) <= 1e-6
    found, wanted = rows(run), rows(expected)
    assert [row["epoch"] for row in found] == [str(epoch + 1) for epoch in range(NUM_EPOCHS)]
    for row, other in zip(found, wanted, strict=True):
        for name in other.keys() - {"seconds"}:
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-6), name
    assert (run / "bundle" / "model.safetensors").is_file()


def run_of(place: Path, job: Job) -> Path:
    return place / "runs" / job.id


def fit_on_two_nodes(
    cluster: Cluster, place: Path, *options: str, script: str = "fit-multinode.sbatch", **extra: str
) -> Job:
    """Submit the shipped script."""
    given = ("--time=5", *options)
    return cluster.submit(place, SCRIPTS / script, *FIT, options=given, **extra)


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_tasks_of_two_nodes_end_as_one_process_does(
    tasks: int, cluster: Cluster, place: Path, expected: Path
) -> None:
    job = fit_on_two_nodes(cluster, place, f"--ntasks-per-node={tasks}")
    job.completes()
    assert f"32-true on cpu x {2 * tasks}" in job.text
    assert job.restarts == 0
    assert_same(run_of(place, job), expected)


def by_signal(job: Job) -> None:
    job.cluster.run("scancel", "--signal=USR1", job.id)


def by_hand(job: Job) -> None:
    job.cluster.run("scontrol", "requeue", job.id)


def by_another(job: Job) -> None:
    options = ("--partition=urgent", "--nodes=2", "--ntasks-per-node=2", "--output=/dev/null")
    other = job.cluster.submit(Path("/"), "--wrap=srun sleep 1", options=options)
    other.completes()


@pytest.mark.parametrize("stop", [by_signal, by_hand, by_another])
def test_a_stopped_job_goes_on_by_itself(
    stop: Callable[[Job], None],
    cluster: Cluster,
    place: Path,
    slowed: dict[str, str],
    expected: Path,
) -> None:
    job = fit_on_two_nodes(cluster, place, **slowed)
    until_step(job, slowed, 8, rank=1)
    stop(job)
    job.completes()
    assert job.restarts == 1
    assert_same(run_of(place, job), expected)
    assert not list(place.glob("runs/*.requeue"))
    assert "Goes on" in job.text
    for rank in range(2):
        assert len({pid for _, pid in steps_of(slowed, rank)}) == 2


def test_a_run_longer_than_the_time_limit_goes_on_by_itself(
    cluster: Cluster, place: Path, slowed: dict[str, str], expected: Path
) -> None:
    # every 30 seconds the controller looks whether less than 30 seconds and these 25 are left
    options = ("--time=1", "--signal=USR1@25", "--nodes=1", "--ntasks-per-node=1")
    job = fit_on_two_nodes(cluster, place, *options, **slowed | {"PACE_SECONDS": "3"})
    job.completes(240)
    assert job.restarts >= 1
    assert "stopped by SIGUSR1" in job.text
    assert_same(run_of(place, job), expected)


def test_a_dead_node_ends_nothing(
    cluster: Cluster, place: Path, slowed: dict[str, str], expected: Path
) -> None:
    job = fit_on_two_nodes(cluster, place, **slowed)
    until_step(job, slowed, 8, rank=1)
    cluster.kill_node("n2")
    job.until(lambda: job.restarts == 1, "it is in the queue again", 90)
    cluster.start_node("n2")
    job.completes()
    assert_same(run_of(place, job), expected)


def test_after_a_crash_a_job_goes_on_if_it_was_told_to(
    cluster: Cluster, place: Path, slowed: dict[str, str], expected: Path
) -> None:
    crash = {"KILL": "1@8", "REQUEUE_ON_CRASH": "1"}
    job = fit_on_two_nodes(cluster, place, **slowed, **crash)
    job.completes()
    assert job.restarts == 1
    assert "begins again" in job.text
    assert_same(run_of(place, job), expected)


def test_a_cancelled_job_is_saved_and_stays_so(
    cluster: Cluster, place: Path, slowed: dict[str, str], expected: Path
) -> None:
    job = fit_on_two_nodes(cluster, place, **slowed)
    until_step(job, slowed, 8)
    cluster.run("scancel", job.id)
    assert job.ended() == "CANCELLED"
    assert job.restarts == 0
    run = run_of(place, job)
    assert 8 <= checkpoint(run)["global_step"] < NUM_STEPS

    # by hand, as another job, which ends with the same weights
    again = fit_on_two_nodes(cluster, place, "--nodes=1", RUN=str(run))
    again.completes()
    assert_same(run, expected)


def test_a_job_out_of_restarts_does_not_look_complete(
    cluster: Cluster, place: Path, slowed: dict[str, str]
) -> None:
    job = fit_on_two_nodes(cluster, place, "--nodes=1", **slowed, MAX_RESTARTS="0")
    until_step(job, slowed, 2)
    by_signal(job)
    assert job.ended() == "FAILED"
    assert job.facts["ExitCode"] == "85:0"
    assert job.restarts == 0
    assert f"Submitted once more with RUN={run_of(place, job)} it goes on." in job.text


def test_a_mistake_is_not_repeated(cluster: Cluster, place: Path) -> None:
    always = {"REQUEUE_ON_CRASH": "1"}
    wrong = cluster.submit(place, SCRIPTS / "fit.sbatch", "photos", "optim.lrr=1", **always)
    nowhere = fit_on_two_nodes(cluster, place, "--nodes=1", FINETUNE="not-installed", **always)
    for job, code in ((wrong, 2), (nowhere, 127)):
        assert job.ended() == "FAILED"
        assert job.facts["ExitCode"] == f"{code}:0"
        assert job.restarts == 0
    assert "optim.lrr: unknown key. Did you mean 'optim.lr'?" in wrong.text


def test_each_task_of_an_array_is_a_run_of_its_own(
    cluster: Cluster, place: Path, slowed: dict[str, str]
) -> None:
    variants = ("seed=3", "seed=4 --lr 0.1")
    job = cluster.submit(
        place, SCRIPTS / "array.sbatch", *FIT, "--", *variants,
        options=("--time=5", "--array=0-1"), **slowed,
    )  # fmt: skip
    tasks = [Job(cluster, f"{job.id}_{number}") for number in range(2)]
    tasks[1].until(lambda: "epoch  train loss" in tasks[1].text, "it trains")
    cluster.run("scancel", "--full", "--signal=USR1", tasks[1].id)  # to the script too
    for task in tasks:
        task.completes()
    assert [task.restarts for task in tasks] == [0, 1]
    for task, words in zip(tasks, variants, strict=True):
        assert_same(run_of(place, task), run_here(place, f"expected-{task.id}", *words.split()))


def test_staged_images_are_read_from_the_node_and_removed(
    cluster: Cluster, place: Path, tmp_path: Path, expected: Path
) -> None:
    disk = tmp_path / "disk"
    job = fit_on_two_nodes(
        cluster, place, script="fit.sbatch", STAGE="1", LOCAL_DISK=str(disk), FINETUNE_CACHE=""
    )
    job.completes()
    run = run_of(place, job)
    assert_same(run, expected)
    with (run / "config.yaml").open() as stream:
        assert yaml.safe_load(stream)["data"]["path"] == f"{disk}/finetune-job-{job.id}"
    assert sorted(path.name for path in disk.iterdir()) == ["finetune"]
    assert list(disk.glob("finetune/pixels/*")), "the pixels are kept where the images were"


def test_a_submitted_run_ends_as_one_process_does(
    cluster: Cluster, place: Path, expected: Path
) -> None:
    output = 'submitted/it\'s "50%" é'
    words = (
        "submit", *FIT, "--output", output, "--nodes", "2", "--gpus-per-node", "1",
        "--cpus-per-task", "2", "--time", "5", "--sbatch", '--comment="two words"', "--json",
    )  # fmt: skip
    tree = json.loads(cluster.run(*finetune(), *words, folder=place, FINETUNE=""))
    job = Job(cluster, tree["job_id"])
    again = cluster.attempt(*finetune(), *words, folder=place, FINETUNE="")
    assert again.returncode == 5
    said = " ".join(again.stderr.split())
    assert f"Job {tree['job_id']} of this run is in the queue already" in said
    job.completes()
    facts = job.facts
    assert (facts["NumNodes"], facts["NumCPUs"], facts["CPUs/Task"]) == ("2", "4", "2")
    assert facts["TresPerNode"] == "gres:gpu:1"
    assert facts["Comment"] == "two"
    assert_same(place / output, expected)
    log = Path(tree["log"]).read_text()
    assert "32-true on cpu x 2" in log
    assert Path(tree["script"]).read_text() == tree["text"]


def test_a_dry_run_puts_nothing_into_the_queue(cluster: Cluster, place: Path) -> None:
    words = ("submit", *FIT, "--nodes", "2", "--dry-run")
    script = cluster.run(*finetune(), *words, folder=place)
    assert "#SBATCH --nodes=2\n" in script
    assert cluster.run("squeue", "--noheader") == ""
    (place / "by-hand.sbatch").write_text(script)
    cluster.run("sbatch", "--test-only", place / "by-hand.sbatch")


def test_what_the_cluster_refuses_is_explained(cluster: Cluster, place: Path) -> None:
    ended = cluster.attempt(*finetune(), "submit", *FIT, "--partition", "none", folder=place)
    assert ended.returncode == 2
    said = " ".join(ended.stderr.split())
    assert "error: sbatch refuses the job: invalid partition specified: none" in said


def refused(cluster: Cluster, place: Path, starter: str, *words: str) -> str:
    """Return what is said where a wrong start ends at once, in all its processes."""
    begin = time.monotonic()
    output = f"refused-{time.monotonic_ns()}"
    line = (*shlex.split(starter), *finetune(), "fit", *FIT, "--output", output, *words)
    ended = cluster.attempt(*line, folder=place)
    assert time.monotonic() - begin < 60
    assert ended.returncode == 2, ended.stderr
    assert not (place / output).exists()
    lines = ended.stderr.splitlines()
    said = [line for line in lines if not line.startswith(("srun: ", "salloc: "))]
    return " ".join(" ".join(said).split())


@pytest.mark.parametrize(
    ("starter", "words", "messages"),
    [
        (
            "srun --ntasks=2 --nodes=1", ("--devices", "1"),
            ["--devices is 1, but srun started 2 processes on each of 1 machine", "Leave"],
        ),
        (
            "srun --nodes=2 --ntasks-per-node=1", ("--num-nodes", "1"),
            ["--num-nodes is 1, but srun started 1 processes on each of 2 machines", "Leave"],
        ),
        (
            "salloc --nodes=1 --ntasks-per-node=2", (),
            ["2 tasks on 1 machines, but srun did not", "srun --nodes=1 --ntasks-per-node=2"],
        ),
        (
            "salloc --nodes=2 --ntasks-per-node=1", ("--devices", "1"),
            ["2 tasks on 2 machines, but srun did not", "srun --nodes=2 --ntasks-per-node=1"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_start_is_refused_at_once_with_the_right_line(
    starter: str, words: tuple[str, ...], messages: list[str], cluster: Cluster, place: Path
) -> None:
    said = refused(cluster, place, starter, *words)
    assert said.count("error: ") == 1, "one process says it for all"
    for message in messages:
        assert message in said


def test_machines_with_unequal_tasks_are_refused(cluster: Cluster, place: Path) -> None:
    said = refused(cluster, place, "srun --nodes=2 --ntasks=3")
    assert "srun started 2, 1 tasks on the 2 machines: every machine needs as many" in said
    assert "Use srun --nodes=2 --ntasks-per-node=1 finetune fit" in said


def test_a_job_named_bash_is_one_run_too(cluster: Cluster, place: Path, expected: Path) -> None:
    # Lightning takes that name for a person at a prompt, and every task would train alone
    run = place / "named-bash"
    starter = ("srun", "--job-name=bash", "--nodes=2", "--ntasks-per-node=1")
    said = cluster.run(*starter, *finetune(), "fit", *FIT, "--output", run, folder=place)
    assert said.count("32-true on cpu x 2") == 1
    assert_same(run, expected)


def finetune() -> list[str]:
    """Return how finetune is called."""
    return [sys.executable, "-m", "finetune"]

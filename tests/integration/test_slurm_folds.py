"""Folds of a cross-validation as a job array in a SLURM cluster of two nodes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.cli.main import run as run_command
from tests.support.cross_validation import assert_same_cross_validation
from tests.support.runs import load_checkpoint, write_photos, write_weights
from tests.support.slurm import PACKAGES, Cluster, Job, find_missing_program

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        find_missing_program() is not None,
        reason=f"{find_missing_program()} is not installed: apt-get install {PACKAGES}",
    ),
]

FINETUNE = (sys.executable, "-m", "finetune")

# a user-defined schedule that sleeps at each step of fold 1 until it was requeued, and kills fold 2
# in its second epoch; the job after both is not an array task and trains undisturbed
DISTURBED = """
import os, signal, time
from pathlib import Path

def disturbed(progress, *, final_factor):
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task == "1" and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        Path(os.environ["STARTED"]).touch()
        time.sleep(0.2)
    if task == "2" and progress > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1 - (1 - final_factor) * progress
"""

CONFIG = """
data: {image_size: 32, num_workers: 0}
model: {backbone: test_resnet, weights: weights.pth}
augment: {name: light}
optim: {name: sgd, lr: 0.2}
lr_schedule: {name: "disturbed:disturbed"}
trainer: {epochs: 3, batch_size: 4, precision: 32-true, accelerator: cpu}
"""

FIT_ARGS = ("photos", "--config", "config.yaml", "--folds", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights, a config and the user-defined schedule."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "disturbed.py").write_text(DISTURBED)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a cluster without jobs."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_folds_requeued_and_killed_in_a_job_array_equal_those_of_one_process(
    cluster: Cluster, place: Path, tmp_path: Path
) -> None:
    run, started = tmp_path / "run", tmp_path / "started"
    args = ("submit", *FIT_ARGS, "--output", run, "--time", "5", "--json")
    caches = {"FINETUNE_CACHE": str(tmp_path / "cache"), "STARTED": str(started)}
    tree = json.loads(cluster.run(*FINETUNE, *args, folder=place, **caches))
    array, last = tree["folds"]["job_id"], Job(cluster, tree["job_id"])
    tasks = [Job(cluster, f"{array}_{fold}") for fold in (1, 2)]
    again = cluster.try_run(*FINETUNE, *args, folder=place)
    assert again.returncode == 5
    assert f"scancel {array} {last.id}," in " ".join(again.stderr.split())
    assert last.properties["JobState"] == "PENDING"
    assert last.properties["Dependency"].startswith(f"afterany:{array}_")

    tasks[0].wait_until(started.exists, "a step of fold 1", 120)
    cluster.run("scancel", "--signal=USR1", tasks[0].id)
    assert tasks[1].wait_until_ended() == "FAILED"
    assert tasks[1].properties["ExitCode"] == "137:0"
    assert load_checkpoint(run / "folds" / "2")["epoch"] == 0
    tasks[0].wait_until_completed()
    assert [task.restarts for task in tasks] == [1, 0]
    assert not (run / "bundle").exists()

    last.wait_until_completed()
    assert "fold 1 is complete; fold 2 to be trained" in last.log_text
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert run_command(["fit", *FIT_ARGS, "--output", str(tmp_path / "expected")]) == 0
    assert_same_cross_validation(run, tmp_path / "expected")
    assert {path.name for path in tmp_path.glob("run.*")} == {
        "run.sbatch", "run.log", "run.folds.sbatch", "run.fold-1.log", "run.fold-2.log",
    }  # fmt: skip

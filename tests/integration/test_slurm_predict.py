"""A prediction in parts as a job array in a SLURM cluster of two nodes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import dataset

import finetune
from tests.commands.predict.conftest import write_bundle
from tests.support.helpers import write_images
from tests.support.slurm import PACKAGES, Cluster, Job, find_missing_program

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        find_missing_program() is not None,
        reason=f"{find_missing_program()} is not installed: apt-get install {PACKAGES}",
    ),
]

FINETUNE = (sys.executable, "-m", "finetune")

# a slow network for the task that is requeued, imported by Python at its start
SLOW = """
import os
names = ("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")
task, restarts = (os.environ.get(name, "0") for name in names)
if (task, restarts) == ("1", "0"):
    import sys
    if "predict" in sys.argv:
        import time
        import torch
        forward = torch.nn.Linear.forward
        def forward_slowly(self, features):
            time.sleep(0.3)
            return forward(self, features)
        torch.nn.Linear.forward = forward_slowly
"""


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a cluster without jobs."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_array_that_is_requeued_has_one_row_for_each_image(
    cluster: Cluster, tmp_path: Path
) -> None:
    model = write_bundle(tmp_path / "model", seed=0)
    photos = write_images(tmp_path / "photos", *(f"{number:03}.png" for number in range(120)))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(SLOW)
    parts = tmp_path / "parts"
    tree = json.loads(
        cluster.run(
            *FINETUNE, "submit", "--verb", "predict", "model", "photos", "--shards", parts,
            "--array", "2", "--part-size", "4", "--batch-size", "2", "--device", "cpu",
            "--time", "5", "--json", folder=tmp_path, PYTHONPATH=str(tmp_path / "hook"),
        )
    )  # fmt: skip
    tasks = [Job(cluster, f"{tree['job_id']}_{number}") for number in (1, 2)]
    tasks[0].wait_until(lambda: any(parts.glob("part-00000-*.parquet")), "a part of task 1", 120)
    cluster.run("scancel", "--signal=USR1", tasks[0].id)
    for task in tasks:
        task.wait_until_completed()
    assert [task.restarts for task in tasks] == [1, 0]
    assert "requeueing" in tasks[0].log_text
    rows = dataset.dataset(parts).to_table().to_pylist()
    expected = finetune.predict(model, photos, device="cpu", batch_size=2)
    assert sorted(row["path"].rpartition("/")[2] for row in rows) == sorted(
        Path(p.path).name for p in expected.predictions
    )
    assert json.loads((parts / "_complete-00000.json").read_text())["num_images"] < 120

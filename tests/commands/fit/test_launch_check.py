"""What a cluster job started is compared with what was asked for, before anything is done."""

import os
from typing import Any

import pytest

from finetune.commands.fit.launch_check import check_launch
from finetune.config.load import build_config
from finetune.distributed.launch import LaunchInfo
from finetune.errors import ConfigError

FOUR = LaunchInfo(0, 4, 0, 2, 0, "n1", 7, "srun")


@pytest.fixture(autouse=True)
def _outside_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "CUDA_")):
            monkeypatch.delenv(name)


def check(launch: LaunchInfo | None, **trainer: Any) -> LaunchInfo | None:
    return check_launch(build_config({"trainer": trainer}), launch)


@pytest.mark.parametrize("asked", [{}, {"devices": 2}, {"num_nodes": 2}])
def test_a_launch_as_asked_for_is_taken(asked: dict[str, int]) -> None:
    assert check(FOUR, **asked) == FOUR


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"devices": 1}, r"--devices is 1, but srun started 2 processes on each of 2 machines"),
        ({"devices": 4}, r"--devices is 4, .*Leave --devices and --num-nodes out"),
        ({"num_nodes": 1}, r"--num-nodes is 1, but .*srun --nodes=1 --ntasks-per-node=1 finetune"),
        ({"num_nodes": 4, "devices": 2}, r"srun --nodes=4 --ntasks-per-node=2 finetune fit"),
    ],
)
def test_another_launch_than_asked_for_is_refused_with_the_right_line(
    asked: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(FOUR, **asked)


def test_several_machines_without_a_launcher_are_refused() -> None:
    assert check(None, num_nodes=1) is None
    with pytest.raises(ConfigError, match=r"need a launcher.*srun --nodes=3.*torchrun --nnodes=3"):
        check(None, num_nodes=3)


@pytest.mark.parametrize(
    ("job", "asked", "line"),
    [
        ({"NNODES": "2", "NTASKS": "4"}, {}, "srun --nodes=2 --ntasks-per-node=2 finetune"),
        ({"NNODES": "2", "NTASKS": "4"}, {"devices": 2}, "srun --nodes=2 --ntasks-per-node=2"),
        ({"NNODES": "1", "NTASKS": "2"}, {}, "srun --nodes=1 --ntasks-per-node=2 finetune"),
        ({"NNODES": "2"}, {}, "srun --nodes=2 --ntasks-per-node=1 finetune"),
    ],
)
def test_a_job_without_srun_is_refused_with_the_right_line(
    job: dict[str, str], asked: dict[str, int], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ConfigError, match="srun did not start this command") as caught:
        check(None, **asked)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("job", "asked"),
    [
        ({"NNODES": "1", "NTASKS": "1"}, {}),
        ({"NNODES": "1", "NTASKS": "2"}, {"devices": 2}),  # processes of our own
        ({"NNODES": "2", "NTASKS": "2", "STEP_ID": "4294967290"}, {}),  # salloc's own shell
    ],
)
def test_one_machine_of_a_job_may_do_without_srun(
    job: dict[str, str], asked: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert check(None, **asked) is None


ONE_TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("launch", "shown", "message"),
    [
        (
            None,
            {**ONE_TASK, "SLURM_GPUS_ON_NODE": "4"},
            r"started 1 task on this machine, and shows 4 of its GPUs: 3 of them would be idle.*"
            r"srun --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 finetune fit … Or say what you "
            r"mean: --devices 1, or --devices 4 for all of them in one task\.$",
        ),
        (
            FOUR,
            {"CUDA_VISIBLE_DEVICES": "0,1,2"},
            r"started 2 tasks .* 3 of its GPUs: 1 of them would be idle.*--nodes=2 "
            r"--ntasks-per-node=3 --gpus-per-node=3 .* --devices 2\.$",
        ),
        (
            FOUR,
            {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "2"},
            r"started 2 tasks .* shows 1 of its GPUs: each needs one, and sees all of them.*"
            r"--ntasks-per-node=2 --gpus-per-node=2 .*not for --gpus-per-task or --gpu-bind\.$",
        ),
    ],
    ids=["one task for four", "some idle", "each its own"],
)
def test_tasks_are_compared_with_gpus(
    launch: LaunchInfo | None, shown: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shown.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check(launch)
    check(launch, accelerator="cpu")


def test_gpus_that_are_left_idle_on_purpose_are_left_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert check(FOUR, devices=2) == FOUR
    for name, value in ONE_TASK.items():
        monkeypatch.setenv(name, value)
    for devices in (1, 4):
        assert check(None, devices=devices) is None

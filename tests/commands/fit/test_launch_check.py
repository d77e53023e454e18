"""Tests of the check of a launch against the config."""

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
    return check_launch(build_config({"trainer": trainer}).trainer, launch)


@pytest.mark.parametrize("settings", [{}, {"devices": 2}, {"num_nodes": 2}])
def test_check_launch_matching_settings_returns_the_launch(settings: dict[str, int]) -> None:
    assert check(FOUR, **settings) == FOUR


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 1}, r"--devices 1 .*srun started 2 processes on each of 2 nodes"),
        ({"devices": 4}, r"--devices 4 .*--devices and --num-nodes"),
        ({"num_nodes": 1}, r"--num-nodes 1 .*srun --nodes=1 --ntasks-per-node=1 finetune"),
        ({"num_nodes": 4, "devices": 2}, r"srun --nodes=4 --ntasks-per-node=2 finetune fit"),
    ],
)
def test_check_launch_mismatch_raises_config_error_with_command(
    settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(FOUR, **settings)


def test_check_launch_several_nodes_without_launcher_raises_config_error() -> None:
    assert check(None, num_nodes=1) is None
    with pytest.raises(
        ConfigError, match=r"trainer\.num_nodes=3 .*srun --nodes=3.*torchrun --nnodes=3"
    ):
        check(None, num_nodes=3)


@pytest.mark.parametrize(
    ("job", "settings", "command"),
    [
        ({"NNODES": "2", "NTASKS": "4"}, {}, "srun --nodes=2 --ntasks-per-node=2 finetune"),
        ({"NNODES": "2", "NTASKS": "4"}, {"devices": 2}, "srun --nodes=2 --ntasks-per-node=2"),
        ({"NNODES": "1", "NTASKS": "2"}, {}, "srun --nodes=1 --ntasks-per-node=2 finetune"),
        ({"NNODES": "2"}, {}, "srun --nodes=2 --ntasks-per-node=1 finetune"),
    ],
)
def test_check_launch_job_without_srun_raises_config_error_with_command(
    job: dict[str, str], settings: dict[str, int], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ConfigError, match="srun") as caught:
        check(None, **settings)
    assert command in str(caught.value)


@pytest.mark.parametrize(
    ("job", "settings"),
    [
        ({"NNODES": "1", "NTASKS": "1"}, {}),
        ({"NNODES": "1", "NTASKS": "2"}, {"devices": 2}),  # local processes
        ({"NNODES": "2", "NTASKS": "2", "STEP_ID": "4294967290"}, {}),  # the shell of salloc
    ],
)
def test_check_launch_job_of_one_node_needs_no_srun(
    job: dict[str, str], settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert check(None, **settings) is None


ONE_TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("launch", "variables", "message"),
    [
        (
            None,
            {**ONE_TASK, "SLURM_GPUS_ON_NODE": "4"},
            r"1 task .*4 GPUs: 3 .*srun --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 finetune "
            r"fit … .*--devices 1, or --devices 4 ",
        ),
        (
            FOUR,
            {"CUDA_VISIBLE_DEVICES": "0,1,2"},
            r"2 tasks .*3 GPUs: 1 .*--nodes=2 --ntasks-per-node=3 --gpus-per-node=3 .*"
            r"--devices 2\.$",
        ),
        (
            FOUR,
            {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "2"},
            r"2 tasks .*1 GPU: .*--ntasks-per-node=2 --gpus-per-node=2 .*"
            r"--gpus-per-node, not --gpus-per-task or --gpu-bind\.$",
        ),
    ],
    ids=["one task for four GPUs", "idle GPU", "shared GPU"],
)
def test_check_launch_other_number_of_gpus_raises_config_error(
    launch: LaunchInfo | None,
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check(launch)
    check(launch, accelerator="cpu")


def test_check_launch_explicit_devices_may_leave_gpus_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert check(FOUR, devices=2) == FOUR
    for name, value in ONE_TASK.items():
        monkeypatch.setenv(name, value)
    for devices in (1, 4):
        assert check(None, devices=devices) is None

"""Launch detection from the environment of torchrun, srun or an operator."""

import os

import pytest

from finetune.distributed.launch import LaunchInfo, detect_launch, detect_rank, is_nonzero_rank
from finetune.errors import ConfigError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "abc",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
OPERATOR = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}


@pytest.fixture(autouse=True)
def _clear_launch_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_RANK", "MASTER_", "SLURM_", "TORCHELASTIC_")
    for name in os.environ:
        if name.startswith(names):
            monkeypatch.delenv(name)


def detect_launch_with(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> LaunchInfo | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return detect_launch()


TORCHRUN_LAUNCH = LaunchInfo(3, 4, 1, 2, 1, "n1", 29500, "torchrun")
SRUN_LAUNCH = LaunchInfo(1, 4, 0, 2, 1, "gpu003", 15017, "srun")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (TORCHRUN, TORCHRUN_LAUNCH),
        ({**SRUN, **TORCHRUN}, TORCHRUN_LAUNCH),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"},
         LaunchInfo(0, 1, 1, 1, 1, "n1", 29500, "torchrun")),
        (SRUN, SRUN_LAUNCH),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, SRUN_LAUNCH),
        ({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "7"},
         LaunchInfo(1, 4, 0, 2, 1, "here", 7, "srun")),
        # another step of the job and another job on the node use other ports
        ({**SRUN, "SLURM_STEP_ID": "1"}, LaunchInfo(1, 4, 0, 2, 1, "gpu003", 16017, "srun")),
        ({**SRUN, "SLURM_JOB_ID": "18"}, LaunchInfo(1, 4, 0, 2, 1, "gpu003", 15018, "srun")),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_NUM_NODES": "1"},
         LaunchInfo(1, 4, 0, 4, 1, "127.0.0.1", 15017, "srun")),
        # the shell that salloc opens on a node of the job is a step of one task
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, None),
        ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2"}, None),  # sbatch without srun
        (OPERATOR, LaunchInfo(1, 2, 0, 1, 1, "pod-0", 23456, "environment")),
        ({**OPERATOR, "WORLD_SIZE": "1", "RANK": "0"}, None),
    ],
)  # fmt: skip
def test_detect_launch_environment_returns_launch_info(
    variables: dict[str, str], expected: LaunchInfo | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detect_launch_with(monkeypatch, variables) == expected
    assert is_nonzero_rank() == (expected is not None and expected.rank > 0)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-007,12],login", "gpu003"),
        ("gpu[7,9-12]", "gpu7"),
        ("rack[1-2]n[3-4]-x,foo", "rack1n3-x"),
        ("a-b,c", "a-b"),
    ],
)
def test_detect_launch_slurm_node_list_takes_first_node(
    hosts: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = detect_launch_with(monkeypatch, {**SRUN, "SLURM_STEP_NODELIST": hosts})
    assert launch is not None
    assert launch.master_addr == first


def test_detect_launch_srun_uneven_tasks_raises_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1,1"}
    with pytest.raises(ConfigError, match=r"2, 1, 1 .* 3 .*--ntasks-per-node=1 "):
        detect_launch_with(monkeypatch, uneven)
    assert detect_rank() == 1, "the other ranks need not report the error"


def test_detect_launch_torchrun_uneven_processes_raises_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=5 .*LOCAL_WORLD_SIZE=2.*--nproc-per-node"):
        detect_launch_with(monkeypatch, {**TORCHRUN, "WORLD_SIZE": "5"})


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_detect_launch_missing_variable_raises_config_error(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {name: value for name, value in OPERATOR.items() if name != missing}
    with pytest.raises(ConfigError, match=f"{missing} .*WORLD_SIZE"):
        detect_launch_with(monkeypatch, variables)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "2"}, r"^RANK=2 .*WORLD_SIZE=2"),
        ({"RANK": "-1"}, "^RANK=-1 .*WORLD_SIZE=2"),
        ({"WORLD_SIZE": "x"}, "RANK=0, WORLD_SIZE=x, MASTER_PORT=7"),
    ],
)
def test_detect_launch_invalid_number_raises_config_error(
    wrong: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "7"}
    for name, value in {**variables, **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        detect_launch()

"""Which process of a run this is, from what torchrun, srun or an operator has set."""

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
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_RANK", "MASTER_", "SLURM_", "TORCHELASTIC_")
    for name in os.environ:
        if name.startswith(names):
            monkeypatch.delenv(name)


def started_by(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> LaunchInfo | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return detect_launch()


OF_TORCHRUN = LaunchInfo(3, 4, 1, 2, 1, "n1", 29500, "torchrun")
OF_SRUN = LaunchInfo(1, 4, 0, 2, 1, "gpu003", 15017, "srun")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (TORCHRUN, OF_TORCHRUN),
        ({**SRUN, **TORCHRUN}, OF_TORCHRUN),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"},
         LaunchInfo(0, 1, 1, 1, 1, "n1", 29500, "torchrun")),
        (SRUN, OF_SRUN),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, OF_SRUN),
        ({**SRUN, "MASTER_ADDR": "here", "MASTER_PORT": "7"},
         LaunchInfo(1, 4, 0, 2, 1, "here", 7, "srun")),
        # another step of the job, another job beside it: they must not meet
        ({**SRUN, "SLURM_STEP_ID": "1"}, LaunchInfo(1, 4, 0, 2, 1, "gpu003", 16017, "srun")),
        ({**SRUN, "SLURM_JOB_ID": "18"}, LaunchInfo(1, 4, 0, 2, 1, "gpu003", 15018, "srun")),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_NUM_NODES": "1"},
         LaunchInfo(1, 4, 0, 4, 1, "127.0.0.1", 15017, "srun")),
        # the shell that salloc opens on a machine of the job is a step of one task
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, None),
        ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2"}, None),  # sbatch without srun
        (OPERATOR, LaunchInfo(1, 2, 0, 1, 1, "pod-0", 23456, "environment")),
        ({**OPERATOR, "WORLD_SIZE": "1", "RANK": "0"}, None),
    ],
)  # fmt: skip
def test_who_started_this_process(
    variables: dict[str, str], expected: LaunchInfo | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = started_by(monkeypatch, variables)
    assert found == expected
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
def test_the_first_machine_of_slurms_list(
    hosts: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = started_by(monkeypatch, {**SRUN, "SLURM_STEP_NODELIST": hosts})
    assert launch is not None
    assert launch.master_addr == first


def test_machines_with_different_numbers_of_tasks_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1,1"}
    with pytest.raises(ConfigError, match=r"2, 1, 1 tasks on the 3 .*--ntasks-per-node=1 "):
        started_by(monkeypatch, uneven)
    assert detect_rank() == 1, "one rank says it, and the others need not"


def test_a_different_number_on_another_machine_is_refused_under_torchrun_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="5 processes with 2 on this machine"):
        started_by(monkeypatch, {**TORCHRUN, "WORLD_SIZE": "5"})


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_variable_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: value for name, value in OPERATOR.items() if name != missing}
    with pytest.raises(ConfigError, match=f"{missing} is not set"):
        started_by(monkeypatch, some)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "2"}, r"^RANK=2 in the environment, but WORLD_SIZE=2 has the ranks 0 to 1\."),
        ({"RANK": "-1"}, "^RANK=-1 in the environment"),
        ({"WORLD_SIZE": "x"}, r"is no number: RANK=0, WORLD_SIZE=x, .*or unset them"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(
    wrong: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "7"}
    for name, value in {**two, **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        detect_launch()

"""A launcher is found by its environment; failed processes are told of."""

import os
import time
from pathlib import Path

import pytest

from finetune.errors import TrainingError
from finetune.training.launch import Launch, other_ranks, outer_launch

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "abc",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch(3, 4, "abc-0-29500")),
        ({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}, Launch(3, 4, "abc-2-29500")),
        (SRUN, Launch(1, 2, "17-0-0")),
        ({**SRUN, "SLURM_RESTART_COUNT": "1"}, Launch(1, 2, "17-0-1")),
        ({**SRUN, **TORCHRUN}, Launch(3, 4, "abc-0-29500")),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2"}, None),  # sbatch without srun
    ],
)
def test_who_started_this_process(
    variables: dict[str, str], expected: Launch | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert outer_launch() == expected


def test_none_others_change_nothing(tmp_path: Path) -> None:
    before = dict(os.environ)
    with other_ranks(tmp_path, count=0):
        assert dict(os.environ) == before


def test_an_error_here_ends_the_others_and_leaves_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "7")
    before = dict(os.environ)
    start = time.monotonic()
    seen = {}
    with pytest.raises(ZeroDivisionError), other_ranks(tmp_path, count=2):  # noqa: PT012
        seen = dict(os.environ)
        raise ZeroDivisionError
    assert (seen["LOCAL_RANK"], seen["MASTER_ADDR"]) == ("0", "127.0.0.1")
    assert time.monotonic() - start < 5
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_failed_process_is_an_error_although_this_one_ended_well(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"codes \[5\]"), other_ranks(tmp_path, count=1):
        pass

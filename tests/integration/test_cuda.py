"""Runs on a GPU: bit-identical resume in every precision, and NCCL with a stop in validation."""

import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.fault_runs import write_workspace
from tests.support.processes import STOPPED_AND_RESUMED, run_on_ranks, train_with_stop_in_validation
from tests.support.runs import (
    assert_same_bits,
    build_command,
    build_environment,
    drop_times,
    load_weights,
    read_rows,
    run_finetune,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

ON_GPU = ("trainer.accelerator=cuda", "trainer.deterministic=true", "--wandb", "off")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights and the config."""
    return write_workspace(tmp_path_factory.mktemp("cuda"))


def build_fit_args(run: Path, *more: str) -> list[str]:
    return ["fit", "photos", "--config", "config.yaml", "--output", str(run), *ON_GPU, *more]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_run_on_gpu_stopped_and_resumed_is_bit_identical(
    precision: str, place: Path, tmp_path: Path
) -> None:
    more = ("--precision", precision)
    expected, run = tmp_path / "expected", tmp_path / "run"
    process = run_finetune(place, *build_fit_args(expected, *more))
    assert process.returncode == 0, process.stderr
    with subprocess.Popen(
        build_command(*build_fit_args(run, *more)),
        cwd=place,
        env=build_environment(place),
        stdout=subprocess.PIPE,
        text=True,
    ) as stopped:
        assert stopped.stdout is not None
        for line in stopped.stdout:
            if line.split()[:1] == ["2"]:
                stopped.send_signal(signal.SIGTERM)
                break
        stopped.stdout.read()
    assert stopped.returncode == 85
    resumed = run_finetune(place, *build_fit_args(run, *more))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_bits(load_weights(run), load_weights(expected))
    for row, other in zip(read_rows(run), read_rows(expected), strict=True):
        assert drop_times(row) == drop_times(other)


def test_nccl_single_process_stopped_in_validation_resumes(place: Path, tmp_path: Path) -> None:
    (result,) = run_on_ranks(
        1, train_with_stop_in_validation, place / "photos", tmp_path, "nccl", "cuda"
    )
    assert result == STOPPED_AND_RESUMED

"""On a GPU: a run that was asked to stop goes on to the same bits, and NCCL opens and closes."""

import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.integration.test_faults import write_place
from tests.support.processes import FINISHED_AFTER_A_STOP, on_ranks, stopped_in_validation
from tests.support.runs import assert_same_bits, command, environment, finetune, rows, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

ON_GPU = ("trainer.accelerator=cuda", "trainer.deterministic=true", "--wandb", "off")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights and the config."""
    return write_place(tmp_path_factory.mktemp("cuda"))


def words(place: Path, run: Path, *more: str) -> list[str]:
    return ["fit", "photos", "--config", "config.yaml", "--output", str(run), *ON_GPU, *more]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    precision: str, place: Path, tmp_path: Path
) -> None:
    more = ("--precision", precision)
    whole, run = tmp_path / "whole", tmp_path / "run"
    ended = finetune(place, *words(place, whole, *more))
    assert ended.returncode == 0, ended.stderr
    with subprocess.Popen(
        command(*words(place, run, *more)),
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:1] == ["2"]:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
    assert process.returncode == 85
    again = finetune(place, *words(place, run, *more))
    assert again.returncode == 0, again.stderr
    assert_same_bits(weights(run), weights(whole))
    for row, other in zip(rows(run), rows(whole), strict=True):
        assert {**row, "seconds": ""} == {**other, "seconds": ""}


def test_nccl_with_one_process_that_is_stopped_in_its_validation(
    place: Path, tmp_path: Path
) -> None:
    (told,) = on_ranks(1, stopped_in_validation, place / "photos", tmp_path, "nccl", "cuda")
    assert told == FINISHED_AFTER_A_STOP

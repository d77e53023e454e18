"""Killed at random moments, again and again, a run ends as if nobody had touched it.

Each start is a process of its own that runs the same command, and is ended by a real signal.
"""

import os
import random
import re
import signal
import sys
import time
from contextlib import suppress
from itertools import product
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

import finetune.__main__ as command_line
from finetune.distributed import signals
from tests.support.processes import context, joined_by, started
from tests.support.runs import (
    assert_same_bits,
    checkpoint,
    rows,
    weights,
    write_photos,
    write_weights,
)
from tests.support.wandb_file import read_offline_runs

CONFIG = """
data: {image_size: 32, num_workers: 0, cache: "on"}
model: {backbone: test_resnet, weights: weights.pth, batch_norm: train, drop_rate: 0.3}
unfreeze: {name: gradual, params: {start: 1, every: 2, step: 0.5}}
imbalance: {strategy: weighted}
augment: {name: medium}
optim: {name: adamw, lr: 0.01, backbone_lr_scale: 0.5, layer_decay: 0.9}
trainer: {epochs: 6, batch_size: 4, accumulate: 2, precision: 32-true, accelerator: cpu,
          early_stopping: 4, collective_timeout_seconds: 30}
tracking: {wandb: offline}
checkpoint: {every_minutes: 0.002}
resume: auto
"""
"""Six steps an epoch; what is saved in mid-epoch is saved every eighth of a second."""

NUM_KILLS, NUM_TERMS = 20, 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights and the config."""
    return write_place(tmp_path_factory.mktemp("faults"))


def write_place(folder: Path) -> Path:
    """Fill a folder with photos, weights and the config."""
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def one_start(place: str, run: str, log: str, devices: int, listens: Event) -> None:
    """Run the command in this process, which a test may end, and exit with its code."""
    import torch

    torch.set_num_threads(1)
    os.setsid()
    os.chdir(place)
    with Path(log).open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    os.environ["FINETUNE_CACHE"] = f"{run}-cache"
    sys.argv = ["finetune", "fit", "photos", "--config", "config.yaml", "--output", run]
    # alone without a probe, which no epoch beats here: the best epoch changes, too
    alone = ["probe.enabled=off"]
    sys.argv += (
        alone if devices == 1 else ["--devices", str(devices), "trainer.accumulate_grad_batches=1"]
    )
    signals.install_handlers()  # the first thing that main() does; from here on nothing may be lost
    listens.set()
    command_line.main()


def run_once(
    place: Path, run: Path, *, signum: int = 0, after: float = 0.0, devices: int = 1, rank: int = 0
) -> tuple[int, float]:
    """Start the run, send a rank that there is a signal after some seconds; return how it ended.

    Returns:
        Its exit code, and its seconds from the moment that it listens to signals.
    """
    listens = context().Event()
    with started(one_start, str(place), str(run), f"{run}.log", devices, listens) as process:
        assert listens.wait(60)
        start = time.monotonic()
        if signum:
            while rank and process.is_alive() and len(joined_by(process.pid)) < rank:
                process.join(0.01)
            process.join(after)
            if process.is_alive():
                with suppress(ProcessLookupError, IndexError):
                    os.kill([process.pid, *joined_by(process.pid)][rank], signum)
        process.join(120)
        assert process.exitcode is not None, Path(f"{run}.log").read_text()[-3000:]
        return process.exitcode, time.monotonic() - start


def history(run: Path) -> dict[tuple[str, int], Any]:
    """Return what W&B got, joined by step over all parts of the run; the last value wins."""
    joined = {}
    for part in read_offline_runs(run):
        for row in part.history:
            for name, value in row.items():
                if name.startswith(("train/", "val/", "lr/")):
                    joined[name, int(row["trainer/global_step"])] = value
    return joined


def files(run: Path) -> list[str]:
    inside = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return sorted(name for name in inside if not name.startswith("wandb/"))


def assert_same_end(run: Path, expected: Path) -> None:
    """Fail unless both runs ended alike, to the last bit, and left the same files."""
    for name in ("last", "best"):
        one, other = checkpoint(run, name), checkpoint(expected, name)
        assert_same_bits(one["state_dict"], other["state_dict"])
        assert one.keys() == other.keys()
        if "epoch" not in one:  # no epoch has beaten the probe
            continue
        assert one["epoch"] == other["epoch"]
        assert one["global_step"] == other["global_step"]
        found, wanted = one["optimizer_states"][0]["state"], other["optimizer_states"][0]["state"]
        assert found.keys() == wanted.keys()
        for index, state in wanted.items():
            assert_same_bits(found[index], state)
    for row, other_row in zip(rows(run), rows(expected), strict=True):
        assert {**row, "seconds": ""} == {**other_row, "seconds": ""}
    assert history(run) == history(expected)
    assert files(run) == files(expected)
    assert (run / "bundle" / "model.safetensors").read_bytes() == (
        expected / "bundle" / "model.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> tuple[Path, float]:
    """Return a run that nobody stopped, and its seconds."""
    run = place / "uninterrupted"
    assert run_once(place, place / "warm-up")[0] == 0
    code, seconds = run_once(place, run)
    assert code == 0, Path(f"{run}.log").read_text()[-3000:]
    assert len(rows(run)) >= 5, "early stopping leaves some epochs to break off"
    return run, seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "times", "code"),
    [(signal.SIGKILL, NUM_KILLS, -signal.SIGKILL), (signal.SIGTERM, NUM_TERMS, 85)],
    ids=["killed", "asked to stop"],
)
def test_a_run_that_is_ended_at_random_moments_ends_as_if_nobody_had(
    signum: int, times: int, code: int, place: Path, uninterrupted: tuple[Path, float]
) -> None:
    expected, seconds = uninterrupted
    run = place / f"ended-by-{signum}"
    moments = random.Random(signum)
    ended = 0
    starts = 0
    while ended < times:
        starts += 1
        assert starts < 5 * times, "the run never comes to its end"
        found, _ = run_once(place, run, signum=signum, after=moments.uniform(0, seconds))
        if found == 0:  # it was quicker: begin anew with what is left of the signals
            assert_same_end(run, expected)
            run = run.with_name(f"{run.name}+")
        else:
            assert found == code, Path(f"{run}.log").read_text()[-3000:]
            ended += 1
    assert run_once(place, run)[0] == 0, Path(f"{run}.log").read_text()[-3000:]
    assert_same_end(run, expected)
    assert "Traceback" not in Path(f"{run}.log").read_text()


@pytest.mark.slow
def test_a_run_is_saved_in_mid_epoch_and_goes_on_from_there(
    place: Path, uninterrupted: tuple[Path, float]
) -> None:
    expected, seconds = uninterrupted
    run = place / "in-mid-epoch"
    moments = random.Random(5)
    steps = 0
    for _ in range(24):
        run_once(place, run, signum=signal.SIGUSR1, after=moments.uniform(0.3, 1.0) * seconds)
        if (run / ".done").exists():  # it was quicker: begin anew
            run = run.with_name(f"{run.name}+")
        elif (run / "checkpoints" / "last.ckpt").is_file():
            steps = checkpoint(run)["position"]["steps"]
        if steps:
            break
    assert steps, "no stop fell into the middle of an epoch"
    assert run_once(place, run)[0] == 0
    assert_same_end(run, expected)
    assert weights(run).keys() == weights(expected).keys()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_two_processes_of_which_any_is_ended_at_random_moments_end_as_if_nobody_had(
    place: Path,
) -> None:
    expected, run = place / "two-uninterrupted", place / "two-ended"
    code, seconds = run_once(place, expected, devices=2)
    assert code == 0, Path(f"{expected}.log").read_text()[-3000:]
    moments = random.Random(2)
    for signum, rank in [*product((signal.SIGKILL, signal.SIGTERM), (0, 1))] * 3:
        after = moments.uniform(0, seconds if rank == 0 else 0.7 * seconds)
        code, _ = run_once(place, run, signum=signum, after=after, devices=2, rank=rank)
        log = Path(f"{run}.log").read_text()[-3000:]
        if code == 0:  # it was quicker
            assert_same_end(run, expected)
            run = run.with_name(f"{run.name}+")
        elif signum == signal.SIGTERM:
            assert code == 85, log
        elif rank == 0:
            assert code == -signal.SIGKILL, log
        else:
            assert code == 7, log
            assert re.search("Another process of the run ended|ended with codes -9", log), log
    assert run_once(place, run, devices=2)[0] == 0, Path(f"{run}.log").read_text()[-3000:]
    assert_same_end(run, expected)

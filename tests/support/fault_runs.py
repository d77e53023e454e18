"""Runs that end by a signal, in processes of their own, and the comparison of their results."""

import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import finetune.__main__ as command_line
from finetune.distributed import signals
from tests.support import fault_points
from tests.support.helpers import ROOT
from tests.support.processes import find_worker_pids, get_fork_context, start_process
from tests.support.runs import (
    assert_same_bits,
    drop_times,
    load_checkpoint,
    read_rows,
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
trainer: {epochs: 6, batch_size: 4, accumulate_grad_batches: 2, precision: 32-true,
          accelerator: cpu, early_stopping_patience: 4, collective_timeout_seconds: 60}
tracking: {wandb: offline}
checkpoint: {every_minutes: 0.00001}
resume: auto
"""
"""Six steps an epoch, with a checkpoint after each of them."""

WITHOUT_PROBE = "probe.enabled=off"
"""No epoch beats the probe on these images: without it the best epoch changes during the run."""


def write_workspace(folder: Path) -> Path:
    """Write photos, weights and the config into a folder."""
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def run_fit(
    workspace: Path,
    run: Path,
    *args: str,
    fault: tuple[str, int, int] | None = None,
    random_signal: tuple[int, float, int] | None = None,
) -> tuple[int, float]:
    """Start or resume a run in a process of its own, and wait for its end.

    Args:
        workspace: Folder of ``write_workspace``.
        run: Run folder; its console output goes to the file ``<run>.log``.
        args: Further arguments of ``fit``.
        fault: Name of a point of ``fault_points`` or "import", signal and rank.
        random_signal: Signal, seconds until it is sent, and rank.

    Returns:
        Exit code, and seconds since the process has installed its signal handlers.
    """
    is_ready = get_fork_context().Event()
    variables = {} if fault is None else {fault_points.VARIABLE: ",".join(map(str, fault))}
    with start_process(_run_command, workspace, run, args, variables, is_ready) as process:
        assert is_ready.wait(60)
        start = time.monotonic()
        if random_signal is not None:
            signum, seconds, rank = random_signal
            while rank and process.is_alive() and len(find_worker_pids(process.pid)) < rank:
                process.join(0.01)
            process.join(seconds)
            if process.is_alive():
                with suppress(ProcessLookupError, IndexError):
                    os.kill([process.pid, *find_worker_pids(process.pid)][rank], signum)
        process.join(120)
        assert process.exitcode is not None, read_log(run)
        return process.exitcode, time.monotonic() - start


def read_log(run: Path) -> str:
    """Return the end of the console output of all parts of a run."""
    return Path(f"{run}.log").read_text()[-3000:]


def _run_command(
    workspace: Path, run: Path, args: tuple[str, ...], variables: dict[str, str], is_ready: Event
) -> None:
    """Run ``finetune fit`` in this process and exit with its code."""
    import torch

    torch.set_num_threads(1)
    os.setsid()
    os.chdir(workspace)
    with Path(f"{run}.log").open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    os.environ |= {"FINETUNE_CACHE": f"{run}-cache", "PYTHONPATH": str(ROOT), **variables}
    options = ("--config", "config.yaml", "--output", str(run))
    schedule = f"lr_schedule.name={fault_points.__name__}:linear"
    sys.argv = ["finetune", "fit", "photos", *options, schedule, *args]
    signals.install_handlers(
        command_line.report_early_stop
    )  # main() does this first; no signal may be lost from here on
    is_ready.set()
    point, number, _ = variables.get(fault_points.VARIABLE, ",0,0").split(",")
    if point == "import":
        os.kill(os.getpid(), int(number))
    # imported before the environment was set; worker processes import it after that
    fault_points.install_from_environment()
    command_line.main()


def read_history(run: Path) -> dict[tuple[str, int], Any]:
    """Return the W&B metrics by name and step over all parts of a run; the last value wins."""
    history = {}
    for part in read_offline_runs(run):
        for row in part.history:
            for name, value in row.items():
                if name.startswith(("train/", "val/", "lr/")):
                    history[name, int(row["trainer/global_step"])] = value
    return history


def list_files(run: Path) -> list[str]:
    """Return the relative paths of a run's files, without those of W&B."""
    paths = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.startswith("wandb/"))


def assert_same_end(run: Path, expected: Path) -> None:
    """Check that two runs ended bit-identically and left the same files."""
    for name in ("last", "best"):
        one, other = load_checkpoint(run, name), load_checkpoint(expected, name)
        assert_same_bits(one["state_dict"], other["state_dict"])
        assert one.keys() == other.keys()
        if "epoch" not in one:  # no epoch has beaten the probe
            continue
        assert one["epoch"] == other["epoch"]
        assert one["global_step"] == other["global_step"]
        states = one["optimizer_states"][0]["state"]
        expected_states = other["optimizer_states"][0]["state"]
        assert states.keys() == expected_states.keys()
        for index, state in expected_states.items():
            assert_same_bits(states[index], state)
    assert list(map(drop_times, read_rows(run))) == list(map(drop_times, read_rows(expected)))
    assert read_history(run) == read_history(expected)
    assert list_files(run) == list_files(expected)
    bundles = [folder / "bundle" / "model.safetensors" for folder in (run, expected)]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()

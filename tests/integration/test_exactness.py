"""Exactness of whole runs: killed, stopped or distributed ones end with the same weights."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import finetune as api
from finetune.bundle.model_card import read_card_json
from finetune.cli.main import run as run_command
from tests.support.runs import (
    GRADUAL_CONFIG,
    NUM_EPOCHS,
    STEPS_PER_EPOCH,
    assert_close_rows,
    assert_same_bits,
    build_command,
    build_environment,
    compute_largest_difference,
    drop_times,
    load_checkpoint,
    load_weights,
    read_rows,
    run_finetune,
    start_finetune,
    write_photos,
    write_weights,
)
from tests.support.wandb_file import read_offline_runs

pytestmark = pytest.mark.runs

# a custom learning-rate schedule that ends the process at a step: STOP=<signal or raise>@<step>
STOPPER = """
import os, signal

def stopping(progress, *, final_factor):
    action, _, step = os.environ.get("STOP", "").partition("@")
    rank = os.environ.get("LOCAL_RANK", "0")
    if action and round(progress * STEPS) == int(step) and rank == os.environ.get("STOP_RANK", "0"):
        if action == "raise":
            raise RuntimeError("stopped by the test")
        os.kill(os.getpid(), getattr(signal, action))
    return 1 - (1 - final_factor) * progress
""".replace("STEPS", str(NUM_EPOCHS * STEPS_PER_EPOCH))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights, a config and a custom schedule."""
    folder = tmp_path_factory.mktemp("workspace")
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "stopper.py").write_text(STOPPER)
    (folder / "config.yaml").write_text(GRADUAL_CONFIG)
    return folder


@pytest.fixture(autouse=True)
def _import_custom_schedule(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(workspace)
    monkeypatch.delitem(sys.modules, "stopper", raising=False)  # that of another test
    monkeypatch.delenv("STOP", raising=False)


def fit_args(workspace: Path, output: Path, *more: object) -> list[str]:
    """Return the arguments of ``fit`` with ``GRADUAL_CONFIG``."""
    options = ("--config", workspace / "config.yaml", "--weights", workspace / "weights.pth")
    return ["fit", *map(str, (workspace / "photos", *options, "--output", output, *more))]


def run_in_process(*args: object) -> None:
    """Run a command in this process and check that it succeeds."""
    assert run_command([str(argument) for argument in args]) == 0


@pytest.fixture(scope="module")
def uninterrupted(workspace: Path) -> dict[tuple[str, ...], Path]:
    """Return a cache of uninterrupted runs by their further arguments, for ``get_reference``."""
    del workspace
    return {}


def get_reference(workspace: Path, runs: dict[tuple[str, ...], Path], *more: str) -> Path:
    """Return the uninterrupted run with some further arguments."""
    if more not in runs:
        output = workspace / f"uninterrupted-{len(runs)}"
        run_in_process(*fit_args(workspace, output, *more))
        runs[more] = output
    return runs[more]


def assert_same_run(run: Path, expected: Path) -> None:
    """Check that two runs have bit-identical weights, the same best epoch and the same metrics."""
    for name in ("last", "best"):
        assert load_checkpoint(run, name)["epoch"] == load_checkpoint(expected, name)["epoch"]
        assert_same_bits(load_weights(run, name), load_weights(expected, name))
    run_rows = read_rows(run)
    assert [row["epoch"] for row in run_rows] == [str(epoch + 1) for epoch in range(NUM_EPOCHS)]
    for row, other in zip(run_rows, read_rows(expected), strict=True):
        assert drop_times(row) == drop_times(other)


# steps 7 and 8 are in the first epoch of the second phase, after a checkpoint of the first phase;
# step 11 is in the second epoch of that phase
STOPS = {"after a phase border": 7, "inside a phase": 11}


def test_killed_run_resumed_ends_bit_identical(
    workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "run"
    process = run_finetune(workspace, *fit_args(workspace, run), extra={"STOP": "SIGKILL@11"})
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert load_checkpoint(run)["epoch"] == 2
    assert len(read_rows(run)) == 3
    run_in_process("fit", "--resume", run)
    expected = get_reference(workspace, uninterrupted)
    assert_same_run(run, expected)
    assert load_checkpoint(run)["global_step"] == NUM_EPOCHS * STEPS_PER_EPOCH


@pytest.mark.parametrize("step", STOPS.values(), ids=STOPS.keys())
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="sgd"),
        pytest.param(
            ("optim.name=adamw", "optim.lr=0.01", "model.drop_rate=0.5", "model.batch_norm=train"),
            id="adamw, dropout, live BatchNorm",
        ),
        pytest.param(
            ("data.num_workers=2", "--imbalance", "weighted"),
            id="two workers, weighted",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_failed_run_resumed_ends_bit_identical(
    more: tuple[str, ...],
    step: int,
    workspace: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("STOP", f"raise@{step}")
    assert run_command(fit_args(workspace, run, *more)) == 1
    monkeypatch.delenv("STOP")
    assert load_checkpoint(run)["epoch"] == step // STEPS_PER_EPOCH - 1
    run_in_process("fit", "--resume", run)
    assert_same_run(run, get_reference(workspace, uninterrupted, *more))


def test_run_with_deleted_pixel_cache_resumed_ends_bit_identical(
    workspace: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # at image size 16 the images of 32 pixels are cached with a shorter side of 23
    more = ("data.cache=on", "data.image_size=16")
    expected = get_reference(workspace, uninterrupted, *more)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STOP", "raise@11")
    run = tmp_path / "run"
    assert run_command(fit_args(workspace, run, *more)) == 1
    monkeypatch.delenv("STOP")
    (pixel_store,) = (tmp_path / "cache" / "pixels").glob("short-23-*")
    shutil.rmtree(tmp_path / "cache")
    run_in_process("fit", "--resume", run)
    assert (pixel_store / "arrays.bin").stat().st_size == 24 * 23 * 23 * 3
    assert_same_run(run, expected)


def test_run_with_other_seed_ends_with_other_weights(
    workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    expected = load_weights(get_reference(workspace, uninterrupted))
    run_in_process(*fit_args(workspace, tmp_path / "other", "--seed", 1))
    assert compute_largest_difference(load_weights(tmp_path / "other"), expected) > 1e-2


def assert_close_runs(run: Path, expected: Path) -> None:
    """Check that weights and metrics agree up to the rounding of sums in another order."""
    assert compute_largest_difference(load_weights(run), load_weights(expected)) <= 1e-6
    for row, other in zip(read_rows(run), read_rows(expected), strict=True):
        assert_close_rows(row, other)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_end_like_one(
    accumulate: int, workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    more = (f"trainer.accumulate_grad_batches={accumulate}", "--devices", "2")
    process = run_finetune(workspace, *fit_args(workspace, tmp_path / "two", *more))
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert_close_runs(tmp_path / "two", get_reference(workspace, uninterrupted))


def test_accumulated_micro_batches_end_like_whole_batches(
    workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run_in_process(*fit_args(workspace, tmp_path / "run", "trainer.accumulate_grad_batches=2"))
    assert_close_runs(tmp_path / "run", get_reference(workspace, uninterrupted))


def find_processes(run: Path) -> list[str]:
    """Return the command lines of the processes that work on a run."""
    command_lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # the process has ended
        if "finetune" in line and str(run) in line:
            command_lines.append(line)
    return command_lines


def assert_no_process_left(run: Path) -> None:
    end = time.monotonic() + 30
    while command_lines := find_processes(run):
        assert time.monotonic() < end, command_lines
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_rank_0_killed_run_resumed_by_one_process_ends_like_reference(
    workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "two"
    process = run_finetune(
        workspace, *fit_args(workspace, run, "--devices", 2), extra={"STOP": "SIGKILL@11"}
    )
    assert process.returncode == -signal.SIGKILL
    assert_no_process_left(run)
    run_in_process("fit", "--resume", run, "--devices", 1)
    assert_close_runs(run, get_reference(workspace, uninterrupted))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_rank_1_killed_exits_7_and_resumed_by_two_processes_ends_like_reference(
    workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "two"
    extra = {"STOP": "SIGKILL@7", "STOP_RANK": "1"}
    process = run_finetune(workspace, *fit_args(workspace, run, "--devices", 2), extra=extra)
    message = " ".join(process.stderr.split())
    assert process.returncode == 7, message
    assert message.startswith("error: Another process of the run ended")
    assert "--resume" in message
    assert_no_process_left(run)
    resumed = run_finetune(workspace, "fit", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert_close_runs(run, get_reference(workspace, uninterrupted))


@pytest.mark.slow
def test_sigterm_on_one_of_two_ranks_resumed_ends_bit_identical(
    workspace: Path, tmp_path: Path
) -> None:
    more = ("trainer.batch_size=4", "--devices", 2)
    expected, run, single = tmp_path / "expected", tmp_path / "run", tmp_path / "single"
    assert run_finetune(workspace, *fit_args(workspace, expected, *more)).returncode == 0

    def stop(output: Path, *others: object) -> None:
        # after the fourth of six steps of the fourth epoch, on rank 1 alone
        extra = {"STOP": "SIGTERM@11", "STOP_RANK": "1"}
        process = run_finetune(workspace, *fit_args(workspace, output, *more, *others), extra=extra)
        assert process.returncode == 85, process.stderr
        position = load_checkpoint(output)["position"]
        assert position["epochs"] == 3
        assert 0 < position["steps"] < 6

    stop(run)
    assert len(load_checkpoint(run)["position"]["loss_sums"]) == 2
    resumed = run_finetune(workspace, "fit", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, expected)
    # a single process resumes the run of two, to the same result up to rounding
    stop(single)
    assert run_finetune(workspace, "fit", "--resume", single, "--devices", 1).returncode == 0
    assert_close_runs(single, expected)


@pytest.mark.slow
def test_mid_epoch_resume_with_other_micro_batches_ends_like_reference(
    workspace: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "run"
    more = ("trainer.accumulate_grad_batches=2", "trainer.batch_size=4")
    process = run_finetune(
        workspace, *fit_args(workspace, run, *more), extra={"STOP": "SIGTERM@11"}
    )
    assert process.returncode == 85, process.stderr
    assert load_checkpoint(run)["position"]["steps"] == 4
    # four processes with one image each
    resumed = run_finetune(
        workspace, "fit", "--resume", run, "--devices", 4, "trainer.accumulate_grad_batches=1"
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_close_runs(run, get_reference(workspace, uninterrupted, "trainer.batch_size=4"))


# a custom loss that changes the weights of rank 1 alone
DIVERGING_LOSS = """
import os, torch

def diverge(logits, target):
    import gc
    if os.environ.get("LOCAL_RANK") == "1" and os.environ.get("DIVERGE"):
        for item in gc.get_objects():
            if isinstance(item, torch.nn.Linear):
                item.bias.data += 0.1
    return torch.nn.functional.cross_entropy(logits, target)
"""


@pytest.mark.slow
def test_diverged_ranks_exit_7_without_checkpoint(workspace: Path, tmp_path: Path) -> None:
    (workspace / "diverging.py").write_text(DIVERGING_LOSS)
    run = tmp_path / "run"
    more = ("--devices", 2, "loss.name=diverging:diverge", "loss.label_smoothing=0")
    args = fit_args(workspace, run, "resume=auto", "lr_schedule.name=linear", *more)
    for _ in range(2):  # the second time like a scheduler that restarts the run
        process = run_finetune(workspace, *args, extra={"DIVERGE": "1"})
        assert process.returncode == 7, process.stderr
        assert "classifier.network.fc.bias" in " ".join(process.stderr.split())
        assert not (run / "checkpoints" / "last.ckpt").exists()
    assert run_finetune(workspace, *args).returncode == 0


# sends a signal to the process that imports torch
SIGNAL_AT_IMPORT = """
import os, signal, sys

class SignalFinder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGUSR1)

sys.meta_path.insert(0, SignalFinder())
"""


@pytest.mark.slow
def test_signal_during_imports_exits_85(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_AT_IMPORT)
    process = run_finetune(
        tmp_path, *fit_args(workspace, tmp_path / "run", "lr_schedule.name=linear")
    )
    assert process.returncode == 85, process.stderr
    assert "SIGUSR1" in process.stderr


@pytest.mark.slow
def test_signal_with_requeue_file_writes_it_and_exits_0(workspace: Path, tmp_path: Path) -> None:
    marker = tmp_path / "requeue"
    extra = {"STOP": "SIGUSR1@11", "FINETUNE_REQUEUE_FILE": str(marker)}
    assert (
        run_finetune(workspace, *fit_args(workspace, tmp_path / "run"), extra=extra).returncode == 0
    )
    assert marker.read_text() == "SIGUSR1\n"
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.slow
def test_closed_terminal_saves_checkpoint_and_exits_85(workspace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = build_command(*fit_args(workspace, run, "trainer.epochs=100000"))
    pid, terminal = pty.fork()
    if pid == 0:  # session leader with a controlling terminal of its own
        os.chdir(workspace)
        os.execve(args[0], args, build_environment(workspace))
    output = ""
    while not re.search(r"\n *3 +\d", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", output)):
        output += os.read(terminal, 4096).decode(errors="replace")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 85
    assert_no_process_left(run)
    position = load_checkpoint(run)["position"]
    assert position["epochs"] >= 3
    resumed = run_finetune(workspace, "fit", "--resume", run, "--epochs", position["epochs"] + 1)
    assert resumed.returncode == 0, resumed.stderr


def interrupt_third_epoch(workspace: Path, output: Path, *more: object) -> tuple[int, str, str]:
    """Start a run, send Ctrl-C after its third epoch, and return exit code, stdout and stderr."""
    long_run = ("trainer.epochs=100000", *more)
    process = start_finetune(
        workspace,
        *fit_args(workspace, output, *long_run),
        stderr=subprocess.PIPE,
        start_new_session=True,  # signals reach the processes that a terminal's would
    )
    with process:
        try:
            assert process.stdout is not None
            lines = ""
            for line in process.stdout:
                lines += line
                if line.split()[:1] == ["3"]:  # its checkpoint may not be written yet
                    break
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, lines + out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("data.num_workers=2",), ("--devices", 2)],
    ids=["one process", "workers", "two processes"],
)
def test_ctrl_c_prints_resume_command_and_exits_130(
    more: tuple[object, ...], workspace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = interrupt_third_epoch(workspace, run, *more)
    assert code == 130, err
    assert f"finetune fit --resume {run}" in out
    assert "Traceback" not in out + err
    assert err.count("error:") <= 1
    num_epochs = load_checkpoint(run)["epoch"] + 1
    assert num_epochs >= 2
    assert not list(run.rglob("*.ckpt.*"))
    assert not (run / "bundle").exists()
    run_in_process("fit", "--resume", run, "--epochs", num_epochs + 1, "--devices", 1)
    assert [row["epoch"] for row in read_rows(run)] == [
        str(epoch + 1) for epoch in range(num_epochs + 1)
    ]
    assert (run / "bundle" / "model.safetensors").is_file()


def test_resume_of_complete_run_changes_nothing_and_more_epochs_extend_it(
    workspace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_in_process(*fit_args(workspace, run, "--epochs", 2))
    times = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    result = api.resume(run)
    assert set(result.metrics) == {"val"}
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()} == times
    run_in_process("fit", "--resume", run, "--epochs", 3)
    assert load_checkpoint(run)["epoch"] == 2
    assert [row["epoch"] for row in read_rows(run)] == ["1", "2", "3"]


def get_logged_values(history: list[dict[str, Any]], name: str) -> list[float]:
    """Return the values of a metric by epoch."""
    return [float(row[name]) for row in history if name in row]


@pytest.mark.slow
def test_wandb_offline_resumed_run_continues_same_wandb_run(
    workspace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = fit_args(workspace, run, "--wandb", "offline", "tracking.project=tests")
    process = run_finetune(workspace, *args, extra={"STOP": "SIGINT@11"})
    assert process.returncode == 130, process.stderr
    run_id = (run / "wandb_id.txt").read_text().strip()
    process = run_finetune(workspace, "fit", "--resume", run)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert (run / "wandb_id.txt").read_text().strip() == run_id

    first, second = read_offline_runs(run)
    assert first.run_id == second.run_id == run_id
    for part in (first, second):
        assert part.config["model.backbone"] == "test_resnet"
        assert part.config["optim.lr"] == 0.2
        assert part.config["trainer.monitor"] == "accuracy"  # resolved, not "auto"
    table = read_rows(run)
    for name in ("val/loss", "val/accuracy", "val/macro_f1", "train/loss", "lr/head", "lr/layer4"):
        expected = [float(row[name]) for row in table]
        parts = (get_logged_values(part.history, name) for part in (first, second))
        assert [*chain(*parts)] == pytest.approx(expected), name
    assert [int(value) for value in get_logged_values(first.history, "epoch")][-1] == 2

    # the final evaluation is part of the second part alone
    assert {one.kind for one in first.artifact_records.values()} == {"dataset"}
    assert not [row for row in first.history if any("confusion" in name for name in row)]
    files = set(second.artifacts[f"model-{run_id}"])
    assert {"model.safetensors", "config.json", "finetune.json"} <= files
    tables = [n for row in second.history for n in row if n.startswith("confusion_matrix/val")]
    assert tables
    assert {"final/val/accuracy", "final/val/accuracy_low"} <= second.summary.keys()
    assert "final/val/balanced_accuracy" in second.summary
    [table_path] = [
        row["per_class/val/path"] for row in second.history if "per_class/val/path" in row
    ]
    [file] = run.glob(f"wandb/offline-run-*/files/{table_path}")
    by_class = json.loads(file.read_text(encoding="utf-8"))
    assert by_class["columns"][:3] == ["class", "train images", "images"]
    stats = read_card_json(run / "bundle")["facts"]["evaluations"]["val"]["per_class"]
    assert [row[0] for row in by_class["data"]] == list(stats)
    assert [row[5] for row in by_class["data"]] == [entry["recall"] for entry in stats.values()]


@pytest.mark.slow
def test_wandb_online_without_key_exits_8(workspace: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    process = run_finetune(
        workspace, *fit_args(workspace, tmp_path / "run", "--wandb", "online"), extra=home
    )
    message = " ".join(process.stderr.split())
    assert process.returncode == 8, message
    assert "wandb login" in message
    assert "--wandb offline" in message
    assert "Traceback" not in message

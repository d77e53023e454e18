"""Whole runs: killed, stopped, shared by two processes, and yet they end with the same weights."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import finetune as api
from finetune.bundle.model_card import read_card_json
from finetune.cli.main import run as run_command
from tests.support.networks import one_thread
from tests.support.runs import (
    GRADUAL_CONFIG,
    NUM_EPOCHS,
    STEPS_PER_EPOCH,
    accept_ctrl_c,
    assert_same_bits,
    checkpoint,
    command,
    environment,
    finetune,
    largest_difference,
    rows,
    weights,
    write_photos,
    write_weights,
)
from tests.support.wandb_file import read_offline_runs

# a learning rate of the user's own that ends the process after some steps, once
STOPPER = """
import os, signal

def stopping(progress, *, final_factor):
    what, _, step = os.environ.get("STOP", "").partition("@")
    rank = os.environ.get("LOCAL_RANK", "0")
    if what and round(progress * STEPS) == int(step) and rank == os.environ.get("STOP_RANK", "0"):
        if what == "raise":
            raise RuntimeError("stopped by the test")
        os.kill(os.getpid(), getattr(signal, what))
    return 1 - (1 - final_factor) * progress
""".replace("STEPS", str(NUM_EPOCHS * STEPS_PER_EPOCH))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights and the user's own code."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos")
    write_weights(folder / "weights.pth")
    (folder / "stopper.py").write_text(STOPPER)
    (folder / "config.yaml").write_text(GRADUAL_CONFIG)
    return folder


@pytest.fixture(autouse=True)
def _own_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "stopper", raising=False)  # another test's, of that name
    monkeypatch.delenv("STOP", raising=False)


def words(place: Path, output: Path, *more: object) -> list[str]:
    """Return the ``fit`` of ``GRADUAL_CONFIG`` with further words."""
    given = ("--config", place / "config.yaml", "--weights", place / "weights.pth")
    return ["fit", *map(str, (place / "photos", *given, "--output", output, *more))]


def run_here(*given: object) -> None:
    """Run a command in this process; it must end well."""
    assert run_command([str(word) for word in given]) == 0


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> dict[tuple[str, ...], Path]:
    """Return the runs that never stopped, by what sets them apart; made when first asked for."""
    del place
    return {}


def reference(place: Path, made: dict[tuple[str, ...], Path], *more: str) -> Path:
    if more not in made:
        output = place / f"uninterrupted-{len(made)}"
        run_here(*words(place, output, *more))
        made[more] = output
    return made[more]


def assert_same_run(run: Path, expected: Path) -> None:
    """Fail unless both ended alike: weights, optimizer, the best epoch and every metric."""
    for name in ("last", "best"):
        assert checkpoint(run, name)["epoch"] == checkpoint(expected, name)["epoch"]
        assert_same_bits(weights(run, name), weights(expected, name))
    found, wanted = rows(run), rows(expected)
    assert [row["epoch"] for row in found] == [str(epoch + 1) for epoch in range(NUM_EPOCHS)]
    for row, other in zip(found, wanted, strict=True):
        assert {**row, "seconds": ""} == {**other, "seconds": ""}


# steps 7 and 8 are in the first epoch of the second phase: its checkpoint is of the phase before;
# step 11 is in that phase's second epoch
STOPS = {"at a border": 7, "inside a phase": 11}


def test_a_killed_run_goes_on_to_the_same_bits(
    place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "run"
    ended = finetune(place, *words(place, run), extra={"STOP": "SIGKILL@11"})
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert checkpoint(run)["epoch"] == 2
    assert len(rows(run)) == 3
    run_here("fit", "--resume", run)
    expected = reference(place, uninterrupted)
    assert_same_run(run, expected)
    assert checkpoint(run)["global_step"] == NUM_EPOCHS * STEPS_PER_EPOCH


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
def test_a_broken_off_run_goes_on_to_the_same_bits(
    more: tuple[str, ...],
    step: int,
    place: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("STOP", f"raise@{step}")
    assert run_command(words(place, run, *more)) == 1
    monkeypatch.delenv("STOP")
    assert checkpoint(run)["epoch"] == step // STEPS_PER_EPOCH - 1
    run_here("fit", "--resume", run)
    assert_same_run(run, reference(place, uninterrupted, *more))


def test_a_run_whose_kept_pixels_were_lost_goes_on_to_the_same_bits(
    place: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # at this size the images of 32 pixels are kept at 23
    more = ("data.cache=on", "data.image_size=16")
    expected = reference(place, uninterrupted, *more)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STOP", "raise@11")
    run = tmp_path / "run"
    assert run_command(words(place, run, *more)) == 1
    monkeypatch.delenv("STOP")
    (shrunk,) = (tmp_path / "cache" / "pixels").glob("short-23-*")
    shutil.rmtree(tmp_path / "cache")
    run_here("fit", "--resume", run)
    assert (shrunk / "arrays.bin").stat().st_size == 24 * 23 * 23 * 3
    assert_same_run(run, expected)


def test_weights_do_move_and_another_seed_ends_elsewhere(
    place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    expected = weights(reference(place, uninterrupted))
    run_here(*words(place, tmp_path / "other", "--seed", 1))
    assert largest_difference(weights(tmp_path / "other"), expected) > 1e-2


def assert_alike(run: Path, expected: Path) -> None:
    """Fail unless weights and metrics agree to what addition in another order costs."""
    assert largest_difference(weights(run), weights(expected)) <= 1e-6
    for row, other in zip(rows(run), rows(expected), strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_end_as_one_does(
    accumulate: int, place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    more = (f"trainer.accumulate_grad_batches={accumulate}", "--devices", "2")
    ended = finetune(place, *words(place, tmp_path / "two", *more))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert_alike(tmp_path / "two", reference(place, uninterrupted))


def test_accumulated_batches_end_as_whole_ones_do(
    place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run_here(*words(place, tmp_path / "run", "trainer.accumulate_grad_batches=2"))
    assert_alike(tmp_path / "run", reference(place, uninterrupted))


def processes_of(run: Path) -> list[str]:
    """Return the command lines of the processes that work on a run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
        if "finetune" in line and str(run) in line:
            found.append(line)
    return found


def assert_no_process_left(run: Path) -> None:
    end = time.monotonic() + 30
    while left := processes_of(run):
        assert time.monotonic() < end, left
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_of_two_processes_the_first_is_killed_and_one_goes_on_alone(
    place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "two"
    ended = finetune(place, *words(place, run, "--devices", 2), extra={"STOP": "SIGKILL@11"})
    assert ended.returncode == -signal.SIGKILL
    assert_no_process_left(run)
    run_here("fit", "--resume", run, "--devices", 1)
    assert_alike(run, reference(place, uninterrupted))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_of_two_processes_the_second_is_killed_and_both_go_on(
    place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "two"
    extra = {"STOP": "SIGKILL@7", "STOP_RANK": "1"}
    ended = finetune(place, *words(place, run, "--devices", 2), extra=extra)
    message = " ".join(ended.stderr.split())
    assert ended.returncode == 7, message
    assert message.startswith("error: Another process of the run ended before its time")
    assert "--resume" in message
    assert_no_process_left(run)
    again = finetune(place, "fit", "--resume", run)
    assert again.returncode == 0, again.stderr
    assert_alike(run, reference(place, uninterrupted))


@pytest.mark.slow
def test_two_processes_of_which_one_is_asked_to_stop_go_on_to_the_same_bits(
    place: Path, tmp_path: Path
) -> None:
    more = ("trainer.batch_size=4", "--devices", 2)
    whole, run, alone = tmp_path / "whole", tmp_path / "run", tmp_path / "alone"
    assert finetune(place, *words(place, whole, *more)).returncode == 0

    def stop(output: Path, *others: object) -> None:
        # after the fourth of six steps of the fourth epoch, which the other process does not hear
        extra = {"STOP": "SIGTERM@11", "STOP_RANK": "1"}
        ended = finetune(place, *words(place, output, *more, *others), extra=extra)
        assert ended.returncode == 85, ended.stderr
        position = checkpoint(output)["position"]
        assert position["epochs"] == 3
        assert 0 < position["steps"] < 6

    stop(run)
    assert len(checkpoint(run)["position"]["loss_sums"]) == 2
    again = finetune(place, "fit", "--resume", run)
    assert again.returncode == 0, again.stderr
    assert_same_run(run, whole)
    # one process goes on where two were stopped, to the same within rounding
    stop(alone)
    assert finetune(place, "fit", "--resume", alone, "--devices", 1).returncode == 0
    assert_alike(alone, whole)


@pytest.mark.slow
def test_a_batch_that_is_cut_into_other_parts_in_mid_epoch_ends_alike(
    place: Path, tmp_path: Path, uninterrupted: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "run"
    more = ("trainer.accumulate_grad_batches=2", "trainer.batch_size=4")
    ended = finetune(place, *words(place, run, *more), extra={"STOP": "SIGTERM@11"})
    assert ended.returncode == 85, ended.stderr
    assert checkpoint(run)["position"]["steps"] == 4
    # four processes, each with one image of the batch
    again = finetune(
        place, "fit", "--resume", run, "--devices", 4, "trainer.accumulate_grad_batches=1"
    )
    assert again.returncode == 0, again.stderr
    assert_alike(run, reference(place, uninterrupted, "trainer.batch_size=4"))


# code of the user's own that makes rank 1 drift
DRIFTER = """
import os, torch

def drifting(logits, target):
    import gc
    if os.environ.get("LOCAL_RANK") == "1" and os.environ.get("DRIFT"):
        for thing in gc.get_objects():
            if isinstance(thing, torch.nn.Linear):
                thing.bias.data += 0.1
    return torch.nn.functional.cross_entropy(logits, target)
"""


@pytest.mark.slow
def test_what_has_drifted_is_not_saved(place: Path, tmp_path: Path) -> None:
    (place / "drifter.py").write_text(DRIFTER)
    run = tmp_path / "run"
    more = ("--devices", 2, "loss.name=drifter:drifting", "loss.label_smoothing=0")
    given = words(place, run, "resume=auto", "lr_schedule.name=linear", *more)
    for _ in range(2):  # also when it is started again, as a scheduler does
        ended = finetune(place, *given, extra={"DRIFT": "1"})
        assert ended.returncode == 7, ended.stderr
        assert "classifier.network.fc.bias" in " ".join(ended.stderr.split())
        assert not (run / "checkpoints" / "last.ckpt").exists()
    assert finetune(place, *given).returncode == 0


@pytest.mark.slow
def test_a_signal_during_the_imports_ends_in_good_order(place: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*words(place, tmp_path / "run")), cwd=place, env=environment(place)
    )
    time.sleep(0.7)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85


@pytest.mark.slow
def test_a_batch_script_that_requeues_is_told_by_a_file(place: Path, tmp_path: Path) -> None:
    marker = tmp_path / "requeue"
    extra = {"STOP": "SIGUSR1@11", "FINETUNE_REQUEUE_FILE": str(marker)}
    assert finetune(place, *words(place, tmp_path / "run"), extra=extra).returncode == 0
    assert marker.read_text() == "SIGUSR1\n"
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.slow
def test_a_terminal_that_is_closed_is_answered_with_a_checkpoint(
    place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    given = command(*words(place, run, "trainer.epochs=100000"))
    pid, terminal = pty.fork()
    if pid == 0:  # the leader of a session of its own, on a terminal of its own
        os.chdir(place)
        os.execve(given[0], given, environment(place))
    shown = ""
    while not re.search(r"\n *3 +\d", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", shown)):
        shown += os.read(terminal, 4096).decode(errors="replace")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 85
    assert_no_process_left(run)
    position = checkpoint(run)["position"]
    assert position["epochs"] >= 3
    again = finetune(place, "fit", "--resume", run, "--epochs", position["epochs"] + 1)
    assert again.returncode == 0, again.stderr


def stopped_by_ctrl_c(place: Path, output: Path, *more: object) -> tuple[int, str, str]:
    """Start a run, press Ctrl-C after its third epoch, and return how it ended."""
    slow = ("trainer.epochs=100000", *more)
    process = subprocess.Popen(
        command(*words(place, output, *slow)),
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_ctrl_c,
        start_new_session=True,  # so that the signal reaches what a terminal would reach
    )
    with process:
        try:
            assert process.stdout is not None
            seen = ""
            for line in process.stdout:
                seen += line
                if line.split()[:1] == ["3"]:  # its checkpoint may still be on its way
                    break
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, seen + out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("data.num_workers=2",), ("--devices", 2)],
    ids=["one process", "workers", "two processes"],
)
def test_ctrl_c_says_how_to_go_on_and_nothing_else(
    more: tuple[object, ...], place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = stopped_by_ctrl_c(place, run, *more)
    assert code == 130, err
    assert f"finetune fit --resume {run}" in out
    assert "Traceback" not in out + err
    assert err.count("error:") <= 1
    done = checkpoint(run)["epoch"] + 1
    assert done >= 2
    assert not list(run.rglob("*.ckpt.*"))
    assert not (run / "bundle").exists()
    run_here("fit", "--resume", run, "--epochs", done + 1, "--devices", 1)
    assert [row["epoch"] for row in rows(run)] == [str(epoch + 1) for epoch in range(done + 1)]
    assert (run / "bundle" / "model.safetensors").is_file()


def test_a_finished_run_has_nothing_left_to_do_and_can_be_made_longer(
    place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_here(*words(place, run, "--epochs", 2))
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    result = api.resume(run)
    assert set(result.metrics) == {"val"}
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()} == before
    run_here("fit", "--resume", run, "--epochs", 3)
    assert checkpoint(run)["epoch"] == 2
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]


def logged(history: list[dict[str, Any]], name: str) -> list[float]:
    """Return a metric's values by epoch."""
    return [float(row[name]) for row in history if name in row]


@pytest.mark.slow
def test_wandb_offline_holds_the_run_and_a_resume_continues_it(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = words(place, run, "--wandb", "offline", "tracking.project=tests")
    ended = finetune(place, *given, extra={"STOP": "SIGINT@11"})
    assert ended.returncode == 130, ended.stderr
    run_id = (run / "wandb_id.txt").read_text().strip()
    ended = finetune(place, "fit", "--resume", run)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert (run / "wandb_id.txt").read_text().strip() == run_id

    first, second = read_offline_runs(run)
    assert first.run_id == second.run_id == run_id
    for part in (first, second):
        assert part.config["model"]["backbone"] == "test_resnet"
        assert part.config["optim"]["lr"] == 0.2
        assert part.config["trainer"]["monitor"] == "accuracy"  # resolved, not "auto"
    table = rows(run)
    for name in ("val/loss", "val/accuracy", "val/macro_f1", "train/loss", "lr/head", "lr/layer4"):
        expected = [float(row[name]) for row in table]
        found = [*logged(first.history, name), *logged(second.history, name)]
        assert found == pytest.approx(expected), name
    assert [int(value) for value in logged(first.history, "epoch")][-1] == 2

    # the final numbers, which the first part did not reach
    assert not first.artifacts
    assert not [row for row in first.history if any("confusion" in name for name in row)]
    files = set(second.artifacts[f"model-{run_id}"])
    assert {"model.safetensors", "config.json", "finetune.json"} <= files
    tables = [n for row in second.history for n in row if n.startswith("confusion_matrix/val")]
    assert tables
    assert {"final/val/accuracy", "final/val/accuracy_low"} <= second.summary.keys()
    assert "final/val/rarest_third_recall" in second.summary
    [kept] = [row["per_class/val/path"] for row in second.history if "per_class/val/path" in row]
    [file] = run.glob(f"wandb/offline-run-*/files/{kept}")
    by_class = json.loads(file.read_text(encoding="utf-8"))
    assert by_class["columns"][:3] == ["class", "train images", "images"]
    stats = read_card_json(run / "bundle")["facts"]["evaluations"]["val"]["per_class"]
    assert [row[0] for row in by_class["data"]] == list(stats)
    assert [row[5] for row in by_class["data"]] == [entry["recall"] for entry in stats.values()]


@pytest.mark.slow
def test_wandb_online_without_a_key_says_what_to_do(place: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    ended = finetune(place, *words(place, tmp_path / "run", "--wandb", "online"), extra=home)
    message = " ".join(ended.stderr.split())
    assert ended.returncode == 8, message
    assert message.startswith("error: Weights & Biases does not start")
    assert "wandb login" in message
    assert "--wandb offline" in message
    assert "Traceback" not in message

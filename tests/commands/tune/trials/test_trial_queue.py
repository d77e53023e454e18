"""Tests of ``finetune.commands.tune.trials.trial_queue``, also with a killed process."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from finetune.commands.tune.space.search_space import SearchDimension
from finetune.commands.tune.trials.trial_queue import MAX_ATTEMPTS, ClaimedTrial, TrialQueue
from finetune.errors import RunFolderError
from tests.support.helpers import ROOT

pytestmark = pytest.mark.runs

SPACE = (
    SearchDimension("optim.lr", (), 1e-4, 1.0, is_log=True),
    SearchDimension("augment.name", ("light", "strong")),
)
DEFAULTS = {"optim.lr": 0.01, "augment.name": "light"}


_OPEN: list[TrialQueue | ClaimedTrial] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    for entry in _OPEN:
        entry.close() if isinstance(entry, TrialQueue) else entry.lock.close()
    _OPEN.clear()


def claim(queue: TrialQueue, num_trials: int) -> ClaimedTrial:
    """Return a trial of a queue, which has one."""
    claimed = queue.claim(num_trials)
    assert claimed is not None
    _OPEN.append(claimed)
    return claimed


def open_queue(folder: Path, *, seed: int = 0, enqueue: bool = False) -> TrialQueue:
    """Return the queue of a study, with its default trial if it is new."""
    queue = TrialQueue(folder, SPACE, maximize=False, seed=seed)
    _OPEN.append(queue)
    if enqueue:
        queue.enqueue_default(DEFAULTS)
    return queue


def run_all(queue: TrialQueue, num_trials: int) -> list[dict[str, object]]:
    """Run trials whose metric is their rate, and return their values."""
    values = []
    while (claimed := queue.claim(num_trials)) is not None:
        values.append(dict(claimed.values))
        queue.finish(claimed, value=float(claimed.values["optim.lr"]))
    return values


def report_all(queue: TrialQueue, claimed: ClaimedTrial, values: Sequence[float]) -> int | None:
    """Report a metric for each tenth; return the tenth that prunes the trial."""
    for tenth, value in enumerate(values, start=1):
        if queue.report(claimed, value, tenths=[tenth]):
            return tenth
    return None


def test_claim_first_trial_has_the_default_settings(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    first = claim(queue, 5)
    assert first.is_default
    assert first.number == 1
    assert first.values == DEFAULTS
    second = claim(queue, 5)
    assert not second.is_default
    assert second.number == 2


def test_claim_default_outside_of_the_space_has_no_values(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.enqueue_default({"optim.lr": None, "augment.name": "medium"})
    first = claim(queue, 5)
    assert first.is_default
    assert first.values == {}


@pytest.mark.slow
def test_claim_draws_as_if_uninterrupted_in_every_process(tmp_path: Path) -> None:
    for name in ("whole", "parts", "other"):
        (tmp_path / name).mkdir()
    whole = run_all(open_queue(tmp_path / "whole", enqueue=True), 8)
    open_queue(tmp_path / "parts", enqueue=True)
    parts = []
    for count in (2, 8):
        parts += run_all(open_queue(tmp_path / "parts"), count)
    assert len(whole) == 8
    assert parts == whole
    assert len({str(values) for values in whole}) == 8
    other = run_all(open_queue(tmp_path / "other", seed=1, enqueue=True), 2)
    assert other[1] != whole[1]


def test_claim_running_trial_of_this_process_is_not_claimed_twice(tmp_path: Path) -> None:
    queue, other = open_queue(tmp_path, enqueue=True), open_queue(tmp_path)
    claimed = [claim(queue, 3), claim(other, 3), claim(queue, 3)]
    assert [trial.number for trial in claimed] == [1, 2, 3]
    assert other.claim(3) is None
    assert other.has_running_trials()


@pytest.mark.slow
def test_claim_continues_trial_of_a_killed_process(tmp_path: Path) -> None:
    open_queue(tmp_path, enqueue=True)
    code = (
        "import sys, time; from pathlib import Path; "
        "from tests.commands.tune.trials.test_trial_queue import open_queue; "
        "queue = open_queue(Path(sys.argv[1])); trial = queue.claim(3); "
        "queue.report(trial, 0.5, tenths=[1, 2]); print(trial.number, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    queue = open_queue(tmp_path)
    second = claim(queue, 3)
    assert second.number == 2, "the first is running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    first = claim(queue, 3)
    assert first.number == 1
    assert first.is_default
    assert first.values == DEFAULTS
    assert not queue.report(first, 0.5, tenths=[2, 3]), "a repeated epoch is no error"
    queue.finish(first, value=0.25)
    assert queue.get_trials()[0].value == 0.25


def test_claim_trial_that_kills_its_process_fails_in_the_end(tmp_path: Path) -> None:
    open_queue(tmp_path, enqueue=True)
    numbers = []
    for _ in range(MAX_ATTEMPTS + 1):
        claimed = claim(open_queue(tmp_path), 2)
        numbers.append(claimed.number)
        claimed.lock.close()  # as the operating system does for a killed process
    assert numbers == [1] * MAX_ATTEMPTS + [2]
    first = open_queue(tmp_path).get_trials()[0]
    assert first.state.name == "FAIL"
    assert "killed" in first.user_attrs["reason"]


def test_release_stopped_trial_is_claimed_again_without_counting(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    for _ in range(MAX_ATTEMPTS + 2):
        claimed = claim(queue, 2)
        assert claimed.number == 1
        queue.release(claimed)


def test_seconds_of_stopped_and_of_killed_attempts_are_added(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    stopped = claim(queue, 1)
    time.sleep(0.2)
    queue.release(stopped)
    killed = claim(queue, 1)
    assert killed.seconds >= 0.2
    time.sleep(0.2)
    queue.report(killed, 0.5, tenths=[])
    killed.lock.close()  # as the operating system does for a killed process
    last = claim(open_queue(tmp_path), 1)
    assert last.seconds >= 0.4


@pytest.mark.slow
def test_report_prunes_trial_worse_than_the_median(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    for level in (0.3, 0.4, 0.5, 0.6):
        claimed = claim(queue, 9)
        assert report_all(queue, claimed, [level] * 10) is None
        queue.finish(claimed, value=level)
    worse, better = claim(queue, 9), claim(queue, 9)
    assert report_all(queue, worse, [0.9] * 10) == 3, "not before the warm-up is over"
    queue.finish(worse, is_pruned=True)
    assert report_all(queue, better, [0.9, 0.9, 0.31] + [0.3] * 7) is None
    assert queue.get_trials()[4].state.name == "PRUNED"


@pytest.mark.slow
def test_report_never_prunes_the_default_trial(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    default = claim(queue, 9)
    for level in (0.3, 0.3, 0.3, 0.3):
        claimed = claim(queue, 9)
        report_all(queue, claimed, [level] * 10)
        queue.finish(claimed, value=level)
    assert report_all(queue, default, [0.9] * 10) is None


def test_report_metric_that_is_not_finite_is_ignored(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    claimed = claim(queue, 9)
    assert not queue.report(claimed, float("nan"), tenths=[1])
    assert queue.get_trials()[0].intermediate_values == {}


def test_lock_study_waits_for_another_process(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, enqueue=True)
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    start = time.monotonic()
    claim(queue, 3)
    assert time.monotonic() - start > 0.5
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(
    ("key", "value"), [("optim.lr", "my.losses:focal"), ("augment.name", "a.b:c"), ("loss.name", 1)]
)
def test_claim_stored_value_outside_of_the_space_is_refused(
    tmp_path: Path, key: str, value: str | int
) -> None:
    import optuna

    queue = open_queue(tmp_path, enqueue=True)
    stored: dict[str, str | float] = {"optim.lr": 0.01, "augment.name": "light", key: value}
    queue.study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=stored,
            distributions={
                name: optuna.distributions.CategoricalDistribution([one])
                for name, one in stored.items()
            },
        )
    )
    with pytest.raises(RunFolderError, match=rf"of different searches: {key}.* not in the search"):
        queue.claim(4)

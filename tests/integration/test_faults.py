"""Faults: a run that is killed or stopped at any point and restarted ends like an undisturbed one.

Each start is a process of its own that runs the same command, with real signals. The points are
enumerated in ``tests/support/fault_points.py``; ``scripts/soak_kills.py`` kills at random times.
"""

import re
import signal
from itertools import cycle
from pathlib import Path

import pytest

from tests.support.fault_points import POINTS
from tests.support.fault_runs import (
    WITHOUT_PROBE,
    assert_same_end,
    read_log,
    run_fit,
    write_workspace,
)
from tests.support.runs import load_checkpoint, load_weights, read_rows

pytestmark = pytest.mark.slow

TWO_RANKS = ("--devices", "2", "trainer.accumulate_grad_batches=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights and the config."""
    return write_workspace(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(workspace: Path) -> dict[tuple[str, ...], Path]:
    """Return a cache of undisturbed runs by their arguments, for ``get_undisturbed``."""
    del workspace
    return {}


def get_undisturbed(workspace: Path, runs: dict[tuple[str, ...], Path], *args: str) -> Path:
    """Return the undisturbed run with some arguments."""
    if args not in runs:
        run = workspace / f"undisturbed-{len(runs)}"
        assert run_fit(workspace, run, *args)[0] == 0, read_log(run)
        assert len(read_rows(run)) >= 5, "early stopping leaves the epochs in which faults occur"
        runs[args] = run
    return runs[args]


@pytest.mark.parametrize("signums", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGUSR1]], ids=str)
@pytest.mark.parametrize(
    ("args", "points"),
    [
        ((), ["probe"]),
        ((WITHOUT_PROBE,), ["import", *(point for point in POINTS if point != "probe")]),
    ],
    ids=["probe", "all others"],
)
def test_run_killed_or_stopped_at_points_in_turn_ends_bit_identical(
    signums: list[signal.Signals],
    args: tuple[str, ...],
    points: list[str],
    workspace: Path,
    tmp_path: Path,
    undisturbed: dict[tuple[str, ...], Path],
) -> None:
    run = tmp_path / "run"
    for point, signum in zip(points, cycle(signums), strict=False):
        code, _ = run_fit(workspace, run, *args, fault=(point, signum, 0))
        expected_code = -signum if signum == signal.SIGKILL else 85
        assert code == expected_code, (point, read_log(run))
        if (point, signum) == ("mid-epoch", signal.SIGKILL):
            assert load_checkpoint(run)["position"]["steps"] == 2, "that of the second step"
    assert run_fit(workspace, run, *args)[0] == 0, read_log(run)
    expected = get_undisturbed(workspace, undisturbed, *args)
    assert_same_end(run, expected)
    assert load_weights(run).keys() == load_weights(expected).keys()
    assert "Traceback" not in Path(f"{run}.log").read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_either_of_two_ranks_killed_or_stopped_in_turn_ends_bit_identical(
    workspace: Path, tmp_path: Path, undisturbed: dict[tuple[str, ...], Path]
) -> None:
    run = tmp_path / "run"
    for point, signum, rank in [
        ("probe", signal.SIGKILL, 1),
        ("probe", signal.SIGTERM, 1),
        ("mid-epoch", signal.SIGKILL, 0),
        ("mid-epoch", signal.SIGTERM, 1),
        ("validation", signal.SIGKILL, 1),
        ("validation", signal.SIGTERM, 0),
    ]:
        code, _ = run_fit(workspace, run, *TWO_RANKS, fault=(point, signum, rank))
        log = (point, read_log(run))
        if signum == signal.SIGTERM:
            assert code == 85, log
        elif rank == 0:
            assert code == -signal.SIGKILL, log
        else:
            assert code == 7, log
            assert re.search(r"Another process of the run ended|codes -9\b", log[1]), log
    assert run_fit(workspace, run, *TWO_RANKS)[0] == 0, read_log(run)
    assert_same_end(run, get_undisturbed(workspace, undisturbed, *TWO_RANKS))

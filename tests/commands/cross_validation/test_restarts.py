"""Faults: a cross-validation that is killed or stopped in any fold ends like an undisturbed one."""

import signal
from pathlib import Path

import pytest

from tests.support.cross_validation import assert_same_cross_validation
from tests.support.fault_runs import (
    WITHOUT_PROBE,
    assert_same_end,
    read_log,
    run_fit,
    write_workspace,
)
from tests.support.runs import load_checkpoint

pytestmark = pytest.mark.slow

FOLDS = ("--folds", "2", WITHOUT_PROBE)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, weights and the config."""
    return write_workspace(tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def undisturbed(workspace: Path) -> Path:
    """Return a cross-validation that nothing has disturbed."""
    run = workspace / "undisturbed"
    assert run_fit(workspace, run, *FOLDS)[0] == 0, read_log(run)
    return run


def assert_same_folds(run: Path, expected: Path) -> None:
    """Check that two cross-validations agree to the bit."""
    for fold in ("1", "2"):
        assert_same_end(run / "folds" / fold, expected / "folds" / fold)
    assert_same_cross_validation(run, expected)
    assert "Traceback" not in Path(f"{run}.log").read_text()


def test_cross_validation_killed_and_stopped_in_folds_ends_bit_identical(
    workspace: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    code, _ = run_fit(workspace, run, *FOLDS, fault=("mid-epoch", signal.SIGKILL, 0))
    assert code == -signal.SIGKILL, read_log(run)
    assert load_checkpoint(run / "folds" / "1")["position"]["steps"] > 0
    assert not (run / "folds" / "2").exists()
    code, _ = run_fit(workspace, run, *FOLDS, "--fold", "1")
    assert code == 0, read_log(run)
    assert not (run / "bundle").exists(), "one fold alone writes no model"
    for point, signum in [
        ("mid-epoch", signal.SIGKILL),
        ("validation", signal.SIGTERM),
        ("final evaluation", signal.SIGKILL),
        ("bundle", signal.SIGUSR1),
    ]:
        code, _ = run_fit(workspace, run, *FOLDS, fault=(point, signum, 0))
        assert code == (-signum if signum == signal.SIGKILL else 85), (point, read_log(run))
        assert (run / "folds" / "2").exists()
    assert run_fit(workspace, run, *FOLDS)[0] == 0, read_log(run)
    assert_same_folds(run, undisturbed)
    # a command that does not fit stands on a line of its own
    lines = [line.strip() for line in Path(f"{run}.log").read_text().splitlines()]
    command = f"finetune fit --resume {run}"
    assert any(line.endswith(command) for line in lines), "not the folder of the fold"


def test_fold_of_two_ranks_killed_ends_bit_identical(workspace: Path, tmp_path: Path) -> None:
    args = (
        *FOLDS,
        "--fold",
        "2",
        "--devices",
        "2",
        "trainer.accumulate_grad_batches=1",
        "trainer.collective_timeout_seconds=120",
    )
    expected, run = tmp_path / "expected", tmp_path / "run"
    assert run_fit(workspace, expected, *args)[0] == 0, read_log(expected)
    code, _ = run_fit(workspace, run, *args, fault=("mid-epoch", signal.SIGKILL, 0))
    assert code == -signal.SIGKILL, read_log(run)
    assert run_fit(workspace, run, *args)[0] == 0, read_log(run)
    assert_same_end(run / "folds" / "2", expected / "folds" / "2")
    assert "devices: 2" in (run / "folds" / "2" / "config.yaml").read_text()

"""Cross-validations of two processes that ``scripts/torchrun.sh`` starts, and restarts."""

import os
import signal
import sys
from pathlib import Path

import pytest

from finetune.cli.main import run as run_command
from tests.support.cross_validation import assert_same_cross_validation
from tests.support.runs import compute_largest_difference, load_weights, read_rows
from tests.support.torchrun import build_args, start_script, write_place

pytestmark = pytest.mark.cluster

MAX_SECONDS = 240

# kills a rank once in the second fold, and another one once in the refit
KILLER = """
import os, signal
from pathlib import Path

def stopping(progress, *, final_factor):
    run = Path(os.environ.get("KILL_IN", os.devnull))
    for part, rank in (("refit", "0"), ("folds/2", "1")):
        marker = Path(f"{run}-killed-in-{part.replace('/', '-')}")
        if (run / part / "config.yaml").exists():
            if progress > 0.1 and os.environ.get("RANK") == rank and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            break
    return 1 - (1 - final_factor) * progress
"""

FOLDS = ("--folds", "2", "--final", "refit")
PARTS = ("folds/1", "folds/2", "refit")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_place(tmp_path_factory.mktemp("place"))
    (folder / "stopper.py").write_text(KILLER)
    return folder


def run_script(place: Path, run: Path, **extra: str) -> str:
    """Run a cross-validation under torchrun and return its output."""
    log = Path(f"{run}.log")
    process = start_script(place, *build_args(place, run, *FOLDS), extra=extra, log=log)
    try:
        code = process.wait(MAX_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output = log.read_text()
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    """Return a cross-validation of two processes that nothing has disturbed."""
    run_script(place, place / "undisturbed")
    return place / "undisturbed"


def test_torchrun_folds_of_two_processes_equal_those_of_one(
    place: Path, undisturbed: Path, tmp_path: Path
) -> None:
    expected = tmp_path / "expected"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.delitem(sys.modules, "stopper", raising=False)
        assert run_command(["fit", *build_args(place, expected, *FOLDS)]) == 0
    for part in PARTS:
        one, other = undisturbed / part, expected / part
        assert len(read_rows(one)) == len(read_rows(other))
        assert compute_largest_difference(load_weights(one), load_weights(other)) <= 1e-6
    for name in ("folds.csv", "manifest.csv"):
        assert (undisturbed / name).read_bytes() == (expected / name).read_bytes()


def test_torchrun_folds_killed_in_a_fold_and_in_the_refit_end_bit_identical(
    place: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    output = run_script(place, run, KILL_IN=str(run))
    assert {path.name for path in tmp_path.glob("run-killed-in-*")} == {
        "run-killed-in-folds-2",
        "run-killed-in-refit",
    }
    assert "fold 1 is complete; fold 2 to be trained" in output
    assert "all folds are complete" in output
    assert_same_cross_validation(run, undisturbed)

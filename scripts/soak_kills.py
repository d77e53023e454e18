"""Soak test: ends a run at random times, again and again, and compares it with an undisturbed one.

Run it by hand before a release, from the root of the repository:

    python -m scripts.soak_kills [--kills 20] [--stops 10] [--rank-signals 12] [--seed N]

It prints its seed; the same seed sends the signals after the same seconds. Takes about 10 minutes
on two cores. ``tests/integration/test_faults.py`` covers enumerated points on every change.
"""

import argparse
import random
import signal
import sys
from itertools import cycle, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.fault_runs import (
    WITHOUT_PROBE,
    assert_same_end,
    read_log,
    run_fit,
    write_workspace,
)

TWO_RANKS = ("--devices", "2", "trainer.accumulate_grad_batches=1")
SIGTERM_EXIT_CODE, PEER_LOST_EXIT_CODE = 85, 7


def main() -> None:
    """Run all three soaks and exit with 1 at the first difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs to a single process")
    parser.add_argument("--stops", type=int, default=10, help="SIGTERMs to a single process")
    parser.add_argument("--rank-signals", type=int, default=12, help="signals to one of two ranks")
    parser.add_argument("--seed", type=int, help="seed of the times  [random]")
    arguments = parser.parse_args()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with TemporaryDirectory(prefix="soak-") as folder:
        workspace = write_workspace(Path(folder))
        single = [(signal.SIGKILL, 0)] * arguments.kills + [(signal.SIGTERM, 0)] * arguments.stops
        soak(workspace, "single", (WITHOUT_PROBE,), single, random.Random(seed))
        pairs = cycle(product((signal.SIGKILL, signal.SIGTERM), (0, 1)))
        ranks = [*islice(pairs, arguments.rank_signals)]
        soak(workspace, "two-ranks", TWO_RANKS, ranks, random.Random(seed + 1))
    print("all runs ended like the undisturbed ones")


def soak(
    workspace: Path,
    name: str,
    args: tuple[str, ...],
    faults: list[tuple[signal.Signals, int]],
    generator: random.Random,
) -> None:
    """Send signals at random times until each has ended a run, and compare every finished run.

    Args:
        workspace: Folder of ``write_workspace``.
        name: Prefix of the run folders.
        args: Further arguments of ``fit``.
        faults: Signals and ranks, in order.
        generator: Generator of the times.
    """
    if not faults:
        return
    expected = workspace / f"{name}-undisturbed"
    check(run_fit(workspace, workspace / f"{name}-warm-up", *args)[0] == 0, expected)
    code, seconds = run_fit(workspace, expected, *args)
    check(code == 0, expected)
    number, num_starts = 0, 0
    run = workspace / f"{name}-{number}"
    remaining = [*faults]
    while remaining:
        num_starts += 1
        check(num_starts < 5 * len(faults), run, "the run never ends")
        signum, rank = remaining[0]
        delay = generator.uniform(0, seconds if rank == 0 else 0.7 * seconds)
        code, _ = run_fit(workspace, run, *args, random_signal=(signum, delay, rank))
        print(
            f"{name} rank {rank}: {signum.name} after {delay:.3f} s, exit code {code}", flush=True
        )
        if code == 0:  # the run was faster than the signal: start a new one
            assert_same_end(run, expected)
            number += 1
            run = workspace / f"{name}-{number}"
            continue
        expected_code = -signum if rank == 0 else PEER_LOST_EXIT_CODE
        check(code == (SIGTERM_EXIT_CODE if signum == signal.SIGTERM else expected_code), run)
        remaining.pop(0)
    check(run_fit(workspace, run, *args)[0] == 0, run)
    assert_same_end(run, expected)
    check("Traceback" not in Path(f"{run}.log").read_text(), run)


def check(is_true: bool, run: Path, message: str = "unexpected exit code or output") -> None:
    """Exit with the log of a run unless a condition holds."""
    if not is_true:
        sys.exit(f"{run.name}: {message}\n{read_log(run)}")


if __name__ == "__main__":
    main()

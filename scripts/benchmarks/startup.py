"""Times what a user waits for before any work: help, a typo, and the imports of a training.

    uv run python scripts/benchmarks/startup.py --runs 7

Prints median, fastest and slowest wall time of whole processes, in seconds.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

FINETUNE = [sys.executable, "-m", "finetune"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "finetune --help": [*FINETUNE, "--help"],
    "finetune fit --help": [*FINETUNE, "fit", "--help"],
    "finetune fit with a config typo": [*FINETUNE, "fit", ".", "optim.lrr=1"],
    "import torch, timm": [sys.executable, "-c", "import torch, timm"],
    "import finetune.commands.fit": [sys.executable, "-c", "import finetune.commands.fit"],
}


def seconds(command: Sequence[str]) -> float:
    """Return the wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Run every command in turns, so that a busy moment meets all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)  # fills the page cache
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    print(f"{'seconds':34} {'median':>7} {'min':>7} {'max':>7}")
    for name, values in times.items():
        print(f"{name:34} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}")


if __name__ == "__main__":
    main()

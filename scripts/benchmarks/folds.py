"""Cost of a cross-validation relative to one fit, in processor time.

    uv run python scripts/benchmarks/folds.py PHOTOS --weights resnet18.pth --folds 5 --epochs 4

Each command starts with an empty cache, in a process of its own on one thread. Processor time of
the command and its children is measured, and not wall time, which other processes disturb. The
first line is the whole of one fit with its audit, decoding and features; the second one the part
that every fold repeats: the same fit with a full cache. The ratio of the target is
(folds - what is done once) / what is repeated.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def measure(command: Sequence[str], cache: Path) -> float:
    """Return the seconds of processor time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "FINETUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "finetune", *command],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure one fit with an empty and with a full cache, and the folds with an empty one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--image-size", default="128")
    parser.add_argument("--backbone", default="resnet18")
    args = parser.parse_args()
    options = [
        "fit", str(args.photos), "--backbone", args.backbone, "--weights", args.weights,
        "--epochs", args.epochs, "--image-size", args.image_size, "data.num_workers=0",
        "data.cache=on",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit = [*options, "--output"]
        first = measure([*fit, str(folder / "one")], folder / "cache-one")
        repeated = measure([*fit, str(folder / "again")], folder / "cache-one")
        folds = measure(
            [*fit, str(folder / "cv"), "--folds", str(args.folds)], folder / "cache-folds"
        )
    once = first - repeated
    print(f"one fit, empty cache       {first:8.1f} s")
    print(f"one fit, full cache        {repeated:8.1f} s")
    print(f"{args.folds} folds, empty cache       {folds:8.1f} s")
    print(f"folds / one fit            {folds / first:8.2f}")
    print(f"(folds - once) / repeated  {(folds - once) / repeated:8.2f}")


if __name__ == "__main__":
    main()

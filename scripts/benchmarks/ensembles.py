"""Test metrics and time of ensembles, averaged weights and test-time augmentation.

    uv run python scripts/benchmarks/ensembles.py photos/ --weights FILE --image-size 128

Runs that differ in their seed alone are trained on one split of a folder of class folders, of which
equally many images of each class are drawn. Each is then evaluated on the test images with every
test-time augmentation and with larger images, and all are evaluated together. Prints a table of
accuracy, log loss and CPU seconds per 100 images; rows of single runs are means over the runs.
"""

import csv
import json
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import finetune
from finetune.commands.evaluate import EvaluateResult
from finetune.types import Tta

NUM_TEST_IMAGES = 50
NUM_VAL_IMAGES = 20
SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Result:
    """Metrics on the test images, and CPU seconds for 100 of them, with loading the model."""

    accuracy: float
    loss: float
    seconds: float


def write_split(data: Path, num_train_images: int, output: Path) -> Path:
    """Return a CSV with drawn training, validation and test images of each class."""
    rows = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
        order = np.random.default_rng(0).permutation(len(files))
        splits = ["test"] * NUM_TEST_IMAGES + ["val"] * NUM_VAL_IMAGES
        splits += ["train"] * num_train_images
        rows += [
            (str(files[row].resolve()), folder.name, split)
            for row, split in zip(order, splits, strict=False)
        ]
    with output.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows(rows)
    return output


def train(data: Path, seed: int, options: Namespace, output: Path) -> Path:
    """Return the folder of a run, which is trained unless it exists."""
    if not (output / "bundle").is_dir():
        finetune.fit(
            data,
            backbone=options.backbone,
            weights=options.weights,
            image_size=options.image_size,
            epochs=options.epochs,
            seed=seed,
            output=output,
            config={"augment.hflip": "on", "data.leakage": "ignore"},
        )
    return output


def measure(evaluate: Callable[[], EvaluateResult]) -> Result:
    """Return the metrics of an evaluation and its time."""
    start = time.process_time()
    result = evaluate()
    seconds = time.process_time() - start
    evaluation = result.evaluation
    accuracy, loss = (evaluation.metrics[name] for name in ("accuracy", "loss"))
    return Result(accuracy, loss, 100 * seconds / evaluation.num_images)


def select_test_images(data: Path, num_images: int, output: Path) -> Path:
    """Return a CSV with some of the test images of each class."""
    with data.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row[2] == "test"]
    labels = sorted({row[1] for row in rows})
    with output.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        for label in labels:
            writer.writerows([row for row in rows if row[1] == label][:num_images])
    return output


def measure_all(runs: list[Path], data: Path, image_size: int, folder: Path) -> dict[str, Result]:
    """Return the results of all ways of evaluation on the images of a CSV."""
    results: dict[str, Result] = {}

    def add(name: str, models: list[list[Path]], **arguments: Any) -> None:
        each = [
            measure(partial(finetune.evaluate, paths, data, device="cpu", **arguments))
            for paths in models
        ]
        columns = zip(*(asdict(result).values() for result in each), strict=True)
        results[name] = Result(*map(statistics.mean, columns))
        print(f"{name}: {results[name]}", flush=True)

    singles = [[run] for run in runs]
    finetune.evaluate(runs[0], data, device="cpu")  # imports, and reads the files once
    add("one run", singles)
    add(f"ensemble of {len(runs)}", [runs])
    add(f"ensemble of {len(runs)}, --weights val", [runs], weights="val")
    for method in ("uniform", "greedy"):
        output = folder / f"soup-{method}"
        print(finetune.export(runs, output, soup=method).soup, flush=True)
        add(f"--soup {method}", [[output]])
    for tta in (Tta.HFLIP, Tta.CROPS, Tta.SIZES, Tta.CROPS10):
        add(f"--tta {tta}", singles, tta=tta)
    for size in (round(1.25 * image_size), round(1.5 * image_size)):
        add(f"--image-size {size}", singles, image_size=size)
    add(f"ensemble of {len(runs)}, --tta hflip", [runs], tta=Tta.HFLIP)
    return results


def print_table(results: dict[str, Result]) -> None:
    """Print the results as a table in Markdown."""
    print("\n| | accuracy | log loss | CPU seconds per 100 images |\n|---|---|---|---|")
    for name, result in results.items():
        print(f"| {name} | {result.accuracy:.1%} | {result.loss:.3f} | {result.seconds:.1f} |")


def main() -> None:
    """Train the runs, evaluate them in all ways, and print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, default=69, help="training images of a class")
    parser.add_argument("--test-images", type=int, default=NUM_TEST_IMAGES)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder that keeps the runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = write_split(options.data, options.train_images, folder / "images.csv")
        runs = [train(data, s, options, folder / f"seed-{s}") for s in range(options.runs)]
        test = select_test_images(data, options.test_images, folder / "test.csv")
        results = measure_all(runs, test, options.image_size, Path(temporary))
    print_table(results)
    if options.json is not None:
        tree = {name: asdict(result) for name, result in results.items()}
        options.json.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

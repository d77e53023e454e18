"""Accuracy of models trained on full, scaled and cached pixels, over several seeds.

    uv run python scripts/benchmarks/accuracy.py photos/ --weights FILE --image-size 112

Three methods of reading the same training images: JPEGs decoded at full size, decoded no larger
than the crop (`data.cache=off`), and decoded once at the cache's resolution (`data.cache=on`).
Everything else is fixed, and all are validated on the same pixels. Prints the best validation
accuracy of each seed, the mean of each method, and whether the methods differ by less than the
seeds do.
"""

import json
import statistics
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import finetune
from finetune.data.images import jpeg

METHODS = {"full decode": "off", "scaled decode": "off", "cached pixels": "on"}


@contextmanager
def set_decoder(method: str) -> Iterator[None]:
    """Disable scaled decoding within the block for the method "full decode"."""
    scales = jpeg.DCT_SCALES
    if method == "full decode":
        jpeg.DCT_SCALES = ()  # type: ignore[assignment]
    try:
        yield
    finally:
        jpeg.DCT_SCALES = scales


def measure_accuracy(method: str, seed: int, options: Namespace, output: Path) -> float:
    """Return the best validation accuracy of a run."""
    config = finetune.Config.model_validate(
        {
            "data": {
                "path": str(options.data),
                "cache": METHODS[method],
                "image_size": options.image_size,
            },
            "model": {"backbone": options.backbone, "weights": str(options.weights)},
            "unfreeze": {"name": "all"},
            "augment": {"name": options.augment},
            "trainer": {"epochs": options.epochs, "monitor": "accuracy"},
            "seed": seed,
            "output": str(output),
        }
    )
    with set_decoder(method):
        return float(finetune.fit(config).metrics["val"]["accuracy"] or 0)


def print_table(results: dict[str, list[float]]) -> None:
    """Print the accuracies, the differences of the means and the deviation of the seeds."""
    for method, values in results.items():
        accuracies = "  ".join(f"{value:.4f}" for value in values)
        print(f"{method:<14} {accuracies}   mean {statistics.mean(values):.4f}")
    means = [statistics.mean(values) for values in results.values()]
    spread = statistics.mean(statistics.stdev(values) for values in results.values())
    print(f"largest difference of means {max(means) - min(means):.4f}")
    print(f"standard deviation of seeds {spread:.4f}")


def main() -> None:
    """Run all methods and seeds, and print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--augment", default="medium")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, list[float]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for method in METHODS:
                output = Path(folder) / f"{method.replace(' ', '-')}-{seed}"
                results[method].append(measure_accuracy(method, seed, options, output))
                print(f"seed {seed}, {method}: {results[method][-1]:.4f}", flush=True)
    print_table(results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

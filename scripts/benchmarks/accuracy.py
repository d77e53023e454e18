"""Compares what models learn from full, scaled and stored pixels, over several seeds.

    uv run python scripts/benchmarks/accuracy.py photos/ --weights FILE --image-size 112

Three ways to the same training images: every JPEG decoded in full, decoded no larger than its crop
(`data.cache=off`), and decoded once at the cache's resolution (`data.cache=on`). Everything else is
fixed, and all are validated on the same pixels. Prints the best validation accuracy of each seed,
the mean of each way, and whether the ways differ by less than the seeds do.
"""

import json
import statistics
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import finetune
from finetune.data.images import lazy_image as picture

WAYS = {"full decode": "off", "scaled decode": "off", "stored pixels": "on"}


@contextmanager
def decoding(way: str) -> Iterator[None]:
    """Keep the decoder at full size for the block, where that is the way."""
    scales = picture.SCALES
    picture.SCALES = () if way == "full decode" else scales
    try:
        yield
    finally:
        picture.SCALES = scales


def accuracy(way: str, seed: int, options: Namespace, output: Path) -> float:
    """Return the best validation accuracy of a run."""
    config = finetune.Config.model_validate(
        {
            "data": {
                "path": str(options.data),
                "cache": WAYS[way],
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
    with decoding(way):
        return float(finetune.fit(config).metrics["val"]["accuracy"])


def print_table(found: dict[str, list[float]]) -> None:
    """Print the accuracies, and what differs more: the ways or the seeds."""
    for way, values in found.items():
        shown = "  ".join(f"{value:.4f}" for value in values)
        print(f"{way:<14} {shown}   mean {statistics.mean(values):.4f}")
    means = [statistics.mean(values) for values in found.values()]
    spread = statistics.mean(statistics.stdev(values) for values in found.values())
    print(f"largest difference of means {max(means) - min(means):.4f}")
    print(f"standard deviation of seeds {spread:.4f}")


def main() -> None:
    """Run all ways and seeds, and print the table."""
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
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for way in WAYS:
                output = Path(folder) / f"{way.replace(' ', '-')}-{seed}"
                found[way].append(accuracy(way, seed, options, output))
                print(f"seed {seed}, {way}: {found[way][-1]:.4f}", flush=True)
    print_table(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Test metrics of every optimizer, learning-rate schedule, loss and head, beside the default.

    uv run python scripts/benchmarks/named_choices.py photos/ --weights resnet18.pth \
        --image-size 128 [--train-images 40] [--epochs 20] [--seeds 5]
    uv run python scripts/benchmarks/named_choices.py photos/ --weights resnet18.pth \
        --image-size 96 --fits results.csv --epochs 5 --seeds 2

Without --fits, heads are trained on frozen features. The features of a folder of class folders are
computed once. For each seed, images are drawn for training and validation, and the others are the
test; each choice then trains a head from the components and the default numbers that ``fit`` would
take, in batches of 32, with one difference from AdamW, cosine, cross-entropy and a linear head of
zeros. The temperature is fitted to the validation images. Prints a table in Markdown for each group
of choices: means over the seeds, and the standard error of the difference from the first row, in
points of accuracy.

With --fits, each choice is a whole fit with one difference from the default, on the same test
images, which are part of no fit. The seed draws the training and validation images, too. Each
result is appended to the file at once, and is not computed again: the command may be interrupted,
and several networks may append to one file, also side by side. Prints the mean difference from the
default over the runs of the file, and its 95% interval over the test images.
"""

import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import torch

from scripts.benchmarks.lib.choices.fits import (
    FIT_GROUPS,
    FitTask,
    print_tables,
    read_rows,
    run_missing_fits,
)
from scripts.benchmarks.lib.choices.heads import (
    GROUPS,
    compute_features,
    draw_images,
    measure,
    print_group,
)


def measure_heads(options: Namespace) -> None:
    """Train the heads of all choices, and print their tables."""
    if options.features is not None and options.features.is_file():
        features, labels = torch.load(options.features, weights_only=True)
    else:
        features, labels = compute_features(options)
        if options.features is not None:
            torch.save((features, labels), options.features)
    images = [
        draw_images(features, labels, num_train=options.train_images, seed=seed)
        for seed in range(options.seeds)
    ]
    for name in options.groups or GROUPS:
        results = {
            label: measure(images, choice, num_epochs=options.epochs)
            for label, choice in GROUPS[name].items()
        }
        print_group(name, results)


def measure_fits(options: Namespace, work: Path) -> None:
    """Run the fits that the file of results lacks, and print the tables of all that it has."""
    task = FitTask(
        data=options.data,
        backbone=options.backbone,
        weights=options.weights,
        image_size=options.image_size,
        train_images=options.train_images,
        test_images=options.test_images,
        epochs=options.epochs,
        seeds=options.seeds,
        work=work,
    )
    groups = options.groups or list(FIT_GROUPS)
    run_missing_fits(task, options.fits, groups)
    print_tables(read_rows(options.fits), groups)


def main() -> None:
    """Measure heads or whole fits, and print the tables."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, default=40, help="training images of a class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--groups", nargs="*", choices=sorted({*GROUPS, *FIT_GROUPS}))
    parser.add_argument("--features", type=Path, help="file that keeps the features of heads")
    parser.add_argument("--fits", type=Path, help="CSV of the results of whole fits")
    parser.add_argument("--test-images", type=int, default=80, help="of a class, with --fits")
    parser.add_argument("--work", type=Path, help="folder for links and runs, with --fits")
    options = parser.parse_args()
    if options.groups and (
        unknown := set(options.groups) - set(FIT_GROUPS if options.fits else GROUPS)
    ):
        parser.error(f"there are no {'fits' if options.fits else 'heads'} of {sorted(unknown)}")
    if options.fits is None:
        measure_heads(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure_fits(options, options.work or Path(temporary))


if __name__ == "__main__":
    main()

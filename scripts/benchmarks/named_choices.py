"""Test metrics of every optimizer, learning-rate schedule, loss and head, with all else equal.

    uv run python scripts/benchmarks/named_choices.py photos/ --weights resnet18.pth \
        --image-size 48 --output results/ [--only optimizers,schedules]

Equally many images of each class are drawn for training, validation and the test. Each choice is a
run of its own with one seed and the defaults otherwise; without a linear probe, whose head would
hide them, the first weights of the head and heads with hidden layers. The runs of an output folder
are not trained again; several processes may train different groups. Prints a table in Markdown for
each group of choices.
"""

import csv
import json
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import finetune

NUM_VAL_IMAGES = 15
NUM_TEST_IMAGES = 80
SUFFIXES = {".jpg", ".jpeg", ".png"}

Settings = Mapping[str, Any]

NO_PROBE: Settings = {"probe.enabled": "off"}
MLP: Settings = {**NO_PROBE, "model.head": "mlp"}


def _name(key: str, *names: str) -> dict[str, Settings]:
    return {name: {key: name} for name in names}


GROUPS: Mapping[str, Mapping[str, Settings]] = {
    "optimizers": {
        "adamw": {},
        **_name("optim.name", "adam", "sgd"),
        "sgd, plain": {"optim.name": "sgd", "optim.momentum": 0.0},
        "sgd, weight decay 0.05": {"optim.name": "sgd", "optim.weight_decay": 0.05},
        **_name("optim.name", "rmsprop", "adadelta", "adagrad"),
    },
    "schedules": {
        "cosine": {},
        **_name("lr_schedule.name", "linear", "constant", "step", "exponential"),
        **_name("lr_schedule.name", "inverse_time", "one_cycle", "plateau"),
    },
    "losses": {
        "cross_entropy": {},
        **_name("loss.name", "focal", "ldam", "hinge", "squared_hinge", "mse"),
    },
    "heads": {
        "linear after a probe": {},
        "linear, zero": NO_PROBE,
        "linear, xavier": {**NO_PROBE, "model.head_init": "xavier"},
        "linear, he": {**NO_PROBE, "model.head_init": "he"},
        "mlp, 512": MLP,
        "mlp, 512, dropout 0.5": {**MLP, "model.head_params": {"drop_rate": 0.5}},
    },
    "penalties": {
        "none of the head": {"optim.head_weight_decay": 0.0},
        "L2 0.05": {},
        "L2 1": {"optim.head_weight_decay": 1.0},
        "L1 0.001": {"optim.head_l1": 1e-3},
        "max-norm 1 of the head": {"optim.max_norm": {"head": 1.0}},
        "max-norm 3 of all groups": {"optim.max_norm": {"all": 3.0}},
    },
}


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


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


def measure(data: Path, settings: Settings, options: Namespace, folder: Path) -> dict[str, float]:
    """Return the metrics of a run, which is trained unless its results are there."""
    results = folder / "test.json"
    if not results.is_file():
        start = time.process_time()
        finetune.fit(
            data,
            backbone=options.backbone,
            weights=options.weights,
            image_size=options.image_size,
            epochs=options.epochs,
            seed=options.seed,
            output=folder,
            config={"augment.hflip": "on", "data.leakage": "ignore", **settings},
        )
        seconds = time.process_time() - start
        metrics = finetune.evaluate(folder, split="test", device="cpu").evaluation.metrics
        tree = {name: metrics[name] for name in ("accuracy", "loss")}
        results.write_text(json.dumps({**tree, "cpu_seconds": seconds}), encoding="utf-8")
    measured: dict[str, float] = json.loads(results.read_text(encoding="utf-8"))
    return measured


def main() -> None:
    """Train a run for each choice and print the tables."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--train-images", type=int, default=40, help="training images of a class")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="groups, separated by commas")
    parser.add_argument("--output", type=Path, help="folder that keeps the runs")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(GROUPS)
    with tempfile.TemporaryDirectory() as temporary:
        output = options.output or Path(temporary)
        output.mkdir(parents=True, exist_ok=True)
        data = write_split(options.data, options.train_images, output / "images.csv")
        for group in names:
            print(f"\n| {group} | accuracy | log loss | CPU seconds |\n|---|---|---|---|")
            for label, settings in GROUPS[group].items():
                folder = output / (_slug(f"{group}-{label}") if settings else "defaults")
                result = measure(data, settings, options, folder)
                print(
                    f"| {label} | {result['accuracy']:.1%} | {result['loss']:.3f} | "
                    f"{result['cpu_seconds']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

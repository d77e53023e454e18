"""Whole fits of named choices, and their differences from the default on the same test images."""

import csv
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import finetune
from scripts.benchmarks.lib.comparison.image_folders import (
    draw_images,
    link_images,
    split_validation,
)
from scripts.benchmarks.lib.comparison.study import Case

Settings = Mapping[str, Any]

COMMON: Settings = {
    "augment.hflip": "on",
    "augment.vflip": "off",
    "augment.min_crop_scale": 0.5,
    "probe.stages": "off",
    "data.leakage": "ignore",
}
"""The same augmentation for all, which is measured with a linear probe only."""

_NO_PROBE: Settings = {"probe.enabled": "off"}

FIT_GROUPS: Mapping[str, Mapping[str, Settings]] = {
    "optimizer": {
        "adamw": {},
        "adam": {"optim.name": "adam"},
        "sgd": {"optim.name": "sgd"},
        "sgd, heavy ball": {"optim.name": "sgd", "optim.nesterov": "off"},
        "sgd, plain": {"optim.name": "sgd", "optim.momentum": 0.0},
        "rmsprop": {"optim.name": "rmsprop"},
        "adadelta": {"optim.name": "adadelta"},
        "adagrad": {"optim.name": "adagrad"},
    },
    "loss": {
        "cross_entropy": {},
        "mse": {"loss.name": "mse"},
        "hinge": {"loss.name": "hinge"},
        "squared_hinge": {"loss.name": "squared_hinge"},
    },
    "schedule": {
        "cosine": {},
        **{
            name: {"lr_schedule.name": name}
            for name in ("constant", "step", "exponential", "inverse_time", "one_cycle", "plateau")
        },
    },
    "penalty": {
        "L2 0.05 (default)": {},
        "L1 0.001 of the head": {"optim.head_l1": 1e-3},
        "max-norm 1 of the head": {"optim.max_norm": {"head": 1.0}},
        "max-norm 4 of everything": {"optim.max_norm": {"all": 4.0}},
    },
    "head": {
        "linear, from the probe": {},
        "zero, no probe": {**_NO_PROBE, "model.head_init": "zero"},
        "xavier, no probe": {**_NO_PROBE, "model.head_init": "xavier"},
        "he, no probe": {**_NO_PROBE, "model.head_init": "he"},
        "mlp, 512": {"model.head": "mlp"},
    },
}
"""Rows by group; each differs from the first one, the default, in the settings named here."""

_COLUMNS = (
    "data", "backbone", "image_size", "train_images", "epochs", "seed", "settings", "lr",
    "cpu_seconds", "correct", "losses",
)  # fmt: skip
_KEY = _COLUMNS[:7]


@dataclass(frozen=True)
class FitTask:
    """Images and network of the fits.

    Attributes:
        data: Folder of class folders.
        backbone: Name in timm.
        weights: File of its weights.
        image_size: Side of the images in pixels.
        train_images: Training images of a class; a quarter as many more are for validation.
        test_images: Test images of a class, which are the same for all seeds.
        epochs: Epochs of each fit.
        seeds: Number of draws of the training images.
        work: Folder for links to images, and for runs.
    """

    data: Path
    backbone: str
    weights: str
    image_size: int
    train_images: int
    test_images: int
    epochs: int
    seeds: int
    work: Path

    def build_key(self, seed: int, settings: Settings) -> dict[str, str]:
        """Return what identifies a row of the results, as the file has it."""
        values = (
            self.data.resolve().name, self.backbone, self.image_size, self.train_images,
            self.epochs, seed, json.dumps(dict(settings), sort_keys=True),
        )  # fmt: skip
        return dict(zip(_KEY, map(str, values), strict=True))


def read_rows(results: Path) -> list[dict[str, str]]:
    """Return the complete rows of a file of results; none if there is no file."""
    if not results.is_file():
        return []
    with results.open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["losses"]]


def run_missing_fits(task: FitTask, results: Path, groups: Sequence[str]) -> None:
    """Append a row for each fit that the file does not have, row by row of the tables.

    Several processes may append to one file.
    """
    for settings in _list_settings(groups):
        for seed in range(task.seeds):
            key = task.build_key(seed, settings)
            if any(key.items() <= row.items() for row in read_rows(results)):
                continue
            row = {**key, **_run_fit(task, seed, settings)}
            is_new = not results.exists()
            with results.open("a", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, _COLUMNS)
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            accuracy = np.mean([int(one) for one in row["correct"]])
            print(
                f"{task.backbone}, seed {seed}, {key['settings']}: {accuracy:.1%}, "
                f"lr {row['lr']}, CPU {row['cpu_seconds']} s",
                flush=True,
            )


def _list_settings(groups: Sequence[str]) -> list[Settings]:
    unique: list[Settings] = []
    for group in groups:
        unique += [one for one in FIT_GROUPS[group].values() if one not in unique]
    return unique


def _run_fit(task: FitTask, seed: int, settings: Settings) -> dict[str, str]:
    """Return the results of a fit on the test images, which it does not see."""
    images, test = _link_images(task, seed)
    output = task.work / f"run-{task.backbone}"
    shutil.rmtree(output, ignore_errors=True)
    start = time.process_time()
    fitted = finetune.fit(
        images,
        backbone=task.backbone,
        weights=task.weights,
        image_size=task.image_size,
        epochs=task.epochs,
        seed=seed,
        output=output,
        config={**COMMON, **settings},
    )
    seconds = time.process_time() - start
    classes = sorted(path.name for path in test.iterdir())
    predictions = finetune.predict(output, test, top_k=len(classes))
    correct, losses = [], []
    for prediction in sorted(predictions.predictions, key=lambda one: str(one.path)):
        label = Path(prediction.path).parent.name
        probabilities = dict(zip(prediction.labels, prediction.probabilities, strict=True))
        correct.append(str(int(prediction.labels[0] == label)))
        losses.append(f"{-np.log(max(probabilities[label], 1e-12)):.4f}")
    config = yaml.safe_load((fitted.run_dir / "config.yaml").read_text(encoding="utf-8"))
    return {
        "lr": f"{config['optim']['lr']}",
        "cpu_seconds": f"{seconds:.1f}",
        "correct": "".join(correct),
        "losses": " ".join(losses),
    }


def _link_images(task: FitTask, seed: int) -> tuple[Path, Path]:
    """Return the folder of training and validation images of a seed, and that of test images."""
    num_drawn = task.train_images + -(-task.train_images // 4)
    name = f"{task.data.resolve().name}-{task.train_images}-{task.test_images}"
    images, test = task.work / name / f"seed-{seed}", task.work / name / "test"
    case = Case(
        name=name, folder=task.data, train_per_class=num_drawn, test_per_class=task.test_images
    )
    drawn = draw_images(case, seed=seed)
    train, val = split_validation(drawn.train, seed=seed)
    for folder, parts in (
        (images, {"train": train, "val": val}),
        (test.parent, {"test": drawn.test}),
    ):
        if not (folder / next(iter(parts))).exists():
            link_images(parts, folder)
    return images, test


def print_tables(rows: Sequence[Mapping[str, str]], groups: Sequence[str]) -> None:
    """Print a table for each group, of the draws and networks that the first row has, too."""
    for group in groups:
        print(
            f"\n| {group} | runs | accuracy | difference in points | of each run | log loss | "
            f"difference | CPU s |\n|{'---|' * 8}"
        )
        for name, pairs in _pair_rows(rows, FIT_GROUPS[group]):
            if pairs:
                print(f"| {name} | {_summarise(pairs)} |")


def _pair_rows(
    rows: Sequence[Mapping[str, str]], choices: Mapping[str, Settings]
) -> Iterator[tuple[str, list[tuple[Mapping[str, str], Mapping[str, str]]]]]:
    """Yield the name of each choice, and its runs with those of the default."""
    defaults = {_get_draw(row): row for row in rows if json.loads(row["settings"]) == {}}
    for name, settings in choices.items():
        found = [row for row in rows if json.loads(row["settings"]) == dict(settings)]
        yield name, [(row, defaults[_get_draw(row)]) for row in found if _get_draw(row) in defaults]


def _get_draw(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in _KEY[:-1])


def _summarise(pairs: Sequence[tuple[Mapping[str, str], Mapping[str, str]]]) -> str:
    """Return the cells of a choice; the intervals are those of 95% over the test images."""
    correct, before = (
        np.array([[int(one) for one in pair[index]["correct"]] for pair in pairs])
        for index in (0, 1)
    )
    losses, losses_before = (
        np.array([[float(one) for one in pair[index]["losses"].split()] for pair in pairs])
        for index in (0, 1)
    )
    gains = 100 * (correct - before)
    gain, half = _estimate(gains)
    loss_change, loss_half = _estimate(losses - losses_before)
    of_runs = ", ".join(f"{value:+.1f}" for value in gains.mean(axis=1))
    seconds = np.mean([float(pair[0]["cpu_seconds"]) for pair in pairs])
    return (
        f"{len(pairs)} | {correct.mean():.1%} | {gain:+.1f} ± {half:.1f} | {of_runs} | "
        f"{losses.mean():.3f} | {loss_change:+.3f} ± {loss_half:.3f} | {seconds:.0f}"
    )


def _estimate(differences: "np.ndarray[Any, np.dtype[Any]]") -> tuple[float, float]:
    """Return the mean of differences (runs, images), and half of its 95% interval.

    Runs of a network share the test images, so that the mean over the runs is taken for each first.
    """
    means = differences.mean(axis=0)
    return float(means.mean()), float(1.96 * means.std(ddof=1) / len(means) ** 0.5)

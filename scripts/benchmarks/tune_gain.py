"""Gain of ``finetune tune`` over the default settings, on images that chose nothing.

    uv run --extra tune python scripts/benchmarks/tune_gain.py hymenoptera/ trashnet/ \
        --weights resnet18.pth --trials 15 --output studies/

Runs one study for each folder of images and prints a Markdown row for each: the paired differences
of the best trial and the default one with their 95% intervals, whatever they are. A study that
exists in --output is continued, so that an interrupted benchmark may be started again; the whole
result of each is in its tune.json.
"""

import csv
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import finetune
from finetune.cli.render.console import ConsoleReporter
from finetune.cli.render.tune_table import show_tune_result
from finetune.config.load import parse_assignments
from finetune.units import format_duration

COLUMNS = (
    "images", "train / val / held out", "trials (pruned)", "default", "best", "accuracy",
    "macro F1", "log loss", "log loss on val", "verdict", "time",
)  # fmt: skip


def run_study(data: Path, args: Namespace, reporter: ConsoleReporter) -> Mapping[str, Any]:
    """Return the result of a study as JSON; one that exists is continued."""
    output = args.output / f"{data.resolve().name}-{args.backbone}-seed{args.seed}"
    if (output / "study.json").is_file():
        result = finetune.resume_tune(output, trials=args.trials, jobs=args.jobs, reporter=reporter)
    else:
        result = finetune.tune(
            data,
            trials=args.trials,
            jobs=args.jobs,
            backbone=args.backbone,
            weights=args.weights,
            seed=args.seed,
            output=output,
            config={"data.image_size": args.image_size, **parse_assignments(args.set)},
            reporter=reporter,
        )
    return result.to_json()


def count_images(study_dir: Path) -> str:
    """Return the number of training, validation and held-out images of a study."""
    with (study_dir / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        splits = [row["split"] for row in csv.DictReader(stream)]
    return " / ".join(str(splits.count(name)) for name in ("train", "val", "test"))


def build_row(name: str, tree: Mapping[str, Any]) -> list[str]:
    """Return the cells of a study, as in ``COLUMNS``."""
    states = [trial["state"] for trial in tree["trials"]]
    seconds = sum(trial["seconds"] or 0.0 for trial in tree["trials"])
    default = next(trial["value"] for trial in tree["trials"] if trial["default"])
    row = [
        name,
        count_images(Path(tree["study_dir"])),
        f"{len(states)} ({states.count('pruned')})",
        f"{default:.4f}",
        f"{tree['best']['value']:.4f}",
    ]
    if tree["gain"] is None:
        return [*row, "-", "-", "-", "-", "the default is the best", format_duration(seconds)]
    held_out, validation = (tree["gain"][key]["differences"] for key in ("held_out", "validation"))
    verdict = tree["gain"]["verdict"]
    return [
        *row,
        *(format_difference(held_out[key], 100, ".1f") for key in ("accuracy", "macro_f1")),
        format_difference(held_out["loss"], 1, ".4f"),
        format_difference(validation["loss"], 1, ".4f"),
        f"{tree['gain']['metric']}: {'chance' if 'chance' in verdict else verdict}",
        format_duration(seconds),
    ]


def format_difference(diff: Mapping[str, Any], scale: float, spec: str) -> str:
    """Return the metric of the default, that of the best trial, and their difference."""
    before, after = (f"{scale * diff[key]:{spec}}" for key in ("before", "after"))
    change, low, high = (f"{scale * diff[key]:+{spec}}" for key in ("difference", "low", "high"))
    return f"{before} -> {after}: {change} ({low} to {high})"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a Markdown table."""
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Run the studies and print their gains."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders of images")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys")
    parser.add_argument("--output", type=Path, default=Path("studies"))
    args = parser.parse_args()
    if args.image_size != "auto":
        args.image_size = int(args.image_size)
    reporter, rows = ConsoleReporter(), []
    for data in args.data:
        print(f"\n{data}")
        tree = run_study(data, args, reporter)
        show_tune_result(reporter, tree)
        rows.append(build_row(data.resolve().name, tree))
    print_table(rows)


if __name__ == "__main__":
    main()

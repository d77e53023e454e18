r"""Fine-tuning of few epochs: at the measured learning rate, and lowered with the number of steps.

    uv run python scripts/benchmarks/few_epochs.py results.jsonl --seeds 0,1 \
        --case photos=photos/ --weights resnet18=resnet18.pth --no-mirror digits

Cases, weights and seeds are given as to recipe.py, also with --study. For each of them the loop of
fine_tuning_loop.py trains 1, 2, 3 and 6 epochs from the same linear probe, at the rate of a feature
change of 1 and, where there are fewer optimizer steps than --settle-steps, at that rate times steps
/ settle steps; the warm-up takes 0.3 of the steps, as in finetune fit for up to 100 steps. The test
images choose nothing.

Results are appended to the file one by one and not computed again. Prints, in Markdown, the means
over all folders, weights and seeds for each number of epochs and rate: test accuracy and log loss
of the last epoch and of the chosen position between probe and last epoch, the log losses after the
temperature that suits the validation images, and their mean difference from the probe's with its
standard error over the cases. docs/design/fine-tuning.md reports results.
"""

import json
import statistics
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.fine_tuning_loop import run_variant
from scripts.benchmarks.lib.comparison.study import load_study
from scripts.benchmarks.lib.loop_optimizer import Variant
from scripts.benchmarks.lib.probe_task import ProbeTask

EPOCHS = (1, 2, 3, 6)
WARMUP = 0.3

Key = tuple[str, str, int, int]  # case, weights, side, seed


def list_variants(steps_per_epoch: int, *, settle_steps: int) -> Iterator[Variant]:
    """Yield the variants: each number of epochs at the full rate, and at the lowered one.

    Args:
        steps_per_epoch: Optimizer steps of an epoch.
        settle_steps: Steps from which the rate is not lowered.
    """
    for epochs in EPOCHS:
        factors = {1.0, min(1.0, epochs * steps_per_epoch / settle_steps)}
        for factor in sorted(factors, reverse=True):
            name = f"e{epochs}" if factor == 1 else f"e{epochs}/{settle_steps}"
            yield Variant(name, feature_change=factor, epochs=epochs, warmup=WARMUP)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the results so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def get_key(line: Mapping[str, Any]) -> Key:
    """Return what the runs of one probe have in common."""
    return line["case"], line["weights"], line["side"], line["seed"]


def run_missing(options: Namespace) -> None:
    """Train what is not in the file yet."""
    study = load_study(
        options.study,
        cases=options.case,
        weights=options.weights,
        others={"seeds": options.seeds},
    )
    pairs = [(case, weights) for case in study.cases for weights in study.weights]
    for seed, (case, weights) in ((seed, pair) for seed in study.seeds for pair in pairs):
        key = (case.name, weights.label, options.side, seed)
        task = ProbeTask(
            case,
            weights,
            side=options.side,
            seed=seed,
            is_mirrored=case.name not in options.no_mirror,
        )
        known = {line["name"] for line in read_lines(options.results) if get_key(line) == key}
        if "probe" not in known:
            val, test = task.probe_scores
            _append(options.results, key, {"name": "probe", "val": val, "test": test})
        for variant in list_variants(task.steps_per_epoch, settle_steps=options.settle_steps):
            if variant.name not in known:
                result = run_variant(task, variant, seed=seed, is_last_only=True)
                _append(options.results, key, result)
        print(*key, flush=True)


def _append(file: Path, key: Key, result: Mapping[str, Any]) -> None:
    line = dict(zip(("case", "weights", "side", "seed"), key, strict=True)) | dict(result)
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def print_summary(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the means over the cases for each variant."""
    probes = {get_key(line): line["test"] for line in lines if line["name"] == "probe"}
    print("| epochs | rate | cases | last epoch | chosen | chosen - probe: accuracy, log loss |")
    print("|---|---|---|---|---|---|")
    values = probes.values()
    print(f"| probe | | {len(probes)} | {_describe([one[0] for one in values], values)} | | |")
    for name in sorted({line["name"] for line in lines} - {"probe"}):
        found = [line for line in lines if line["name"] == name]
        ends = [line["test"][-1] for line in found]
        chosen = [line["chosen"][1] for line in found]
        starts = [probes[get_key(line)] for line in found]
        gains = [
            _describe_differences(
                [one[i] - start[i] for one, start in zip(chosen, starts, strict=True)]
            )
            for i in (0, -1)
        ]
        rates = statistics.fmean(line["feature_change"] for line in found)
        print(
            f"| {found[0]['epochs']} | {rates:.2g} | {len(found)} "
            f"| {_describe([one[0] for one in ends], ends)} "
            f"| {_describe([one[0] for one in chosen], chosen)} | {', '.join(gains)} |"
        )


def _describe(accuracies: Sequence[float], scores: Any) -> str:
    losses = [one[-1] for one in scores]
    return f"{statistics.fmean(accuracies):.3f}, {statistics.fmean(losses):.3f}"


def _describe_differences(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):+.3f} ({error:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the means."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--study", type=Path, help="YAML file of cases, weights and seeds")
    parser.add_argument("--case", action="append", default=[], help="as of recipe.py")
    parser.add_argument("--weights", action="append", default=[], help="as of recipe.py")
    parser.add_argument("--seeds", help="such as 0,1,2")
    parser.add_argument("--side", type=int, default=64, help="side of the crops in pixels")
    parser.add_argument("--settle-steps", type=int, default=36)
    parser.add_argument("--no-mirror", nargs="*", default=[], help="names of cases")
    parser.add_argument("--summary", action="store_true", help="print results only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.summary:
        run_missing(options)
    print_summary(read_lines(options.results))


if __name__ == "__main__":
    main()

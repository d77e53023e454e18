"""Overhead of finetune's loop over a plain one, with a network too small to hide it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from finetune.config.schema import Config
from finetune.types import Reporter
from scripts.benchmarks.lib.loop_profile import Function, profile
from scripts.benchmarks.lib.paired_steps import PART_NAMES, WHOLE, Pair, PairedReporter, PartTimers
from scripts.benchmarks.lib.plain_loop import create_file_loaders, iter_plain_steps
from scripts.benchmarks.lib.stopwatch import Epoch, EpochTurns, Stopwatch
from scripts.benchmarks.lib.training_setup import create_training

SHOWN_FUNCTIONS = 25
LOOPS = ("fit", "plain")

Fit = Callable[[Any], None]  # runs finetune.fit with a reporter


def run_overhead(config: Config, fit: Fit) -> dict[str, Any]:
    """Time and print the parts of an epoch, of a step, and the functions of a step.

    Args:
        config: Config of a small training.
        fit: Function that runs it with a reporter.
    """
    training = create_training(config)
    steps, resolved = training.steps_per_epoch, training.config
    print(
        f"\n{resolved.model.backbone}, {resolved.data.image_size} px, batch {training.batch_size}, "
        f"{resolved.trainer.precision}, unfreeze {resolved.unfreeze.name}: {steps} steps per epoch"
    )
    epochs = run_epoch_turns(config, fit, steps)
    print_epochs(epochs)
    watch = run_paired(config, fit)
    print_pairs("training step", watch.warm(0, steps))
    print_pairs("validation batch", watch.warm(steps, None))
    functions, profiled = profile(fit, steps=steps)
    print_functions(functions, steps=profiled)
    return {
        "epochs": epochs,
        "pairs": [asdict(pair) for pair in watch.pairs],
        "profiled_steps": profiled,
        "functions": [asdict(function) for function in functions[:200]],
    }


def run_epoch_turns(config: Config, fit: Fit, steps: int) -> dict[str, list[dict[str, float]]]:
    """Return the parts of each epoch of both loops, without the first, in milliseconds."""
    training, plain = create_training(config), Stopwatch()
    watch = EpochTurns(
        {"plain": iter_plain_steps(training, create_file_loaders(training), watch=plain)}
    )
    fit(watch)
    return {
        name: [split_epoch(epoch, steps) for epoch in stopwatch.warm]
        for name, stopwatch in (("fit", watch), ("plain", plain))
    }


def split_epoch(epoch: Epoch, steps: int) -> dict[str, float]:
    """Return the milliseconds of the parts of an epoch."""
    ticks = epoch.ticks
    train, val = ticks[steps - 1] - ticks[0], ticks[-1] - ticks[steps]
    seconds = {
        "training batches": train,
        "validation batches": val,
        "first batches and metrics": epoch.seconds - train - val,
        "checkpoints of the last epoch": epoch.between,
        "whole epoch": epoch.whole_seconds,
    }
    return {name: 1000 * value for name, value in seconds.items()}


def run_paired(config: Config, fit: Fit) -> PairedReporter:
    """Return the times of a run in which both loops alternate step by step."""
    training, timers = create_training(config), PartTimers()
    plain = iter_plain_steps(training, create_file_loaders(training), watch=Reporter())
    watch = PairedReporter(plain, timers, training.config.trainer.accelerator)
    with timers.install():
        fit(watch)
    return watch


def print_epochs(epochs: dict[str, list[dict[str, float]]]) -> None:
    """Print the times of the parts of an epoch in both loops."""
    print(f"\n{'epoch, ms':30} {'fit':>9} {'part':>6} {'plain':>9} {'part':>6}  fit - plain")
    whole = {name: _median([turn["whole epoch"] for turn in epochs[name]]) for name in epochs}
    for part in epochs["fit"][0]:
        fit, plain = ([turn[part] for turn in epochs[name]] for name in LOOPS)
        more = [a - b for a, b in zip(fit, plain, strict=True)]
        print(
            f"{part:30} {_median(fit):9.1f} {_median(fit) / whole['fit']:6.1%} "
            f"{_median(plain):9.1f} {_median(plain) / whole['plain']:6.1%}  "
            f"{_median(more):.1f} [{min(more):.1f} to {max(more):.1f}]"
        )


def print_pairs(title: str, pairs: list[Pair]) -> None:
    """Print the times of the parts of a batch in both loops, and their paired differences."""
    if len(pairs) < 2:
        return
    print(
        f"\n{f'{title}, ms ({len(pairs)})':30} {'fit':>9} {'part':>6} {'plain':>9} "
        f"{'part':>6}  fit - plain [quartiles]"
    )
    whole = {loop: _median([getattr(pair, loop)[WHOLE] for pair in pairs]) for loop in LOOPS}
    for part in PART_NAMES:
        fit, plain = ([getattr(pair, loop).get(part, 0.0) for pair in pairs] for loop in LOOPS)
        if not any(fit) and not any(plain):
            continue
        more = [1000 * (a - b) for a, b in zip(fit, plain, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        print(
            f"{part:30} {1000 * _median(fit):9.3f} {_median(fit) / whole['fit']:6.1%} "
            f"{1000 * _median(plain):9.3f} {_median(plain) / whole['plain']:6.1%}  "
            f"{middle:6.3f} [{low:.3f} to {high:.3f}]"
        )


def print_functions(functions: list[Function], *, steps: int) -> None:
    """Print the functions that neither read images nor compute the network."""
    others = [function for function in functions if not function.is_work]
    whole, rest = (sum(function.seconds for function in some) for some in (functions, others))
    print(
        f"\ncProfile of fit: {1000 * whole / steps:.2f} ms per training step, of which "
        f"{1000 * rest / steps:.2f} neither read images nor compute the network:"
    )
    print(f"{'us/step':>8} {'calls':>6}  function, including the built-in functions that it calls")
    for function in others[:SHOWN_FUNCTIONS]:
        calls, seconds = function.calls / steps, function.seconds / steps
        print(f"{1e6 * seconds:8.1f} {calls:6.1f}  {function.short_name[:80]}")


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)

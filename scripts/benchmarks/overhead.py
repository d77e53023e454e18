"""What finetune's loop costs beyond a plain one, where the network is too small to hide it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from loop_profile import Function, profile
from paired import PART_NAMES, WHOLE, Pair, PairedReporter, PartTimers
from plain_loop import file_loaders, plain_steps
from trainings import training_of
from watches import Epoch, EpochTurns, Stopwatch

from finetune.config.schema import Config
from finetune.types import Reporter

SHOWN_FUNCTIONS = 25
LOOPS = ("fit", "plain")

Fit = Callable[[Any], None]  # runs finetune.fit with a reporter


def run_overhead(config: Config, fit: Fit) -> dict[str, Any]:
    """Time and print the parts of an epoch, of a step, and the functions of a step.

    Args:
        config: Of the small training.
        fit: Runs it.
    """
    training = training_of(config)
    steps, made = training.steps_per_epoch, training.config
    print(
        f"\n{made.model.backbone}, {made.data.image_size} px, batch {training.batch_size}, "
        f"{made.trainer.precision}, unfreeze {made.unfreeze.name}: {steps} steps an epoch"
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
    """Return the parts of each epoch of both loops but its first, in milliseconds."""
    training, plain = training_of(config), Stopwatch()
    watch = EpochTurns({"plain": plain_steps(training, file_loaders(training), watch=plain)})
    fit(watch)
    return {
        name: [parts_of_epoch(epoch, steps) for epoch in found.warm]
        for name, found in (("fit", watch), ("plain", plain))
    }


def parts_of_epoch(epoch: Epoch, steps: int) -> dict[str, float]:
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
    """Return the times of a run in which both loops take turns step by step."""
    training, timers = training_of(config), PartTimers()
    plain = plain_steps(training, file_loaders(training), watch=Reporter())
    watch = PairedReporter(plain, timers, training.config.trainer.accelerator)
    with timers.hooked():
        fit(watch)
    return watch


def print_epochs(epochs: dict[str, list[dict[str, float]]]) -> None:
    """Print what the parts of an epoch take in both loops."""
    print(f"\n{'epoch, ms':30} {'fit':>9} {'share':>6} {'plain':>9} {'share':>6}  fit - plain")
    whole = {name: _median([turn["whole epoch"] for turn in epochs[name]]) for name in epochs}
    for part in epochs["fit"][0]:
        fit, plain = ([turn[part] for turn in epochs[name]] for name in LOOPS)
        more = [a - b for a, b in zip(fit, plain, strict=True)]
        print(
            f"{part:30} {_median(fit):9.1f} {_median(fit) / whole['fit']:6.1%} "
            f"{_median(plain):9.1f} {_median(plain) / whole['plain']:6.1%}  "
            f"{_median(more):.1f} [{min(more):.1f} to {max(more):.1f}]"
        )


def print_pairs(what: str, pairs: list[Pair]) -> None:
    """Print the parts of a batch in both loops, and the differences within the pairs."""
    if len(pairs) < 2:
        return
    print(
        f"\n{f'{what}, ms ({len(pairs)})':30} {'fit':>9} {'share':>6} {'plain':>9} "
        f"{'share':>6}  fit - plain [middle half]"
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
    """Print the functions that neither read images nor compute the network, dearest first."""
    others = [function for function in functions if not function.is_work]
    whole, rest = (sum(function.seconds for function in some) for some in (functions, others))
    print(
        f"\ncProfile of fit: {1000 * whole / steps:.2f} ms per training step, of which "
        f"{1000 * rest / steps:.2f} neither read images nor compute the network:"
    )
    print(f"{'us/step':>8} {'calls':>6}  function, with the built-in ones that it calls")
    for function in others[:SHOWN_FUNCTIONS]:
        calls, seconds = function.calls / steps, function.seconds / steps
        print(f"{1e6 * seconds:8.1f} {calls:6.1f}  {function.short_name[:80]}")


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)

"""One network for all images, with the epochs, rates and temperature that the folds found."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from finetune.commands.cross_validation.fold_runs import CrossValidation
from finetune.commands.measurement.refit_choice import (
    RefitChoice,
    read_refit_choice,
    write_refit_choice,
)
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.system import run_folder
from finetune.system.run_folder import RunFolder
from finetune.units import format_count, format_scientific


def check_refit(config: Config) -> None:
    """Check that a network without validation images can have the same settings as the folds.

    Raises:
        ConfigError: A setting chooses something on validation images; the message names it.
    """
    if config.cross_validation.final != "refit":
        return
    if config.lr_schedule.name == "plateau":
        raise ConfigError(
            "cross_validation.final=refit cannot apply to lr_schedule.name=plateau, which lowers "
            "the learning rate by validation images, and the refitted network has none. Choose "
            "another schedule, or set cross_validation.final=ensemble."
        )
    rebalancing = config.imbalance.head_rebalancing
    for key, value, is_set in (
        ("imbalance.head_rebalancing", rebalancing, rebalancing in ("crt", "tau_norm")),
        ("probe.depth", config.probe.depth, config.probe.depth > 1),
    ):
        if is_set:
            raise ConfigError(
                f"cross_validation.final=refit cannot apply to {key}={value}, which is fitted with "
                f"validation images, and the refitted network has none. Set "
                f"cross_validation.final=ensemble."
            )


def choose_refit(
    folds: Sequence[Mapping[str, Any]], *, thresholds: tuple[float, ...] | None = None
) -> RefitChoice:
    """Return the choice of the folds: the median of what they kept, and of their temperatures.

    Args:
        folds: Folds, as ``summarise_folds`` describes them.
        thresholds: Threshold of each label of multi-label images, chosen on all held-out images.
    """
    kept = [fold["kept"] for fold in folds]
    on_line = [entry for entry in kept if entry["position"] is not None]
    is_on_line = 2 * len(on_line) >= len(kept)
    chosen = on_line if is_on_line else [entry for entry in kept if entry["position"] is None]
    position = median(entry["position"] for entry in on_line) if is_on_line else None
    return RefitChoice(
        # at the start of the line are the weights of the probe: epochs would be trained in vain
        num_epochs=0 if position == 0 else round(median(entry["epoch"] for entry in chosen)),
        position=position,
        temperature=math.exp(median(math.log(fold["temperature"]) for fold in folds)),
        thresholds=thresholds,
    )


def choose_measured(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that the folds have measured: medians of numbers, majorities of others.

    Mean and standard deviation of pixels are left out: the network measures those of its own
    images.

    Args:
        folds: Folds, as ``summarise_folds`` describes them.
    """
    values: dict[str, list[Any]] = {}
    for fold in folds:
        for key, value in fold["measured"].items():
            if key != "model.pretrained_cfg":
                values.setdefault(key, []).append(value)
    strengths = [fold["prior_strength"] for fold in folds if fold["prior_strength"] is not None]
    if strengths:
        values["imbalance.post_hoc_strength"] = strengths
    return {key: _combine(found) for key, found in values.items()}


def _combine(values: Sequence[Any]) -> Any:
    """Return the median of numbers, and the most frequent of other JSON values."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return median(values)
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def prepare_refit(
    cross_validation: CrossValidation,
    folds: Sequence[Mapping[str, Any]],
    thresholds: tuple[float, ...] | None,
) -> RunFolder:
    """Return the run folder of the network, created if the folds have chosen anew.

    Args:
        cross_validation: Complete folds.
        folds: Folds, as ``summarise_folds`` describes them.
        thresholds: Threshold of each label of multi-label images; None for one class of each.

    Raises:
        ConfigError: A setting cannot apply to all images.
        StorageError: The disk is full or not writable.
    """
    run = get_refit_run(cross_validation)
    choice = choose_refit(folds, thresholds=thresholds)
    if run_folder.is_run(run.path) and read_refit_choice(run) == choice:
        return run
    shutil.rmtree(run.path, ignore_errors=True)
    measured = {key.replace(".", "__"): value for key, value in choose_measured(folds).items()}
    config = cross_validation.build_part_config(
        run,
        cross_validation={},
        calibration__enabled="off",
        trainer__early_stopping_patience=None,
        trainer__train_eval="off",
        **measured,
    )
    cross_validation.create_part(run, config, cross_validation.manifest)
    write_refit_choice(run, choice)
    return run


def get_refit_run(cross_validation: CrossValidation) -> RunFolder:
    """Return the run folder of the network, which may not exist yet."""
    return RunFolder(cross_validation.run.path / "refit")


def describe_refit(choice: RefitChoice, measured: Mapping[str, Any], num_images: int) -> str:
    """Return the line that says what the network trains with.

    Args:
        choice: Choice of the folds.
        measured: Settings that the folds have measured.
        num_images: Number of training images.
    """
    parts = [format_count(choice.num_epochs, "epoch")] if choice.num_epochs else ["linear probe"]
    if (rate := measured.get("optim.lr")) is not None:
        parts.append(f"learning rate {format_scientific(rate)}")
    if choice.position not in (None, 0, 1):
        parts.append(f"weights {choice.position:.0%} of the way to the last epoch")
    if choice.temperature != 1:
        parts.append(f"temperature {format_scientific(choice.temperature, digits=3)}")
    images = format_count(num_images, "image")
    return f"Refit on all {images}, as the folds chose: {', '.join(parts)}."

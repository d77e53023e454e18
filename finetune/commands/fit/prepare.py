"""Preparation of a new run: images, objects, cost and plan, before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.builders import (
    Training,
    build_training,
    describe_cost,
    fit_batch_to_memory,
    measure_run_cost,
)
from finetune.builders.constraints.early_check import check_before_images
from finetune.builders.constraints.probe_rules import check_probe_settings
from finetune.builders.optimization.schedule_notes import (
    describe_few_steps,
    describe_late_unfreezing,
    describe_schedule_effect,
)
from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.weights_origin import find_weights_origin
from finetune.commands.early_checks.named_files import check_named_files
from finetune.commands.fit.plan import build_plan
from finetune.commands.measurement.input_notes import note_input
from finetune.commands.measurement.monitor_check import check_monitor_labels
from finetune.commands.measurement.normalization import check_normalization
from finetune.commands.prepare_data import RunData, read_data, resolve_data_path, resolve_if_path
from finetune.config.load import diff_from_defaults, replace_values
from finetune.config.schema import Config
from finetune.system import run_folder
from finetune.types import Reporter, Sample


def prepare_run(
    config: Config,
    reporter: Reporter,
    *,
    data: RunData | None = None,
    given: Config | None = None,
    held_out: Mapping[int, Sequence[Sample]] | None = None,
) -> tuple[Training, dict[str, Any], RunData]:
    """Return the training of a new run, its plan and its images; the run folder is not created.

    Args:
        config: Config of the run; with ``data``, as ``load_run_data`` returns it.
        reporter: Receiver of progress and messages.
        data: Images that several runs share, read and split already; None reads those of the
            config.
        given: Config whose settings the plan lists as those of the user; None for ``config``.
        held_out: Images that each fold of a cross-validation holds out; None for a single run.

    Raises:
        FinetuneError: Something that the user can fix.
    """
    path = resolve_data_path(config)
    run_dir = Path(
        config.output or Path("runs") / run_folder.build_default_name(config.model.backbone, path)
    ).expanduser()
    run_folder.check_unused(run_dir)
    check_normalization(config)
    resolved_paths = config
    if data is None:
        check_new_run(config)
        resolved_paths, data = load_run_data(config, reporter)
    training = build_training(
        replace_values(resolved_paths, {"output": str(run_dir)}), data.manifest
    )
    check_probe_settings(given or config, training.config)
    check_monitor_labels(training, held_out)
    note_input(training, data.audit, reporter)
    note_schedule(training, reporter, is_new=True)
    _warn_of_restriction(training, reporter)
    _report_batch_reduction(training, reporter)
    # micro-batches divide the reduced batch size, and not always the requested one
    reduced = replace_values(training.config, {"trainer.batch_size": training.batch_size})
    training = replace(training, config=reduced)
    cost = None
    if not training.is_probe_only:
        is_adjustable = config.trainer.accumulate_grad_batches == "auto"
        training, cost = _measure_cost(training, reporter, is_adjustable=is_adjustable)
    plan = build_plan(
        training,
        overrides=diff_from_defaults(given or config),
        num_rejected=len(data.rejected),
        run_dir=run_dir,
        audit=data.audit,
    )
    if cost is not None:
        plan["cost"] = cost
    reporter.show_plan(plan)
    return training, plan, data


def check_new_run(config: Config) -> None:
    """Check what needs no image, in particular names and contradictions, before any is read.

    Raises:
        ConfigError: A setting does not exist, cannot apply or contradicts another.
        ModelError: The backbone does not exist, or its weights do not.
        RunFolderError: The run folder exists.
    """
    check_named_files(config)
    check_before_images(config)


def load_run_data(config: Config, reporter: Reporter) -> tuple[Config, RunData]:
    """Return the config with absolute paths and the pixel range, and the images of a new run."""
    path = resolve_data_path(config)
    data = read_data(config, path, reporter=reporter)
    values = {
        "data.path": str(path.resolve()),
        "data.pixel_range": data.audit.pixel_range,
        "model.weights": resolve_if_path(config.model.weights),
        "augment.name": resolve_if_path(config.augment.name),
    }
    return replace_values(config, values), data


def note_schedule(training: Training, reporter: Reporter, *, is_new: bool = False) -> None:
    """Note schedules without effect, of the learning rate or of unfreezing.

    Args:
        training: Objects of the run.
        reporter: Receiver of the notes.
        is_new: Whether the run may still have other epochs: too few steps are noted, too.
    """
    describers = [describe_schedule_effect, describe_late_unfreezing]
    if is_new:
        describers.append(describe_few_steps)
    for remark in (describe(training) for describe in describers):
        if remark is not None:
            reporter.note(remark)


def _warn_of_restriction(training: Training, reporter: Reporter) -> None:
    """Warn of weights whose licence allows no commercial use."""
    origin = find_weights_origin(ModelCard.from_json(training.module.card))
    if origin.is_non_commercial:
        reporter.warn(origin.describe_restriction())


def _measure_cost(
    training: Training, reporter: Reporter, *, is_adjustable: bool
) -> tuple[Training, dict[str, Any]]:
    """Return the training with micro-batches that fit into the memory, and its cost.

    Args:
        training: Objects of the run.
        reporter: Receiver of progress and messages.
        is_adjustable: Whether the number of accumulated micro-batches may change.
    """
    reporter.start("measuring a few steps", 1)
    try:
        cost = measure_run_cost(training)
    finally:
        reporter.finish()
    if is_adjustable:
        training = fit_batch_to_memory(training, cost)
        accumulate = training.config.trainer.accumulate_grad_batches
        if accumulate > 1:
            reporter.note(
                f"A batch of {training.batch_size} does not fit into the memory: it is split into "
                f"{accumulate} micro-batches with accumulated gradients."
                f"{describe_batch_norm_effect(training)}"
            )
    return training, describe_cost(training, cost)


def describe_batch_norm_effect(training: Training) -> str:
    """Return a sentence on BatchNorm statistics of micro-batches; empty if they are frozen."""
    is_live = training.config.model.batch_norm != "frozen"
    return " BatchNorm statistics are computed per micro-batch." if is_live else ""


def _report_batch_reduction(training: Training, reporter: Reporter) -> None:
    requested = training.config.trainer.batch_size
    if training.batch_size == requested:
        return
    is_resampled = training.images_per_epoch != len(training.data.train)
    source = "an epoch draws" if is_resampled else "there are"
    reporter.note(
        f"Batch size {training.batch_size} instead of {requested}: {source} "
        f"{training.images_per_epoch} training images."
    )

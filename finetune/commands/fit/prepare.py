"""What a new run will be: its images, its objects, what it costs; nothing of it is written yet."""

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
from finetune.commands.fit.plan import build_plan
from finetune.commands.prepare_data import RunData, read_data, resolve_data_path, resolve_if_path
from finetune.config.load import diff_from_defaults, replace_values
from finetune.config.schema import Config
from finetune.system import run_folder
from finetune.types import Reporter, Split


def prepare_run(config: Config, reporter: Reporter) -> tuple[Training, dict[str, Any], RunData]:
    """Return the training, its plan and what it is made of; nothing of the run is written yet."""
    path = resolve_data_path(config)
    run_dir = Path(
        config.output or Path("runs") / run_folder.build_default_name(config.model.backbone, path)
    ).expanduser()
    run_folder.check_unused(run_dir)
    asked = config
    config, data = load_run_data(config, reporter)
    config = replace_values(config, {"output": str(run_dir)})
    training = build_training(config, data.manifest)
    _report_batch_reduction(training, reporter)
    # as it will be: the parts that divide it need not divide what was asked for
    shrunk = replace_values(training.config, {"trainer.batch_size": training.batch_size})
    training = replace(training, config=shrunk)
    cost = None
    if not training.is_probe_only:
        training, cost = _measure_cost(training, asked, reporter)
    plan = build_plan(
        training,
        overrides=diff_from_defaults(asked),
        num_rejected=len(data.rejected),
        run_dir=run_dir,
    )
    if cost is not None:
        plan["cost"] = cost
    reporter.show_plan(plan)
    return training, plan, data


def load_run_data(config: Config, reporter: Reporter) -> tuple[Config, RunData]:
    """Return the config with whole paths, and the images of a new run."""
    path = resolve_data_path(config)
    data = read_data(config, path, reporter=reporter)
    whole = {
        "data.path": str(path.resolve()),
        "model.weights": resolve_if_path(config.model.weights),
        "augment.name": resolve_if_path(config.augment.name),
    }
    return replace_values(config, whole), data


def _measure_cost(
    training: Training, requested_config: Config, reporter: Reporter
) -> tuple[Training, dict[str, Any]]:
    """Return what the run will cost, and the training with a batch that fits into the memory."""
    reporter.start("measuring a few steps", 1)
    try:
        cost = measure_run_cost(training)
    finally:
        reporter.finish()
    if requested_config.trainer.accumulate_grad_batches == "auto":
        training = fit_batch_to_memory(training, cost)
        parts = int(training.config.trainer.accumulate_grad_batches)
        if parts > 1:
            reporter.note(
                f"A batch of {training.batch_size} does not fit into the memory: it runs in "
                f"{parts} parts, and their gradients make one step.{describe_batch_norm_effect(training)}"
            )
    return training, describe_cost(training, cost)


def describe_batch_norm_effect(training: Training) -> str:
    """Say what of a batch does not survive its division."""
    live = training.config.model.batch_norm != "frozen"
    return " BatchNorm takes its statistics from each part." if live else ""


def _report_batch_reduction(training: Training, reporter: Reporter) -> None:
    asked = training.config.trainer.batch_size
    if training.batch_size != asked:
        num_images = len(training.manifest.get_samples(Split.TRAIN))
        drawn = "" if training.images_per_epoch == num_images else " that an epoch draws"
        reporter.note(
            f"Batch size {training.batch_size} instead of {asked}: there are "
            f"{training.images_per_epoch} training images{drawn}."
        )

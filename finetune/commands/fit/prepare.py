"""What a new run will be: its images, its objects, what it costs; nothing of it is written yet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.builders import Training, build_training, describe_cost, measure, with_fitting_batch
from finetune.commands.fit.plan import describe
from finetune.commands.prepare_data import RunData, absolute, data_path, read_data
from finetune.config.load import differences, replaced
from finetune.config.schema import Config
from finetune.system import run_folder
from finetune.types import Reporter, Split


def planned(config: Config, reporter: Reporter) -> tuple[Training, dict[str, Any], RunData]:
    """Return the training, its plan and what it is made of; nothing of the run is written yet."""
    path = data_path(config)
    run_dir = Path(
        config.output or Path("runs") / run_folder.default_name(config.model.backbone, path)
    ).expanduser()
    run_folder.check_free(run_dir)
    asked = config
    config, data = with_images(config, reporter)
    config = replaced(config, {"output": str(run_dir)})
    training = build_training(config, data.manifest)
    _say_what_shrank(training, reporter)
    # as it will be: the parts that divide it need not divide what was asked for
    shrunk = replaced(training.config, {"trainer.batch_size": training.batch_size})
    training = replace(training, config=shrunk)
    cost = None
    if not training.is_probe_only:
        training, cost = _measured_cost(training, asked, reporter)
    plan = describe(
        training, changed=differences(asked), num_rejected=len(data.rejected), run_dir=run_dir
    )
    if cost is not None:
        plan["cost"] = cost
    reporter.plan(plan)
    return training, plan, data


def with_images(config: Config, reporter: Reporter) -> tuple[Config, RunData]:
    """Return the config with whole paths, and the images of a new run."""
    path = data_path(config)
    data = read_data(config, path, reporter=reporter)
    whole = {
        "data.path": str(path.resolve()),
        "model.weights": absolute(config.model.weights),
        "augment.name": absolute(config.augment.name),
    }
    return replaced(config, whole), data


def _measured_cost(
    training: Training, asked: Config, reporter: Reporter
) -> tuple[Training, dict[str, Any]]:
    """Return what the run will cost, and the training with a batch that fits into the memory."""
    reporter.start("measuring a few steps", 1)
    try:
        cost = measure(training)
    finally:
        reporter.finish()
    if asked.trainer.accumulate == "auto":
        training = with_fitting_batch(training, cost)
        parts = int(training.config.trainer.accumulate)
        if parts > 1:
            reporter.note(
                f"A batch of {training.batch_size} does not fit into the memory: it runs in "
                f"{parts} parts, and their gradients make one step.{of_statistics(training)}"
            )
    return training, describe_cost(training, cost)


def of_statistics(training: Training) -> str:
    """Say what of a batch does not survive its division."""
    live = training.config.model.batch_norm != "frozen"
    return " BatchNorm takes its statistics from each part." if live else ""


def _say_what_shrank(training: Training, reporter: Reporter) -> None:
    asked = training.config.trainer.batch_size
    if training.batch_size != asked:
        num_images = len(training.manifest.of(Split.TRAIN))
        drawn = "" if training.images_per_epoch == num_images else " that an epoch draws"
        reporter.note(
            f"Batch size {training.batch_size} instead of {asked}: there are "
            f"{training.images_per_epoch} training images{drawn}."
        )

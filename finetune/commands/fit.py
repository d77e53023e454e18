"""Fine-tune a backbone on a folder of images: start, resume, or join as another process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune import run_folder
from finetune.build import (
    Training,
    build_training,
    describe_cost,
    measure,
    with_cache,
    with_fitting_batch,
)
from finetune.bundle import Card, read_card
from finetune.commands.launch_check import checked_launch
from finetune.commands.plan import describe
from finetune.commands.read_data import data_path, read_data
from finetune.commands.read_run import require_files, stored_config, stored_manifest
from finetune.commands.train import (
    epochs_done,
    halved_batch,
    is_complete,
    open_tracking,
    run_trainer,
    train,
)
from finetune.config.load import (
    build_config,
    changes,
    differences,
    dump_config,
    read_config_file,
    replaced,
)
from finetune.config.schema import Config
from finetune.data.manifest import write_manifest, write_rejected
from finetune.errors import ConfigError, OutOfMemoryError, RunFolderError
from finetune.machine import release_memory
from finetune.run_folder import RunFolder
from finetune.storage import write_text
from finetune.training.launch import Launch, outer_launch
from finetune.training.module import CARD_KEY
from finetune.types import Reporter, Split

CHANGEABLE = (
    "trainer.epochs",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate",
    "trainer.accelerator",
    "trainer.precision",
    "trainer.early_stopping",
    "trainer.deterministic",
    "trainer.compile",
    "model.grad_checkpointing",
    "data.path",
    "data.cache",
    "cache.",
    "data.num_workers",
    "tracking.",
)
"""What may differ when a run goes on; anything else would make it another run."""

_PREPARE_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a finished run comes to.

    Attributes:
        run_dir: The run folder.
        seconds: Wall time of this call.
        metrics: Split to metrics of the best model: "val", and "test" where there is one.
        plan: What was done.
    """

    run_dir: Path
    seconds: float
    metrics: Mapping[str, Mapping[str, float]]
    plan: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run_dir": str(self.run_dir),
            "seconds": round(self.seconds, 3),
            "metrics": {split: dict(values) for split, values in self.metrics.items()},
            "plan": dict(self.plan),
        }


def fit(config: Config, *, reporter: Reporter | None = None) -> FitResult:
    """Train a new run and return what it comes to.

    Under torchrun or srun every process calls this; rank 0 prepares the run folder and the others
    join it.

    Raises:
        FinetuneError: Anything that the user can mend.
        KeyboardInterrupt: The user stopped it; the run folder can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    launch = checked_launch(config)
    if launch is not None and launch.rank > 0:
        return _join_launch(config, launch, start)
    training, plan, rejected = _planned(config, reporter)
    run = run_folder.create(
        Path(plan["run_dir"]),
        config=dump_config(training.config),
        manifest=write_manifest(training.manifest),
        rejected=rejected,
    )
    if launch is not None:
        run_folder.announce(run, launch=launch.name)
    metrics = _trained(run, training, reporter=reporter, launch=launch)
    return FitResult(run.path, time.monotonic() - start, metrics, plan)


def plan_fit(config: Config, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Return the plan of a run, show it, and write nothing."""
    return _planned(config, reporter or Reporter())[1]


def resume(
    path: Path,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    reporter: Reporter | None = None,
) -> FitResult:
    """Go on with a run from its last checkpoint, to the same end as if it had not stopped.

    Args:
        path: The run folder.
        assignments: Dotted key to value that differ from the run's config.
        flags: The same from options; only ``CHANGEABLE`` keys may differ.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    run = run_folder.existing(path)
    stored = stored_config(run)
    config = build_config(
        read_config_file(run.config),
        assignments=assignments,
        flags=flags,
        file=str(run.config),
    )
    _check_changes(stored, config)
    if is_complete(run, config):
        reporter.note("The run is complete; nothing is left to do. Longer: add --epochs.")
        return FitResult(run.path, time.monotonic() - start, _stored_metrics(run), {})
    _check_epochs(run, config)
    training = _rebuilt(run, config)
    changed = {key: after for key, (_, after) in changes(stored, config).items()}
    plan = describe(training, changed=changed, num_rejected=0, run_dir=run.path)
    reporter.plan(plan)
    reporter.note(_resumes_from(run))
    launch = outer_launch()
    if launch is None or launch.rank == 0:
        write_text(run.config, dump_config(training.config))
        run_folder.point_latest_at(run)
    metrics = _trained(run, training, reporter=reporter, launch=launch)
    return FitResult(run.path, time.monotonic() - start, metrics, plan)


def join(path: Path) -> None:
    """Take part in a run that rank 0 of this machine started."""
    run = run_folder.existing(path)
    config = stored_config(run)
    tracking = open_tracking(run, config, Reporter(), rank=1)
    training = with_cache(_rebuilt(run, config), reporter=Reporter())
    try:
        run_trainer(run, training, tracking=tracking, reporter=Reporter())
    except OutOfMemoryError as error:
        halved_batch(training, error)  # raises: the other processes cannot know of it
        raise


def _trained(
    run: RunFolder, training: Training, *, reporter: Reporter, launch: Launch | None
) -> dict[str, dict[str, float]]:
    """Train; after running out of memory go on from the last checkpoint with half the batch."""
    while True:
        try:
            return train(run, training, reporter=reporter, launch=launch)
        except OutOfMemoryError as error:
            config = halved_batch(training, error)
            parts = int(config.trainer.accumulate)
        # outside of the handler: there the error would keep the tensors of the failed step alive
        release_memory()
        reporter.note(
            f"Out of memory: the batch of {training.batch_size} now runs in {parts} parts, whose "
            f"gradients make one step; the epoch begins again.{_of_statistics(training)}"
        )
        write_text(run.config, dump_config(config))
        training = _rebuilt(run, config)


def _planned(config: Config, reporter: Reporter) -> tuple[Training, dict[str, Any], str]:
    """Return the training, its plan and the list of rejected files; nothing is written yet."""
    path = data_path(config)
    run_dir = Path(
        config.output or Path("runs") / run_folder.default_name(config.model.backbone, path)
    ).expanduser()
    run_folder.check_free(run_dir)
    manifest, rejected = read_data(config, path, reporter=reporter)
    asked = config
    config = replaced(
        config,
        {
            "data.path": str(path.resolve()),
            "model.weights": _absolute(config.model.weights),
            "augment.name": _absolute(config.augment.name),
            "output": str(run_dir),
        },
    )
    training = build_training(config, manifest)
    _say_what_shrank(training, reporter)
    # as it will be: the parts that divide it need not divide what was asked for
    shrunk = replaced(training.config, {"trainer.batch_size": training.batch_size})
    training, cost = _measured_cost(replace(training, config=shrunk), asked, reporter)
    plan = describe(
        training, changed=differences(asked), num_rejected=len(rejected), run_dir=run_dir
    )
    plan["cost"] = cost
    reporter.plan(plan)
    return training, plan, write_rejected(rejected)


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
                f"{parts} parts, and their gradients make one step.{_of_statistics(training)}"
            )
    return training, describe_cost(training, cost)


def _of_statistics(training: Training) -> str:
    """Say what of a batch does not survive its division."""
    live = training.config.model.batch_norm != "frozen"
    return " BatchNorm takes its statistics from each part." if live else ""


def _rebuilt(run: RunFolder, config: Config) -> Training:
    """Return the training of a run from its folder: the same split, the same network."""
    resumed = _checkpoint_card(run.last) if run.last.is_file() else None
    manifest = stored_manifest(run, config)
    require_files(manifest, manifest.samples)
    return build_training(config, manifest, resumed=resumed, going_on=True)


def _checkpoint_card(file: Path) -> Card:
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return Card.from_json(checkpoint[CARD_KEY])
    except RunFolderError as error:
        raise RunFolderError(f"{file}: {error}") from error
    except Exception as error:
        raise RunFolderError(
            f"{file} is damaged ({type(error).__name__}). Remove it to start the run's first epoch "
            f"again, or put a copy in its place."
        ) from error


def _resumes_from(run: RunFolder) -> str:
    if not run.last.is_file():
        return "No epoch was finished before; the run starts with its first."
    return f"Goes on after epoch {epochs_done(run.last)}."


def _stored_metrics(run: RunFolder) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = read_card(run.bundle)["facts"]["metrics"]
    return metrics


def _check_changes(stored: Config, config: Config) -> None:
    for key, (before, after) in changes(stored, config).items():
        sections = tuple(name for name in CHANGEABLE if name.endswith("."))
        if key not in CHANGEABLE and not key.startswith(sections):
            raise ConfigError(
                f"{key} is {before!r} in the run and cannot become {after!r}: it would be another "
                f"run. Leave it out, or start a new run without --resume."
            )


def _check_epochs(run: RunFolder, config: Config) -> None:
    done = epochs_done(run.last) if run.last.is_file() else 0
    if int(config.trainer.epochs) < done:
        raise ConfigError(
            f"trainer.epochs={config.trainer.epochs}: the run has {done} epochs behind it already. "
            f"Give more than that, or leave it out."
        )


def _absolute(name: str) -> str:
    """Return a file or folder by its whole path, so that a resume finds it from anywhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and ("/" in name or path.is_file()) else name


def _say_what_shrank(training: Training, reporter: Reporter) -> None:
    asked = training.config.trainer.batch_size
    if training.batch_size != asked:
        reporter.note(
            f"Batch size {training.batch_size} instead of {asked}: there are "
            f"{len(training.manifest.of(Split.TRAIN))} training images."
        )


def _join_launch(config: Config, launch: Launch, start: float) -> FitResult:
    assert config.output is not None, "checked before"
    path = Path(config.output).expanduser()
    run = run_folder.wait_for(path, launch=launch.name, timeout_seconds=_PREPARE_SECONDS)
    join(run.path)
    return FitResult(run.path, time.monotonic() - start, {}, {})

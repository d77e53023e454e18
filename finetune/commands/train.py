"""The middle of a run, new or resumed: train, measure the best model, write it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import torch

from finetune.build import Training, batch_in_memory, trainer_options, with_cache
from finetune.bundle import load_model, save_bundle
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.errors import OutOfMemoryError
from finetune.inference.evaluation import evaluate_files
from finetune.inference.predictor import Predictor
from finetune.run_folder import RunFolder
from finetune.storage import write_text
from finetune.training.callbacks import Compile, Progress, Unfreeze
from finetune.training.checkpoints import stopped_early
from finetune.training.launch import Launch, other_ranks
from finetune.training.loggers import MetricsCsv, Tracking, create_wandb_logger
from finetune.training.trainer import create_trainer
from finetune.training.trainer import fit as lightning_fit
from finetune.types import Evaluation, Reporter, Split

_MEASURED_BATCH = 32


def train(
    run: RunFolder, training: Training, *, reporter: Reporter, launch: Launch | None
) -> dict[str, dict[str, float]]:
    """Train, then measure the best model and write it; return its metrics on rank 0."""
    try:
        if not _is_trained(run, training.config):
            training = with_cache(training, reporter=reporter)
    except KeyboardInterrupt:
        reporter.note(_stopped(run))
        raise
    tracking = open_tracking(
        run, training.config, reporter, rank=0 if launch is None else launch.rank
    )
    count = int(training.config.trainer.devices) - 1 if launch is None else 0
    others: AbstractContextManager[None] = (
        other_ranks(run.path, count=count) if count else nullcontext()
    )
    try:
        with others:
            run_trainer(run, training, tracking=tracking, reporter=reporter)
    except KeyboardInterrupt:
        reporter.note(_stopped(run))
        raise
    if launch is not None and launch.rank > 0:
        return {}
    evaluations = _measured(run, training, reporter)
    metrics = {split: dict(result.metrics) for split, result in evaluations.items()}
    _write_bundle(run, metrics)
    tracking.finish(evaluations, classes=training.manifest.classes, bundle=run.bundle)
    write_text(run.done, f"{training.config.trainer.epochs}\n")
    return metrics


def run_trainer(
    run: RunFolder, training: Training, *, tracking: Tracking, reporter: Reporter
) -> None:
    """Train to the last epoch, from the last checkpoint if there is one; nothing if it is done."""
    if _is_trained(run, training.config):
        return
    checkpoint = run.last if run.last.is_file() else None
    compiling = [Compile(reporter, batch_size=batch_in_memory(training))]
    trainer = create_trainer(
        run.path,
        trainer_options(training.config),
        callbacks=[
            Unfreeze(),
            *(compiling if training.config.trainer.compile else []),
            Progress(reporter),
            tracking.csv,
        ],
        loggers=tracking.loggers,
    )
    lightning_fit(trainer, training.module, training.data, checkpoint=checkpoint)


def _stopped(run: RunFolder) -> str:
    return f"Stopped. Go on with: finetune fit --resume {run.path}"


def halved_batch(training: Training, error: OutOfMemoryError) -> Config:
    """Return the config of a run whose batches hold half as many images, or fewer.

    Raises:
        OutOfMemoryError: One image at a time is too much already, or other processes would not
            know of it.
    """
    config = training.config
    batch, parts = batch_in_memory(training), int(config.trainer.accumulate)
    most = batch // (2 if config.augment.mixup else 1)  # a pair is mixed
    smaller = next((n for n in range(2, most + 1) if batch % n == 0), None)
    if smaller is None:
        few = "One image at a time does" if batch == 1 else f"{batch} images, mixed in pairs, do"
        raise OutOfMemoryError(
            f"{error} {few} not fit. Take a smaller --image-size or --backbone, or "
            f"model.grad_checkpointing=true."
        )
    if int(config.trainer.devices) * config.trainer.num_nodes > 1:
        raise OutOfMemoryError(
            f"{error} Go on with a smaller batch in memory: "
            f"finetune fit --resume {config.output} trainer.accumulate={parts * smaller}"
        )
    return replaced(config, {"trainer.accumulate": parts * smaller})


def _measured_batch(training: Training) -> int:
    """Return as many images as ``evaluate`` takes, or fewer where a batch did not fit."""
    whole = int(training.config.trainer.accumulate) == 1
    return _MEASURED_BATCH if whole else min(_MEASURED_BATCH, batch_in_memory(training))


def _measured(run: RunFolder, training: Training, reporter: Reporter) -> dict[str, Evaluation]:
    """Return the best model's evaluations through the very code that ``evaluate`` uses."""
    manifest = training.manifest
    predictor = Predictor(
        load_model(run.best),
        device=training.config.trainer.accelerator,
        batch_size=_measured_batch(training),
        num_workers=int(training.config.data.num_workers),
        max_pixels=int(training.config.data.max_megapixels * 1e6),
    )
    results = {}
    for split in (Split.VAL, Split.TEST):
        samples = manifest.of(split)
        if samples:
            reporter.start(f"measuring on {split.value}", len(samples))
            results[split.value] = evaluate_files(
                predictor,
                manifest.paths(samples),
                manifest.labels(samples),
                on_batch=reporter.advance,
            )
            reporter.finish()
    return results


def _write_bundle(run: RunFolder, metrics: Mapping[str, Mapping[str, float]]) -> None:
    best = load_model(run.best)
    card = replace(best.card, facts={**best.card.facts, "metrics": metrics})
    save_bundle(best.network, card, run.bundle)


def open_tracking(run: RunFolder, config: Config, reporter: Reporter, *, rank: int) -> Tracking:
    """Return the run's trackers; rank 0 alone continues the run's one W&B run."""
    tracking = config.tracking
    metrics = MetricsCsv(run.metrics, reporter=reporter)
    if tracking.wandb == "off" or rank > 0:
        return Tracking(metrics)
    if not run.wandb_id.is_file():
        write_text(run.wandb_id, uuid4().hex[:8] + "\n")
    wandb = create_wandb_logger(
        run.path,
        run_id=run.wandb_id.read_text().strip(),
        mode=tracking.wandb,
        project=tracking.project,
        entity=tracking.entity,
        name=tracking.name or run.path.name,
        tags=tracking.tags,
        config=config.model_dump(mode="json"),
    )
    return Tracking(metrics, wandb)


def epochs_done(file: Path) -> int:
    """Return how many epochs a checkpoint has behind it."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return int(checkpoint["epoch"]) + 1


def is_complete(run: RunFolder, config: Config) -> bool:
    """Tell whether a run has trained, measured, written and tracked everything that was asked."""
    if not (run.done.is_file() and run.bundle.is_dir()):
        return False
    return run.done.read_text(encoding="utf-8").strip() == str(config.trainer.epochs)


def _is_trained(run: RunFolder, config: Config) -> bool:
    if not run.last.is_file():
        return False
    state = torch.load(run.last, map_location="cpu", weights_only=True, mmap=True)
    if int(state["epoch"]) + 1 >= int(config.trainer.epochs):
        return True
    return stopped_early(state, config.trainer.early_stopping)

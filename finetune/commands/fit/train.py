"""The middle of a run, new or resumed: train, measure the best model, write it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from finetune.builders import (
    Training,
    batch_in_memory,
    is_probe_only,
    num_processes,
    trainer_options,
    with_cache,
)
from finetune.commands.fit.finalize import Measured, measure_best, write_bundle
from finetune.commands.inspect.features import note_findings
from finetune.commands.stored_run import stored_manifest
from finetune.config.load import replaced
from finetune.config.schema import Config
from finetune.distributed.launch import Launch
from finetune.distributed.local_launcher import own_meeting
from finetune.distributed.peer_errors import LostProcessError
from finetune.distributed.rendezvous import Meeting
from finetune.distributed.signals import StopRequest
from finetune.errors import OutOfMemoryError
from finetune.probe.head_rebalancing import is_rebalanced, rebalance
from finetune.probe.linear_probe import fit_probe, is_probe, save_probe
from finetune.system.files import write_text
from finetune.system.hardware import process_device
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.checkpoint import read_checkpoint, stopped_early, stored_position
from finetune.training.callbacks.freeze_layers import AverageWeights, Compile, Progress, Unfreeze
from finetune.training.loggers.experiment import MetricsCsv, Tracking, create_wandb_logger
from finetune.training.trainer import create_trainer
from finetune.training.trainer import fit as lightning_fit
from finetune.types import Reporter


def train(
    run: RunFolder, training: Training, *, reporter: Reporter, met: Meeting | None
) -> Measured | None:
    """Train, then measure the best model and write it; return its numbers on rank 0.

    Args:
        run: The run folder.
        training: What trains.
        reporter: Told of everything.
        met: The other processes, where a launcher has started them.
    """
    rank = 0 if met is None else met.launch.rank
    try:
        tracking = _trained(run, training, reporter=reporter, met=met)
        if met is not None and rank > 0:
            met.leave()
            return None
        _with_head_step(run, training, reporter)
        # which the probe may have told of further copies
        manifest = stored_manifest(run, training.config)
        measured = measure_best(run, replace(training, manifest=manifest), reporter)
    except KeyboardInterrupt:
        reporter.note(f"Stopped. Go on with: finetune fit --resume {run.path}")
        raise
    except LostProcessError:
        reporter.note(f"Go on with: finetune fit --resume {run.path}")
        raise
    if not training.is_probe_only and is_probe(run.best):
        reporter.note(
            f"No epoch beat the probe on val/{training.config.trainer.monitor}: the best model is "
            f"the probe's. Try a lower optim.lr, or more epochs."
        )
    write_bundle(run, measured)
    tracking.finish(measured.evaluations, classes=training.manifest.classes, bundle=run.bundle)
    write_text(run.done, f"{training.config.trainer.epochs}\n")
    if met is not None:
        met.leave()
    return measured


def _with_head_step(run: RunFolder, training: Training, reporter: Reporter) -> None:
    """Give the best model the classifier that was asked for, once."""
    way = training.config.imbalance.head
    if way not in ("crt", "tau_norm") or is_rebalanced(run.best):
        return
    assert training.probe is not None, "looked for by who builds"
    device = process_device(training.config.trainer.accelerator, 0)
    found = rebalance(run.best, way, training.probe, device=device, reporter=reporter)
    how = f"tau {found.tau:g}" if found.tau is not None else f"penalty {found.penalty:.1g}"
    gain = f"balanced accuracy on val {found.before:.4f} -> {found.after:.4f}"
    if found.tau == 0:
        gain = f"no tau beats balanced accuracy {found.before:.4f} on val; it stays as it was"
    reporter.note(f"The classifier after {way} ({how}): {gain}.")


def _trained(
    run: RunFolder, training: Training, *, reporter: Reporter, met: Meeting | None
) -> Tracking:
    """Train to the last epoch with all processes, and return the trackers."""
    rank = 0 if met is None else met.launch.rank
    is_trained = _is_trained(run, training.config)
    if not is_trained and not training.is_probe_only:
        training = with_cache(training, reporter=reporter)
    tracking = open_tracking(run, training.config, reporter, rank=rank)
    if not is_trained:
        try:
            with _together(run, training, met) as all_of_them:
                score = _probed(run, training, tracking, reporter, all_of_them)
                if not training.is_probe_only:
                    launch = None if all_of_them is None else all_of_them.launch
                    with nullcontext() if all_of_them is None else all_of_them.silence():
                        _run_trainer(run, training, tracking, reporter, launch, baseline=score)
        except BaseException as error:
            tracking.break_off(in_order=isinstance(error, StopRequest | OutOfMemoryError))
            raise
    return tracking


@contextmanager
def _together(run: RunFolder, training: Training, met: Meeting | None) -> Iterator[Meeting | None]:
    """Bring all processes of the run into one group; yield them, or None for one alone."""
    config = training.config
    count = 0 if met is not None else int(config.trainer.devices) - 1
    if met is None and not count:
        yield None
        return
    timeout = timedelta(seconds=config.trainer.collective_timeout_seconds)
    others: AbstractContextManager[Meeting] = (
        own_meeting(run.path, count=count, timeout=timeout) if met is None else nullcontext(met)
    )
    with others as all_of_them:
        if met is None:
            hand_out_run(all_of_them, run, training)
        backend = "nccl" if config.trainer.accelerator == "cuda" else "gloo"
        with all_of_them.group(backend=backend):
            yield all_of_them


def _probed(
    run: RunFolder,
    training: Training,
    tracking: Tracking,
    reporter: Reporter,
    met: Meeting | None,
) -> float | None:
    """Begin a run with its probe, which is the best model so far; return its score."""
    plan = training.probe
    if plan is None or run.last.is_file():
        return None
    trainer = training.config.trainer
    device = process_device(trainer.accelerator, 0 if met is None else met.launch.local_rank)
    module = training.module
    found = fit_probe(module.classifier, plan, device=device, met=met, reporter=reporter)
    if found is None:
        assert met is not None, "rank 0 finds something"
        return float(met.receive("probe"))  # however long the fit takes
    reporter.probe(found.as_json())
    note_findings(run, training, found, reporter)
    row = {f"val/{name}": float(value) for name, value in found.metrics.items()}
    row["train/loss"] = found.train_loss
    # as the epoch before the first, or the only one
    tracking.csv.record(row, epoch=0 if training.is_probe_only else -1, step=0)
    save_probe(module, module.card, found, run.best)
    score = row[f"val/{trainer.monitor}"]
    if met is not None:
        met.hand_out("probe", score)
    return score


def hand_out_run(met: Meeting, run: RunFolder, training: Training) -> None:
    """Tell the other processes what is trained; they need no weights, which DDP sends them."""
    told = {
        "run_dir": str(run.path.resolve()),
        "config": training.config.model_dump(mode="json"),
        "card": training.module.card,
        "position": where(run),
    }
    met.hand_out("run", told)


def where(run: RunFolder) -> list[int] | None:
    """Return the epochs and steps that a run has behind it, as all processes must see them."""
    position = stored_position(run)
    return None if position is None else [position.epochs, position.steps]


def _run_trainer(
    run: RunFolder,
    training: Training,
    tracking: Tracking,
    reporter: Reporter,
    launch: Launch | None,
    *,
    baseline: float | None,
) -> None:
    """Train to the last epoch, from the last checkpoint if there is one."""
    checkpoint = run.last if run.last.is_file() else None
    size_at = training.data.train.transform.size_at
    compiling = [Compile(reporter, batch_size=batch_in_memory(training), size_at=size_at)]
    trainer = create_trainer(
        run.path,
        trainer_options(training.config),
        callbacks=[
            Unfreeze(),
            *(compiling if training.config.trainer.compile else []),
            AverageWeights(),
            Progress(reporter),
            tracking.csv,
        ],
        loggers=tracking.loggers,
        launch=launch,
        baseline=baseline,
    )
    lightning_fit(trainer, training.module, training.data, checkpoint=checkpoint)


def halved_batch(training: Training, error: OutOfMemoryError) -> Config:
    """Return the config of a run whose batches hold half as many images, or fewer.

    Raises:
        OutOfMemoryError: One image at a time is too much already, or other processes would not
            know of it.
    """
    config = training.config
    batch, parts = batch_in_memory(training), int(config.trainer.accumulate)
    most = batch // training.fewest_images
    smaller = next((n for n in range(2, most + 1) if batch % n == 0), None)
    if smaller is None:
        few = "One image at a time does" if batch == 1 else f"{batch} images at a time do"
        raise OutOfMemoryError(
            f"{error} {few} not fit. Take a smaller --image-size or --backbone, or "
            f"model.grad_checkpointing=true."
        )
    if num_processes(config) > 1:
        raise OutOfMemoryError(
            f"{error} Go on with a smaller batch in memory: "
            f"finetune fit --resume {config.output} trainer.accumulate={parts * smaller}"
        )
    return replaced(config, {"trainer.accumulate": parts * smaller})


def open_tracking(run: RunFolder, config: Config, reporter: Reporter, *, rank: int) -> Tracking:
    """Return the run's trackers; rank 0 alone continues the run's one W&B run."""
    tracking = config.tracking
    metrics = MetricsCsv(run.metrics, reporter=reporter)
    position = stored_position(run)
    epochs = 0 if position is None else position.epochs
    metrics.forget_after(epochs)
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
    tracking_run = Tracking(metrics, wandb, run.wandb_epochs)
    tracking_run.log_again(epochs=epochs)
    return tracking_run


def is_complete(run: RunFolder, config: Config) -> bool:
    """Tell whether a run has trained, measured, written and tracked everything that was asked."""
    if not (run.done.is_file() and run.bundle.is_dir()):
        return False
    return run.done.read_text(encoding="utf-8").strip() == str(config.trainer.epochs)


def _is_trained(run: RunFolder, config: Config) -> bool:
    if is_probe_only(config):
        return run.best.is_file()
    position = stored_position(run)
    if position is None:
        return False
    if position.epochs >= int(config.trainer.epochs):
        return True
    return stopped_early(read_checkpoint(run.last), config.trainer.early_stopping)

"""The middle of a run, new or resumed: train, measure the best model, write it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from finetune.builders import (
    Training,
    build_trainer_options,
    compute_world_size,
    enable_cache,
    get_micro_batch_size,
    is_probe_only,
)
from finetune.commands.fit.finalize import FinalEvaluation, evaluate_best_model, write_bundle
from finetune.commands.inspect.features import record_probe_findings
from finetune.commands.stored_run import read_stored_manifest
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.distributed.launch import LaunchInfo
from finetune.distributed.local_launcher import launch_local_workers
from finetune.distributed.peer_errors import PeerLostError
from finetune.distributed.rendezvous import Rendezvous
from finetune.distributed.signals import StopRequest
from finetune.errors import OutOfMemoryError
from finetune.probe.head_rebalancing import is_rebalanced, rebalance
from finetune.probe.linear_probe import fit_probe, is_probe_checkpoint, save_probe
from finetune.system.files import write_text
from finetune.system.hardware import get_process_device
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.checkpoint import (
    has_stopped_early,
    read_checkpoint,
    read_resume_state,
)
from finetune.training.callbacks.freeze_layers import (
    NetworkCompiler,
    Progress,
    UnfreezeScheduler,
    WeightAveraging,
)
from finetune.training.loggers.experiment import MetricsCsv, RunTracker, create_wandb_logger
from finetune.training.trainer import create_trainer
from finetune.training.trainer import fit as lightning_fit
from finetune.types import Reporter


def train_and_finalize(
    run: RunFolder, training: Training, *, reporter: Reporter, rendezvous: Rendezvous | None
) -> FinalEvaluation | None:
    """Train, then measure the best model and write it; return its numbers on rank 0.

    Args:
        run: The run folder.
        training: What trains.
        reporter: Told of everything.
        rendezvous: The other processes, where a launcher has started them.
    """
    rank = 0 if rendezvous is None else rendezvous.launch.rank
    try:
        tracking = _train_on_all_ranks(run, training, reporter=reporter, rendezvous=rendezvous)
        if rendezvous is not None and rank > 0:
            rendezvous.depart()
            return None
        _rebalance_head(run, training, reporter)
        # which the probe may have told of further copies
        manifest = read_stored_manifest(run, training.config)
        measured = evaluate_best_model(run, replace(training, manifest=manifest), reporter)
    except KeyboardInterrupt:
        reporter.note(f"Stopped. Go on with: finetune fit --resume {run.path}")
        raise
    except PeerLostError:
        reporter.note(f"Go on with: finetune fit --resume {run.path}")
        raise
    if not training.is_probe_only and is_probe_checkpoint(run.best_checkpoint_path):
        reporter.note(
            f"No epoch beat the probe on val/{training.config.trainer.monitor}: the best model is "
            f"the probe's. Try a lower optim.lr, or more epochs."
        )
    write_bundle(run, measured)
    tracking.finish(
        measured.evaluations, classes=training.manifest.classes, bundle_dir=run.bundle_dir
    )
    write_text(run.done_marker_path, f"{training.config.trainer.epochs}\n")
    if rendezvous is not None:
        rendezvous.depart()
    return measured


def _rebalance_head(run: RunFolder, training: Training, reporter: Reporter) -> None:
    """Give the best model the classifier that was asked for, once."""
    way = training.config.imbalance.head_rebalancing
    if way not in ("crt", "tau_norm") or is_rebalanced(run.best_checkpoint_path):
        return
    assert training.probe is not None, "looked for by who builds"
    device = get_process_device(training.config.trainer.accelerator, 0)
    found = rebalance(
        run.best_checkpoint_path, way, training.probe, device=device, reporter=reporter
    )
    how = f"tau {found.tau:g}" if found.tau is not None else f"penalty {found.penalty:.1g}"
    gain = f"balanced accuracy on val {found.balanced_accuracy_before:.4f} -> {found.balanced_accuracy_after:.4f}"
    if found.tau == 0:
        gain = f"no tau beats balanced accuracy {found.balanced_accuracy_before:.4f} on val; it stays as it was"
    reporter.note(f"The classifier after {way} ({how}): {gain}.")


def _train_on_all_ranks(
    run: RunFolder, training: Training, *, reporter: Reporter, rendezvous: Rendezvous | None
) -> RunTracker:
    """Train to the last epoch with all processes, and return the trackers."""
    rank = 0 if rendezvous is None else rendezvous.launch.rank
    is_trained = _is_trained(run, training.config)
    if not is_trained and not training.is_probe_only:
        training = enable_cache(training, reporter=reporter)
    tracking = open_tracking(run, training.config, reporter, rank=rank)
    if not is_trained:
        try:
            with _init_process_group(run, training, rendezvous) as all_of_them:
                score = _run_probe(run, training, tracking, reporter, all_of_them)
                if not training.is_probe_only:
                    launch = None if all_of_them is None else all_of_them.launch
                    with nullcontext() if all_of_them is None else all_of_them.pause_heartbeat():
                        _run_trainer(run, training, tracking, reporter, launch, baseline=score)
        except BaseException as error:
            tracking.interrupt(is_resumable=isinstance(error, StopRequest | OutOfMemoryError))
            raise
    return tracking


@contextmanager
def _init_process_group(
    run: RunFolder, training: Training, rendezvous: Rendezvous | None
) -> Iterator[Rendezvous | None]:
    """Bring all processes of the run into one group; yield them, or None for one alone."""
    config = training.config
    count = 0 if rendezvous is not None else int(config.trainer.devices) - 1
    if rendezvous is None and not count:
        yield None
        return
    timeout = timedelta(seconds=config.trainer.collective_timeout_seconds)
    others: AbstractContextManager[Rendezvous] = (
        launch_local_workers(run.path, num_workers=count, timeout=timeout)
        if rendezvous is None
        else nullcontext(rendezvous)
    )
    with others as all_of_them:
        if rendezvous is None:
            broadcast_run(all_of_them, run, training)
        backend = "nccl" if config.trainer.accelerator == "cuda" else "gloo"
        with all_of_them.open_process_group(backend=backend):
            yield all_of_them


def _run_probe(
    run: RunFolder,
    training: Training,
    tracking: RunTracker,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
) -> float | None:
    """Begin a run with its probe, which is the best model so far; return its score."""
    plan = training.probe
    if plan is None or run.last_checkpoint_path.is_file():
        return None
    trainer = training.config.trainer
    device = get_process_device(
        trainer.accelerator, 0 if rendezvous is None else rendezvous.launch.local_rank
    )
    module = training.module
    found = fit_probe(
        module.classifier, plan, device=device, rendezvous=rendezvous, reporter=reporter
    )
    if found is None:
        assert rendezvous is not None, "rank 0 finds something"
        return float(rendezvous.receive("probe"))  # however long the fit takes
    reporter.show_probe(found.to_json())
    record_probe_findings(run, training, found, reporter)
    row = {f"val/{name}": float(value) for name, value in found.metrics.items()}
    row["train/loss"] = found.train_loss
    # as the epoch before the first, or the only one
    tracking.csv.record(row, epoch=0 if training.is_probe_only else -1, step=0)
    save_probe(module, module.card, found, run.best_checkpoint_path)
    score = row[f"val/{trainer.monitor}"]
    if rendezvous is not None:
        rendezvous.broadcast("probe", score)
    return score


def broadcast_run(rendezvous: Rendezvous, run: RunFolder, training: Training) -> None:
    """Tell the other processes what is trained; they need no weights, which DDP sends them."""
    told = {
        "run_dir": str(run.path.resolve()),
        "config": training.config.model_dump(mode="json"),
        "card": training.module.card,
        "position": read_progress(run),
    }
    rendezvous.broadcast("run", told)


def read_progress(run: RunFolder) -> list[int] | None:
    """Return the epochs and steps that a run has behind it, as all processes must see them."""
    position = read_resume_state(run)
    return None if position is None else [position.completed_epochs, position.steps_in_epoch]


def _run_trainer(
    run: RunFolder,
    training: Training,
    tracking: RunTracker,
    reporter: Reporter,
    launch: LaunchInfo | None,
    *,
    baseline: float | None,
) -> None:
    """Train to the last epoch, from the last checkpoint if there is one."""
    checkpoint = run.last_checkpoint_path if run.last_checkpoint_path.is_file() else None
    size_at = training.datamodule.train_dataset.transform.get_size
    compiling = [
        NetworkCompiler(reporter, batch_size=get_micro_batch_size(training), size_schedule=size_at)
    ]
    trainer = create_trainer(
        run.path,
        build_trainer_options(training.config),
        callbacks=[
            UnfreezeScheduler(),
            *(compiling if training.config.trainer.compile else []),
            WeightAveraging(),
            Progress(reporter),
            tracking.csv,
        ],
        loggers=tracking.loggers,
        launch=launch,
        baseline=baseline,
    )
    lightning_fit(trainer, training.module, training.datamodule, checkpoint_path=checkpoint)


def reduce_micro_batch(training: Training, error: OutOfMemoryError) -> Config:
    """Return the config of a run whose batches hold half as many images, or fewer.

    Raises:
        OutOfMemoryError: One image at a time is too much already, or other processes would not
            know of it.
    """
    config = training.config
    batch, parts = get_micro_batch_size(training), int(config.trainer.accumulate_grad_batches)
    most = batch // training.min_micro_batch_size
    smaller = next((n for n in range(2, most + 1) if batch % n == 0), None)
    if smaller is None:
        few = "One image at a time does" if batch == 1 else f"{batch} images at a time do"
        raise OutOfMemoryError(
            f"{error} {few} not fit. Take a smaller --image-size or --backbone, or "
            f"model.grad_checkpointing=true."
        )
    if compute_world_size(config) > 1:
        raise OutOfMemoryError(
            f"{error} Go on with a smaller batch in memory: "
            f"finetune fit --resume {config.output} trainer.accumulate_grad_batches={parts * smaller}"
        )
    return replace_values(config, {"trainer.accumulate_grad_batches": parts * smaller})


def open_tracking(run: RunFolder, config: Config, reporter: Reporter, *, rank: int) -> RunTracker:
    """Return the run's trackers; rank 0 alone continues the run's one W&B run."""
    tracking = config.tracking
    metrics = MetricsCsv(run.metrics_path, reporter=reporter)
    position = read_resume_state(run)
    epochs = 0 if position is None else position.completed_epochs
    metrics.drop_rows_after(epochs)
    if tracking.wandb == "off" or rank > 0:
        return RunTracker(metrics)
    if not run.wandb_id_path.is_file():
        write_text(run.wandb_id_path, uuid4().hex[:8] + "\n")
    wandb = create_wandb_logger(
        run.path,
        run_id=run.wandb_id_path.read_text().strip(),
        mode=tracking.wandb,
        project=tracking.project,
        entity=tracking.entity,
        name=tracking.name or run.path.name,
        tags=tracking.tags,
        config=config.model_dump(mode="json"),
    )
    tracking_run = RunTracker(metrics, wandb, run.wandb_epochs_path)
    tracking_run.relog_epochs(num_epochs=epochs)
    return tracking_run


def is_complete(run: RunFolder, config: Config) -> bool:
    """Tell whether a run has trained, measured, written and tracked everything that was asked."""
    if not (run.done_marker_path.is_file() and run.bundle_dir.is_dir()):
        return False
    return run.done_marker_path.read_text(encoding="utf-8").strip() == str(config.trainer.epochs)


def _is_trained(run: RunFolder, config: Config) -> bool:
    if is_probe_only(config):
        return run.best_checkpoint_path.is_file()
    position = read_resume_state(run)
    if position is None:
        return False
    if position.completed_epochs >= int(config.trainer.epochs):
        return True
    return has_stopped_early(
        read_checkpoint(run.last_checkpoint_path), config.trainer.early_stopping_patience
    )

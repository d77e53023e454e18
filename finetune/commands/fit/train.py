"""Training of a run, new or resumed, from its linear probe to its bundle."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from finetune.builders import (
    Training,
    build_trainer_options,
    enable_cache,
    get_micro_batch_size,
)
from finetune.builders.criterion import select_probe_loss
from finetune.commands.diagnosis.card_facts import record_card_facts
from finetune.commands.diagnosis.fit_diagnosis import write_diagnosis
from finetune.commands.fit.finalize import (
    FinalEvaluation,
    choose_eval_batch_size,
    evaluate_best_model,
    rebalance_head,
    write_bundle,
)
from finetune.commands.fit.health.network_record import record_end, record_start
from finetune.commands.fit.process_group import get_device, open_process_group
from finetune.commands.fit.run_progress import find_run_early_stop, is_trained
from finetune.commands.fit.run_tracking.tracker_table import (
    finish_tracking,
    interrupt_on_error,
    open_tracking,
    update_origin,
)
from finetune.commands.inspect.features import ProbeDuplicateSearch, record_probe_findings
from finetune.commands.measurement.augmentation_check import settle_augmentation
from finetune.commands.measurement.initialization import scale_head, settle_learning_rate
from finetune.commands.measurement.normalization import settle_normalization
from finetune.commands.measurement.prior_adjustment import needs_strength, save_probe_predictions
from finetune.commands.measurement.refit_choice import choose_weights, read_refit_choice
from finetune.commands.measurement.stage_report import record_stages
from finetune.commands.rejection.record_statistics import record_rejection_statistics
from finetune.commands.report.fit_report import write_fit_report
from finetune.commands.report.run_session import SessionRecorder
from finetune.commands.stored_run import read_stored_manifest
from finetune.distributed.rendezvous import Rendezvous
from finetune.evaluation.measured_precision import describe_measurement
from finetune.probe.linear_probe import fit_probe
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.network_compiler import NetworkCompiler
from finetune.training.callbacks.progress import EpochEndHook, Progress
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.checkpoint_io import save_probe
from finetune.training.loggers.run_tracker import RunTracker
from finetune.training.trainer import create_trainer
from finetune.training.trainer import fit as fit_epochs
from finetune.types import Reporter


def train(
    run: RunFolder,
    training: Training,
    *,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
    recorder: SessionRecorder,
) -> FinalEvaluation | None:
    """Train to the last epoch, evaluate the best model and write its bundle.

    A run that was interrupted continues with the step that comes next.

    Args:
        run: Run folder.
        training: Objects of the run.
        reporter: Receiver of progress and messages.
        rendezvous: Rendezvous with the processes of a launch; None without a launcher.
        recorder: Record of the times of this process.

    Returns:
        Evaluation of the best model on rank 0; None on other ranks.
    """
    rank = 0 if rendezvous is None else rendezvous.launch.rank
    recorder.begin("settings and linear probe")
    training, tracker = _fit_probe_and_epochs(run, training, rank, reporter, rendezvous, recorder)
    if rendezvous is not None and rank > 0:
        rendezvous.depart()
        return None
    recorder.begin("evaluation and bundle")
    early_stop = find_run_early_stop(run, training.config)
    if early_stop is not None:
        reporter.note(early_stop.describe())
    # read again, as the probe may have added duplicates
    manifest = read_stored_manifest(run, training.config)
    choose_weights(run, training, get_device(training, rendezvous), reporter)
    rebalance_head(run, replace(training, manifest=manifest), reporter)
    evaluation = replace(
        evaluate_best_model(run, replace(training, manifest=manifest), reporter),
        early_stop=early_stop,
    )
    record_end(run, training, rendezvous, reporter)
    note = describe_measurement(training.config.trainer.precision)
    if note and run.cross_validation_run is run:
        reporter.note(note)
    evaluated = replace(training, manifest=manifest)
    _write_results(run, evaluated, tracker, evaluation, recorder, reporter)
    if rendezvous is not None:
        rendezvous.depart()
    return evaluation


def _write_results(
    run: RunFolder,
    training: Training,
    tracker: RunTracker,
    evaluation: FinalEvaluation,
    recorder: SessionRecorder,
    reporter: Reporter,
) -> None:
    """Write the bundle of an evaluated run, what is said of it, and that it is complete."""
    write_bundle(run, evaluation)
    record_rejection_statistics(
        run,
        training.config,
        training.manifest,
        batch_size=choose_eval_batch_size(training),
        reporter=reporter,
    )
    write_diagnosis(run, reporter=reporter)
    record_card_facts(run, reporter=reporter)
    write_fit_report(run, training.config, recorder, reporter)
    finish_tracking(tracker, run, training, evaluation)
    write_text(run.done_marker_path, f"{training.config.trainer.epochs}\n")


def _fit_probe_and_epochs(
    run: RunFolder,
    training: Training,
    rank: int,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
    recorder: SessionRecorder,
) -> tuple[Training, RunTracker]:
    """Fit the probe and train to the last epoch with all processes.

    Returns:
        The training with the settings that were measured, and the trackers.
    """
    has_trained = is_trained(run, training.config)
    if not has_trained and not training.is_probe_only:
        training = enable_cache(training, reporter=reporter)
    tracker = open_tracking(run, training, reporter, rank=rank)
    if has_trained:
        return training, tracker
    with interrupt_on_error(tracker, run), open_process_group(run, training, rendezvous) as group:
        training, probe_score = fit_start(run, training, tracker, reporter, group)
        update_origin(tracker, run, training)
        choice = read_refit_choice(run)
        if training.is_probe_only or (choice is not None and choice.num_epochs == 0):
            return training, tracker
        record_start(run, training, group, reporter)
        options = build_trainer_options(training.config)
        if choice is not None:
            options = replace(options, monitor=None, max_epochs=choice.num_epochs)
        recorder.begin("epochs")
        with nullcontext() if group is None else group.pause_heartbeat():
            trainer = create_trainer(
                run.path,
                options,
                callbacks=_build_callbacks(training, tracker, reporter, recorder),
                loggers=tracker.loggers,
                launch=None if group is None else group.launch,
                baseline=probe_score,
            )
            last = run.last_checkpoint_path if run.last_checkpoint_path.is_file() else None
            fit_epochs(trainer, training.module, training.datamodule, checkpoint_path=last)
    return training, tracker


def fit_start(
    run: RunFolder,
    training: Training,
    tracker: RunTracker,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
) -> tuple[Training, float | None]:
    """Do what comes before the first epoch: measure settings, fit the probe and scale its head.

    Returns:
        The training with the settings that were measured, and the probe's value of the monitored
        metric, on all ranks; None without a probe.
    """
    device = get_device(training, rendezvous)
    training = settle_normalization(run, training, rendezvous=rendezvous, reporter=reporter)
    training = settle_augmentation(
        run, training, device=device, rendezvous=rendezvous, reporter=reporter
    )
    score = _fit_probe(run, training, tracker, reporter, rendezvous)
    if not training.is_probe_only:
        training = settle_learning_rate(
            run, training, device=device, rendezvous=rendezvous, reporter=reporter
        )
    return training, score


def _build_callbacks(
    training: Training, tracker: RunTracker, reporter: Reporter, recorder: SessionRecorder
) -> list[Any]:
    """Return the callbacks of the trainer, in their order."""
    compiler = NetworkCompiler(
        reporter,
        batch_size=get_micro_batch_size(training),
        size_schedule=training.datamodule.train_dataset.transform.get_size,
    )
    return [
        UnfreezeScheduler(),
        *([compiler] if training.config.trainer.compile else []),
        Progress(reporter),
        tracker.csv,
        EpochEndHook(recorder.save),
    ]


def _fit_probe(
    run: RunFolder,
    training: Training,
    tracker: RunTracker,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
) -> float | None:
    """Fit the linear probe of a new run and save it as the best model so far.

    Returns:
        Its value of the monitored metric, on all ranks; None without a probe.
    """
    plan = training.probe
    if plan is None or run.last_checkpoint_path.is_file():
        return None
    module = training.module
    device = get_device(training, rendezvous)
    search = ProbeDuplicateSearch(training, reporter)
    result = fit_probe(
        module.classifier,
        plan,
        device=device,
        rendezvous=rendezvous,
        reporter=reporter,
        find_groups=search.find_groups,
    )
    if result is None:
        assert rendezvous is not None, "rank 0 has a result"
        return _to_score(rendezvous.receive("probe"))  # waits for as long as the fit takes
    reporter.show_probe(result.to_json())
    record_stages(run, result.stages, tracker)
    record_probe_findings(run, training, result, search.manifest, reporter)
    row = {f"val/{name}": float(value) for name, value in result.metrics.items()}
    row |= {f"train_eval/{name}": value for name, value in result.train_eval_metrics.items()}
    row["train/loss"] = result.train_loss
    # the epoch before the first one, or the only one
    tracker.csv.record(row, epoch=0 if training.is_probe_only else -1, step=0)
    if needs_strength(training):
        save_probe_predictions(run, training, result)
    card = _build_probe_card(training)
    save_probe(module, card, result.to_json(), run.best_checkpoint_path)
    if not training.is_probe_only:
        temperature = scale_head(training, result)
        save_probe(
            module,
            card,
            result.to_json(),
            run.start_checkpoint_path,
            head_temperature=temperature,
        )
    score = row.get(f"val/{training.config.checkpoint.monitor}")  # None without validation images
    if rendezvous is not None:
        rendezvous.broadcast("probe", score)
    return score


def _build_probe_card(training: Training) -> dict[str, Any]:
    """Return the model card of the probe, whose loss is not always that of fine-tuning."""
    card = training.module.card
    loss = select_probe_loss(training.config.loss.name)
    return {**card, "facts": {**card["facts"], "loss": loss}}


def _to_score(value: Any) -> float | None:
    return None if value is None else float(value)

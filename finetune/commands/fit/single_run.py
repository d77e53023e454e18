"""One run with one split: start, resume or join it, and its result."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.audit.report import format_audit_json, format_findings_csv
from finetune.builders import Training
from finetune.bundle.model_card import read_card_json
from finetune.bundle.renamed_facts import rename_facts
from finetune.commands.diagnosis.diverged_run import diagnose_divergence
from finetune.commands.diagnosis.fit_diagnosis import read_diagnosis
from finetune.commands.fit.micro_batch_reduction import (
    reduce_micro_batch,
    retry_with_smaller_micro_batches,
)
from finetune.commands.fit.plan import build_plan
from finetune.commands.fit.prepare import note_schedule, prepare_run
from finetune.commands.fit.process_group import broadcast_run, receive_run
from finetune.commands.fit.resume import rebuild_training, suggest_resume
from finetune.commands.fit.run_progress import (
    describe_phase_shifts,
    describe_resume_point,
    is_complete,
)
from finetune.commands.fit.train import train
from finetune.commands.measurement.measured import discard_measured, read_measured
from finetune.commands.measurement.stage_report import read_stages
from finetune.commands.prepare_data import RunData
from finetune.commands.report.fit_report import describe_session
from finetune.commands.report.run_session import SessionRecorder
from finetune.commands.stored_run import read_stored_config
from finetune.config.load import diff_configs, dump_config
from finetune.config.schema import Config
from finetune.data.manifest import format_manifest, format_rejected
from finetune.distributed.rendezvous import Rendezvous
from finetune.errors import OutOfMemoryError
from finetune.system import run_folder
from finetune.system.files import remove_stale_temp_files, write_text
from finetune.system.run_folder import RunFolder
from finetune.training.callbacks.early_stopping import EarlyStop
from finetune.types import Reporter


@dataclass(frozen=True, slots=True)
class FitResult:
    """Result of a finished run.

    Attributes:
        run_dir: Run folder.
        seconds: Wall time of this call.
        metrics: Metrics of the best model by split: "val", and "test" if there is one; None if a
            metric is undefined for its images.
        plan: Plan of the run, see ``plan_fit``.
        calibration: Temperature of the model and its effect; None without calibration.
        prior_adjustment: Strength of the adjustment to another class prior that was chosen on
            held-out images, and its effect on them; None if the config gives it.
        evaluations: Further statistics of the best model by split, such as intervals and classes.
        measured: Settings that the run has measured: value and reason by dotted key.
        early_stop: When and why training stopped before its last epoch; None if it did not.
        stages: Results of heads on earlier stages of the backbone; None where none were probed.
        cross_validation: Folds, their metrics with intervals, and the model that follows from them;
            None for a run with one split.
        diagnosis: Findings on the run, the worst first; None if it was not diagnosed.
    """

    run_dir: Path
    seconds: float
    metrics: Mapping[str, Mapping[str, float | None]]
    plan: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    prior_adjustment: Mapping[str, Any] | None = None
    early_stop: Mapping[str, Any] | None = None
    stages: Mapping[str, Any] | None = None
    cross_validation: Mapping[str, Any] | None = None
    diagnosis: Sequence[Mapping[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "run_dir": str(self.run_dir),
            "seconds": round(self.seconds, 3),
            "metrics": {split: dict(metrics) for split, metrics in self.metrics.items()},
            "evaluations": {split: dict(stats) for split, stats in self.evaluations.items()},
            "calibration": None if self.calibration is None else dict(self.calibration),
            "prior_adjustment": (
                None if self.prior_adjustment is None else dict(self.prior_adjustment)
            ),
            "early_stop": None if self.early_stop is None else dict(self.early_stop),
            "measured": dict(self.measured),
            "stages": None if self.stages is None else dict(self.stages),
            "cross_validation": (
                None if self.cross_validation is None else dict(self.cross_validation)
            ),
            "diagnosis": (
                None if self.diagnosis is None else [dict(one) for one in self.diagnosis]
            ),
            "plan": dict(self.plan),
        }


def start_run(
    config: Config,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
    start: float,
    *,
    data: RunData | None = None,
) -> FitResult:
    """Prepare, create and train a new run on rank 0; ``data`` as for ``prepare_run``."""
    training, plan, data = prepare_run(config, reporter, data=data)
    run = create_run(training, plan, data)
    with suggest_resume(run, reporter), lock_run(run, training.config, rendezvous):
        facts = complete_run(run, training, reporter=reporter, rendezvous=rendezvous, start=start)
    return build_result(run, start, facts, plan)


def join_run(rendezvous: Rendezvous, start: float) -> FitResult:
    """Train the run that rank 0 broadcasts, as another of its processes."""
    received = receive_run(rendezvous)
    if received is None:
        return FitResult(Path(), 0.0, {}, {})
    run, training = received
    reporter = Reporter()
    try:
        with rendezvous.check_peers_on_advance(reporter):
            recorder = SessionRecorder(run, reporter, is_active=False)
            train(run, training, reporter=reporter, rendezvous=rendezvous, recorder=recorder)
    except OutOfMemoryError as error:
        reduce_micro_batch(training, error)  # always raises: rank 0 would need the config, too
        raise
    return FitResult(run.path, time.monotonic() - start, {}, {})


def resume_run(
    run: RunFolder, config: Config, reporter: Reporter, rendezvous: Rendezvous | None, start: float
) -> FitResult:
    """Resume a run on rank 0, or return its result if it is complete."""
    with suggest_resume(run, reporter):
        return continue_run(run, config, reporter, rendezvous, start)


def continue_run(
    run: RunFolder, config: Config, reporter: Reporter, rendezvous: Rendezvous | None, start: float
) -> FitResult:
    """Resume a run as ``resume_run``; that it can be resumed is left to the caller to say."""
    if is_complete(run, config):
        if rendezvous is not None:
            rendezvous.broadcast("run", None)
        facts = _read_facts(run)
        reporter.note(_describe_completion(facts))
        return build_result(run, start, facts, {})
    with lock_run(run, config, rendezvous):
        remove_stale_temp_files(run.path)
        training, plan = prepare_resume(run, config, reporter)
        discard_measured(run, diff_configs(read_stored_config(run), training.config))
        write_text(run.config_path, dump_config(training.config))
        run_folder.update_latest_link(run)
        facts = complete_run(run, training, reporter=reporter, rendezvous=rendezvous, start=start)
    return build_result(run, start, facts, plan)


def _read_facts(run: RunFolder) -> dict[str, Any]:
    """Return the facts on the model card of a complete run."""
    return rename_facts(read_card_json(run.bundle_dir)["facts"])


def _describe_completion(facts: Mapping[str, Any]) -> str:
    """Return a sentence on a complete run, and on what trains it longer."""
    early_stop = facts.get("early_stop")
    if early_stop is None:
        return "The run is complete. To train longer, add --epochs."
    return (
        f"The run is complete. {EarlyStop(**early_stop).describe()} To train longer, increase "
        f"trainer.early_stopping_patience."
    )


def prepare_resume(
    run: RunFolder, config: Config, reporter: Reporter
) -> tuple[Training, dict[str, Any]]:
    """Return the training of a resumed run and its plan, which is shown; nothing is written."""
    training = rebuild_training(run, config)
    changes = diff_configs(read_stored_config(run), training.config)
    plan = build_plan(
        training,
        overrides={key: after for key, (_, after) in changes.items()},
        num_rejected=0,
        run_dir=run.path,
    )
    note_schedule(training, reporter)
    reporter.show_plan(plan)
    for shift in describe_phase_shifts(run, training):
        reporter.warn(shift)
    if is_complete(run, config):
        reporter.note(_describe_completion(_read_facts(run)))
    else:
        reporter.note(describe_resume_point(run, training.config))
    return training, plan


def complete_run(
    run: RunFolder,
    training: Training,
    *,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
    start: float | None = None,
) -> dict[str, Any]:
    """Train a run to its end and return the facts of its bundle.

    After running out of memory it continues from the last checkpoint with smaller micro-batches.
    The session of this process is recorded from ``start`` on, a value of ``time.monotonic``; None
    for now.
    """
    recorder = SessionRecorder(run, reporter, started=start)
    num_processes = 1 if rendezvous is None else rendezvous.launch.world_size
    describe_session(recorder, training, num_processes=num_processes)
    if rendezvous is not None:
        broadcast_run(rendezvous, run, training)
    try:
        with diagnose_divergence(run, training.config, reporter):
            evaluation = retry_with_smaller_micro_batches(
                run,
                training,
                lambda training: train(
                    run, training, reporter=reporter, rendezvous=rendezvous, recorder=recorder
                ),
                reporter=reporter,
            )
    finally:
        recorder.save()
    return {} if evaluation is None else evaluation.facts


def create_run(training: Training, plan: Mapping[str, Any], data: RunData) -> RunFolder:
    """Create the folder of a prepared run."""
    return run_folder.create(
        Path(plan["run_dir"]),
        config=dump_config(training.config),
        manifest=format_manifest(training.manifest),
        rejected=format_rejected(data.rejected),
        audit_json=format_audit_json(data.audit),
        audit_csv=format_findings_csv(data.audit),
    )


def lock_run(
    run: RunFolder, config: Config, rendezvous: Rendezvous | None
) -> AbstractContextManager[None]:
    """Lock the run folder; wait for a process that lost its peers until it gives up."""
    wait_seconds = 0.0 if rendezvous is None else config.trainer.collective_timeout_seconds
    return run_folder.lock_run(run, extra_wait_seconds=wait_seconds)


def build_result(
    run: RunFolder, start: float, facts: Mapping[str, Any], plan: Mapping[str, Any]
) -> FitResult:
    """Return the result of a run from the facts of its bundle."""
    return FitResult(
        run.path,
        seconds=time.monotonic() - start,
        metrics=facts["metrics"],
        plan=plan,
        calibration=facts.get("calibration"),
        evaluations=facts.get("evaluations", {}),
        measured=read_measured(run),
        prior_adjustment=facts.get("prior_adjustment"),
        early_stop=facts.get("early_stop"),
        stages=read_stages(run),
        diagnosis=read_diagnosis(run),
    )

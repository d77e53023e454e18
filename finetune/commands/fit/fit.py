"""Fine-tune a backbone on a folder of images: start, resume, or join as another process."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune.audit.report import format_audit_json, format_findings_csv
from finetune.builders import Training, build_training
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.commands.fit.launch_check import check_launch
from finetune.commands.fit.plan import build_plan
from finetune.commands.fit.prepare import describe_batch_norm_effect, prepare_run
from finetune.commands.fit.resume import (
    build_resume_config,
    collect_overrides,
    describe_phase_shifts,
    describe_resume_point,
    find_existing_run,
    rebuild_training,
)
from finetune.commands.fit.train import (
    broadcast_run,
    is_complete,
    read_progress,
    reduce_micro_batch,
    train_and_finalize,
)
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.config.load import diff_configs, dump_config
from finetune.config.schema import Config
from finetune.data.manifest import format_manifest, format_rejected
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.distributed.rendezvous import Rendezvous, join_rendezvous
from finetune.distributed.reporter import PeerCheckingReporter
from finetune.errors import OutOfMemoryError, RunFolderError
from finetune.system import run_folder
from finetune.system.files import remove_stale_temp_files, write_text
from finetune.system.hardware import release_memory
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

_SHARED_STORAGE_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a finished run comes to.

    Attributes:
        run_dir: The run folder.
        seconds: Wall time of this call.
        metrics: Split to metrics of the best model: "val", and "test" where there is one; None
            for what its images do not define.
        plan: What was done.
        calibration: The model's temperature and what it is worth; None without one.
        evaluations: Split to what else is known of the best model: intervals, classes.
    """

    run_dir: Path
    seconds: float
    metrics: Mapping[str, Mapping[str, float | None]]
    plan: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run_dir": str(self.run_dir),
            "seconds": round(self.seconds, 3),
            "metrics": {split: dict(values) for split, values in self.metrics.items()},
            "evaluations": {split: dict(found) for split, found in self.evaluations.items()},
            "calibration": None if self.calibration is None else dict(self.calibration),
            "plan": dict(self.plan),
        }


def fit(config: Config, *, reporter: Reporter | None = None) -> FitResult:
    """Train a new run and return what it comes to.

    Under torchrun or srun every process calls this; rank 0 prepares the run folder and the others
    join it. With ``resume: auto`` a run that lies in ``output`` already goes on.

    Raises:
        FinetuneError: Anything that the user can mend.
        KeyboardInterrupt: It was asked to stop; the run folder can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    with signals.allow_interrupts(), _open_rendezvous(config) as met:
        if met is not None:
            if met.launch.rank > 0:
                return _run_worker(met, start)
            met.wait_for_peers()  # before anything is planned or written
            reporter = PeerCheckingReporter(reporter, met)
        if (run := find_existing_run(config)) is not None:
            return _resume_run(
                run,
                build_resume_config(run, assignments=collect_overrides(run, config)),
                met,
                reporter,
                start,
            )
        training, plan, data = prepare_run(config, reporter)
        run = run_folder.create(
            Path(plan["run_dir"]),
            config=dump_config(training.config),
            manifest=format_manifest(training.manifest),
            rejected=format_rejected(data.rejected),
            audit_json=format_audit_json(data.audit),
            audit_csv=format_findings_csv(data.audit),
        )
        with _lock_run(run, training.config, met):
            facts = _train_with_oom_retry(run, training, reporter=reporter, rendezvous=met)
        return _build_result(run, start, facts, plan)


def plan_fit(config: Config, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Return the plan of a run and show it; kept is only what was seen of the images."""
    return prepare_run(config, reporter or Reporter())[1]


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
        flags: The same from options; only ``OVERRIDABLE_KEYS`` keys may differ.
        reporter: Told of everything.

    Raises:
        FinetuneError: Anything that the user can mend.
        KeyboardInterrupt: It was asked to stop; the run folder can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    run = run_folder.open_existing(path)
    config = build_resume_config(run, assignments=assignments, flags=flags)
    with signals.allow_interrupts(), _open_rendezvous(config) as met:
        if met is not None:
            if met.launch.rank > 0:
                return _run_worker(met, start)
            reporter = PeerCheckingReporter(reporter, met)
        return _resume_run(run, config, met, reporter, start)


def plan_resume(
    path: Path,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Return the plan of ``resume``, show it, and write nothing."""
    run = run_folder.open_existing(path)
    config = build_resume_config(run, assignments=assignments, flags=flags)
    return _prepare_resume(run, config, reporter or Reporter())[1]


def join(path: Path) -> None:
    """Take part in a run that another process of this machine started."""
    config = read_stored_config(run_folder.open_existing(path))
    with signals.allow_interrupts(), _open_rendezvous(config) as met:
        assert met is not None, "called by finetune alone"
        _run_worker(met, 0.0)


@contextmanager
def _open_rendezvous(config: Config) -> Iterator[Rendezvous | None]:
    """Meet the other processes of a launch; None stands alone.

    Raises:
        ConfigError: The launcher started other processes than were asked for.
        TrainingError: The others are not reached.
    """
    launch = check_launch(config, detect_launch())
    if launch is None or launch.world_size == 1:
        yield None
        return
    timeout = timedelta(seconds=config.trainer.collective_timeout_seconds)
    with join_rendezvous(launch, timeout=timeout) as met:
        yield met


def _run_worker(rendezvous: Rendezvous, start: float) -> FitResult:
    """Take part in the run that rank 0 tells of."""
    told = rendezvous.receive("run")
    if told is None:
        return FitResult(Path(), 0.0, {}, {})
    run = RunFolder(Path(told["run_dir"]))
    _wait_for_shared_storage(run, told["position"])
    config = Config.model_validate(told["config"])
    training = build_training(
        config,
        read_stored_manifest(run, config),
        checkpoint_card=ModelCard.from_json(told["card"]),
        is_resumed=True,
    )
    try:
        train_and_finalize(
            run,
            training,
            reporter=PeerCheckingReporter(Reporter(), rendezvous),
            rendezvous=rendezvous,
        )
    except OutOfMemoryError as error:
        reduce_micro_batch(training, error)  # raises: the other processes cannot know of it
        raise
    return FitResult(run.path, time.monotonic() - start, {}, {})


def _wait_for_shared_storage(run: RunFolder, progress: list[int] | None) -> None:
    """Wait until this machine sees what rank 0 sees: a network disk may be some seconds late.

    Raises:
        RunFolderError: It does not.
    """
    end = time.monotonic() + _SHARED_STORAGE_TIMEOUT_SECONDS
    while not run_folder.is_run(run.path) or read_progress(run) != progress:
        if time.monotonic() > end:
            raise RunFolderError(
                f"{run.path} is not the same here as for rank 0, on another machine. The run "
                f"folder must lie on storage that all machines see: choose another --output."
            )
        time.sleep(0.2)


def _resume_run(
    run: RunFolder, config: Config, rendezvous: Rendezvous | None, reporter: Reporter, start: float
) -> FitResult:
    """Go on with a run, as rank 0 of its processes."""
    if is_complete(run, config):
        if rendezvous is not None:
            rendezvous.broadcast("run", None)
        reporter.note("The run is complete; nothing is left to do. Longer: add --epochs.")
        return _build_result(run, start, read_card_json(run.bundle_dir)["facts"], {})
    with _lock_run(run, config, rendezvous):
        remove_stale_temp_files(run.path)
        training, plan = _prepare_resume(run, config, reporter)
        write_text(run.config_path, dump_config(training.config))
        run_folder.update_latest_link(run)
        facts = _train_with_oom_retry(run, training, reporter=reporter, rendezvous=rendezvous)
    return _build_result(run, start, facts, plan)


def _lock_run(
    run: RunFolder, config: Config, rendezvous: Rendezvous | None
) -> AbstractContextManager[None]:
    """Keep others from the run; one that a cut link keeps alive is waited for until it gives up."""
    patience = 0.0 if rendezvous is None else config.trainer.collective_timeout_seconds
    return run_folder.lock_run(run, extra_wait_seconds=patience)


def _prepare_resume(
    run: RunFolder, config: Config, reporter: Reporter
) -> tuple[Training, dict[str, Any]]:
    """Return the training of a run that goes on, and its plan; nothing is written yet."""
    training = rebuild_training(run, config)
    changed = {
        key: after
        for key, (_, after) in diff_configs(read_stored_config(run), training.config).items()
    }
    plan = build_plan(training, overrides=changed, num_rejected=0, run_dir=run.path)
    reporter.show_plan(plan)
    for moved in describe_phase_shifts(run, training):
        reporter.warn(moved)
    reporter.note(describe_resume_point(run, training.config))
    return training, plan


def _train_with_oom_retry(
    run: RunFolder, training: Training, *, reporter: Reporter, rendezvous: Rendezvous | None
) -> dict[str, Any]:
    """Train, and return what the bundle says of it.

    After running out of memory it goes on from the last checkpoint with half the batch.
    """
    if rendezvous is not None:
        broadcast_run(rendezvous, run, training)
    while True:
        try:
            measured = train_and_finalize(run, training, reporter=reporter, rendezvous=rendezvous)
            return {} if measured is None else measured.facts
        except OutOfMemoryError as error:
            config = reduce_micro_batch(training, error)
            parts = int(config.trainer.accumulate_grad_batches)
        # outside of the handler: there the error would keep the tensors of the failed step alive
        release_memory()
        reporter.note(
            f"Out of memory: the batch of {training.batch_size} now runs in {parts} parts, whose "
            f"gradients make one step; the epoch begins again.{describe_batch_norm_effect(training)}"
        )
        write_text(run.config_path, dump_config(config))
        training = rebuild_training(run, config)


def _build_result(
    run: RunFolder, start: float, facts: Mapping[str, Any], plan: Mapping[str, Any]
) -> FitResult:
    """Return what a run came to, from the facts of its bundle."""
    seconds = time.monotonic() - start
    found = (facts["metrics"], plan, facts.get("calibration"), facts.get("evaluations", {}))
    return FitResult(run.path, seconds, *found)

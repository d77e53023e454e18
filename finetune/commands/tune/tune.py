"""Search for settings that train a better model than the defaults, and what they gain."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.commands.fit.prepare import load_run_data
from finetune.commands.prepare_data import RunData
from finetune.commands.tune.gain import TuneGain, measure_gain
from finetune.commands.tune.hold_out import describe_hold_out, halve_validation, remove_hold_out
from finetune.commands.tune.preconditions import (
    check_counts,
    check_launch,
    check_optuna,
    validate_search,
)
from finetune.commands.tune.space.search_space import SearchDimension
from finetune.commands.tune.study_folder import (
    StudyFolder,
    StudySettings,
    create_study,
    open_study,
)
from finetune.commands.tune.study_plan import StudyPlan, plan_study
from finetune.commands.tune.trials.trial_queue import TrialQueue
from finetune.commands.tune.trials.trial_row import find_best, read_rows
from finetune.commands.tune.trials.trial_run import TrialData
from finetune.commands.tune.trials.worker import TrialLog, run_trials, update_files
from finetune.commands.tune.trials.worker_pool import run_workers
from finetune.commands.tune.tune_result import (
    TuneResult,
    estimate_importance,
    write_result,
)
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.errors import DataError, RunFolderError
from finetune.types import Reporter, StrPath
from finetune.units import format_count

DEFAULT_NUM_TRIALS = 20
"""Trials of a study: two or three for each setting of the default search space."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """Size of a search, and its space.

    Attributes:
        num_trials: Number of trials in all; None for the default, or that of a resumed study.
        timeout_seconds: Time after which no trial begins; None for no limit.
        num_jobs: Number of processes that run trials at the same time.
        space: Dimensions of the search; empty for the default ones.
        extends_default: Whether ``space`` adds to the default dimensions.
    """

    num_trials: int | None = None
    timeout_seconds: float | None = None
    num_jobs: int = 1
    space: tuple[SearchDimension, ...] = ()
    extends_default: bool = False


def tune(
    config: Config,
    options: TuneOptions | None = None,
    *,
    reporter: Reporter | None = None,
    on_plan: Callable[[StudyPlan], None] | None = None,
) -> TuneResult:
    """Search for better settings than the defaults, and report what they gain.

    The first trial has the default settings. All trials train and validate on the same images; the
    gain is measured on others, which are set aside before.

    Args:
        config: Config as for ``fit``, with the settings that all trials share.
        options: Size of the search, and its space.
        reporter: Receiver of progress and messages.
        on_plan: Receiver of the plan, before the first trial.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: Stop requested; ``resume_tune`` continues the study.
    """
    options, reporter, start = options or TuneOptions(), reporter or Reporter(), time.monotonic()
    with signals.allow_interrupts():
        plan = plan_tune(config, options, reporter=reporter)
        if on_plan is not None:
            on_plan(plan)
        study = create_study(
            plan.path,
            plan.settings,
            config=plan.config,
            manifest=plan.data.manifest,
            space=plan.space,
        )
        session = _Session(study, plan.settings, plan.config, plan.data, start)
        with study.suggest_resume(reporter):
            return _run_and_report(session, options, reporter)


def plan_tune(
    config: Config, options: TuneOptions | None = None, *, reporter: Reporter | None = None
) -> StudyPlan:
    """Return the plan of ``tune`` with the same arguments; only caches of the audit are written.

    Raises:
        FinetuneError: Something that the user can fix.
    """
    options = options or TuneOptions()
    num_trials = DEFAULT_NUM_TRIALS if options.num_trials is None else options.num_trials
    check_optuna()
    check_launch(detect_launch())
    check_counts(num_trials=num_trials, num_jobs=options.num_jobs)
    return plan_study(
        config,
        validate_search(config, options.space),
        num_trials=num_trials,
        extends_default=options.extends_default,
        reporter=reporter or Reporter(),
    )


def resume_tune(
    path: StrPath, options: TuneOptions | None = None, *, reporter: Reporter | None = None
) -> TuneResult:
    """Continue a study: trials that were stopped first, then new ones.

    Several processes may do so at the same time; the last one reports the gain.

    Args:
        path: Folder of the study.
        options: Size of the search; its space is that of the study.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: Stop requested; the study can be continued.
    """
    options, reporter = options or TuneOptions(), reporter or Reporter()
    with signals.allow_interrupts():
        session = _open_session(Path(path), options, reporter)
        settings = session.study.keep_started_trials(session.settings, reporter)
        session = replace(session, settings=settings)
        session.study.write_settings(settings)
        with session.study.suggest_resume(reporter):
            return _run_and_report(session, options, reporter)


def run_worker(path: StrPath, options: TuneOptions, *, reporter: Reporter) -> None:
    """Run trials of a study as one of several processes, without a report.

    Args:
        path: Folder of the study.
        options: Size of the search.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: Stop requested; the study can be continued.
    """
    with signals.allow_interrupts():
        session = _open_session(Path(path), options, reporter)
        study = session.study
        with study.suggest_resume(reporter), closing(study.open_queue(session.settings)) as queue:
            _run(session, queue, options, reporter)


@dataclass(frozen=True, slots=True)
class _Session:
    """A study that this process works on."""

    study: StudyFolder
    settings: StudySettings
    config: Config
    data: RunData
    start: float


def _open_session(path: Path, options: TuneOptions, reporter: Reporter) -> _Session:
    start = time.monotonic()
    check_optuna()
    check_launch(detect_launch())
    study = open_study(path)
    settings = study.read_settings()
    if options.num_trials is not None:
        settings = replace(settings, num_trials=options.num_trials)
    check_counts(num_trials=settings.num_trials, num_jobs=options.num_jobs)
    config = study.read_base_config()
    return _Session(study, settings, config, _reload_data(study, settings, config, reporter), start)


def _reload_data(
    study: StudyFolder, settings: StudySettings, config: Config, reporter: Reporter
) -> RunData:
    """Return the images of a study with the splits that it began with.

    Raises:
        DataError: The images are others than at the beginning.
    """
    _, data = load_run_data(config, reporter)
    manifest = data.manifest
    if settings.hold_out == "half":
        manifest = halve_validation(manifest, seed=config.split_seed)
    stored = study.read_manifest(manifest.root)
    before, after = (
        {(sample.path, sample.label, sample.digest, sample.split) for sample in table.samples}
        for table in (stored, manifest)
    )
    if before != after:
        raise DataError(
            f"The images in {config.data.path} are not those with which the study began: "
            f"{format_count(len(before - after), 'image')} changed or missing, "
            f"{format_count(len(after - before), 'image')} new or changed. Trials on different "
            f"images cannot be compared. Restore the images, or start a new study."
        )
    return replace(data, manifest=stored)


def _run_and_report(session: _Session, options: TuneOptions, reporter: Reporter) -> TuneResult:
    with closing(session.study.open_queue(session.settings)) as queue:
        _run(session, queue, options, reporter)
        return _report(session, queue, reporter)


def _run(session: _Session, queue: TrialQueue, options: TuneOptions, reporter: Reporter) -> None:
    """Run trials until none is left."""
    study, settings = session.study, session.settings
    log = TrialLog(
        queue,
        monitor=settings.monitor,
        num_trials=settings.num_trials,
        reporter=reporter,
    )
    deadline = None
    if options.timeout_seconds is not None:
        deadline = session.start + options.timeout_seconds
    if options.num_jobs > 1:
        run_workers(
            study,
            num_jobs=options.num_jobs,
            num_trials=settings.num_trials,
            deadline=deadline,
            log=log,
        )
    else:
        data = replace(session.data, manifest=remove_hold_out(session.data.manifest))
        run_trials(
            study,
            queue,
            TrialData(session.config, data, settings.monitor, study.path.name),
            num_trials=settings.num_trials,
            deadline=deadline,
            log=log,
            reporter=reporter,
        )


def _report(session: _Session, queue: TrialQueue, reporter: Reporter) -> TuneResult:
    """Return the result of a study, and write its files; the gain only once no trial runs."""
    study, settings = session.study, session.settings
    rows = read_rows(queue)
    is_finished = not queue.has_running_trials()
    if is_finished:
        update_files(study, queue)
    manifest = session.data.manifest
    result = TuneResult(
        study_dir=study.path,
        settings=settings,
        trials=rows,
        hold_out=describe_hold_out(settings.hold_out, manifest),
        gain=_measure_gain(session, queue, manifest, reporter) if is_finished else None,
        is_finished=is_finished,
        importance=estimate_importance(queue) if is_finished else {},
        seconds=time.monotonic() - session.start,
    )
    write_result(study, result)
    return result


def _measure_gain(
    session: _Session, queue: TrialQueue, manifest: Manifest, reporter: Reporter
) -> TuneGain | None:
    """Return the gain of the best trial; None if that has the default settings, or none ended."""
    rows = read_rows(queue)
    best = find_best(rows, maximize=session.settings.maximize)
    default = next((row for row in rows if row.is_default and row.value is not None), None)
    if best is None or default is None or best.number == default.number:
        return None
    default_dir, best_dir = (session.study.get_trial_dir(row.number) for row in (default, best))
    for folder in (default_dir, best_dir):
        if not folder.is_dir():
            raise RunFolderError(
                f"{folder} is missing, so that the gain cannot be measured. Restore it, or start a "
                f"new study."
            )
    return measure_gain(
        default_dir,
        best_dir,
        manifest,
        session.config,
        monitor=session.settings.monitor,
        seed=session.settings.seed,
        reporter=reporter,
    )

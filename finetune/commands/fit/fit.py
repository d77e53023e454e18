"""Commands that fine-tune a backbone on a folder of images: start, resume, plan or join a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.builders import Training, describe_layers
from finetune.commands.cross_validation.cross_validate import (
    cross_validate,
    plan_cross_validation,
    plan_resumed_folds,
    resume_cross_validation,
)
from finetune.commands.fit.prepare import prepare_run
from finetune.commands.fit.process_group import open_rendezvous
from finetune.commands.fit.resume import (
    build_resume_config,
    collect_overrides,
    describe_kept_values,
    find_existing_run,
)
from finetune.commands.fit.run_tracking.sweep_run import adopt_sweep_run
from finetune.commands.fit.run_tracking.tracker_table import check_trackers
from finetune.commands.fit.single_run import (
    FitResult,
    join_run,
    prepare_resume,
    resume_run,
    start_run,
)
from finetune.commands.stored_run import read_stored_config
from finetune.config.schema import Config
from finetune.distributed import signals
from finetune.distributed.launch import detect_launch
from finetune.errors import ConfigError
from finetune.system import run_folder
from finetune.types import Reporter, StrPath

__all__ = ["FitResult", "fit", "join", "plan_fit", "plan_resume", "resume"]


def fit(config: Config, *, reporter: Reporter | None = None) -> FitResult:
    """Fine-tune a backbone and return the result of the run.

    Under torchrun or srun every process calls this; rank 0 prepares the run folder and the others
    join it. With ``resume: auto``, a run or cross-validation that exists in ``output`` is resumed.
    So is the run of a W&B sweep that an agent starts again.

    Args:
        config: Config of the run; None of its "auto" values needs to be set.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop; the run can be resumed.
    """
    reporter = reporter or Reporter()
    check_trackers(config.tracking)
    config = adopt_sweep_run(config)
    existing = find_existing_run(config)
    is_in_folds = existing is not None and existing.folds_csv_path.is_file()
    if is_in_folds or config.cross_validation.num_folds is not None:
        return cross_validate(config, reporter)
    start = time.monotonic()
    with signals.allow_interrupts(), open_rendezvous(config.trainer, reporter) as rendezvous:
        if rendezvous is not None:
            if rendezvous.launch.rank > 0:
                return join_run(rendezvous, start)
            rendezvous.wait_for_peers()  # before anything is planned or written
        if (run := find_existing_run(config)) is not None:
            overrides = collect_overrides(run, config)
            config = build_resume_config(run, assignments=overrides)
            return resume_run(run, config, reporter, rendezvous, start)
        return start_run(config, reporter, rendezvous, start)


def plan_fit(
    config: Config, *, with_layers: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Return the plan of a run and show it; only caches of the audit are written.

    With ``resume: auto``, the plan is that of the run or cross-validation that exists in
    ``output``, if there is one.

    Args:
        config: Config of the run.
        with_layers: Whether to measure the layers, too, and show them; not with folds.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
    """
    reporter = reporter or Reporter()
    check_trackers(config.tracking)
    if (existing := find_existing_run(config)) is not None:
        overrides = collect_overrides(existing, config)
        return plan_resume(
            existing.path, assignments=overrides, with_layers=with_layers, reporter=reporter
        )
    if config.cross_validation.num_folds is not None:
        _check_layers(with_layers=with_layers)
        return plan_cross_validation(config, reporter)
    training, plan, _ = prepare_run(config, reporter)
    return _add_layers(plan, training, reporter) if with_layers else plan


def resume(
    path: StrPath,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    reporter: Reporter | None = None,
) -> FitResult:
    """Resume a run from its last checkpoint, with the result of an uninterrupted run.

    Args:
        path: Run folder.
        assignments: Dotted keys to values that replace those of the run's config.
        flags: Dotted keys to option names and values that replace them, too; only keys in
            ``OVERRIDABLE_KEYS``, and before the first epoch ``START_KEYS``, may change.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop; the run can be resumed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    run = run_folder.open_existing(Path(path))
    config = build_resume_config(run, assignments=assignments, flags=flags)
    launch = detect_launch()
    if launch is None or launch.rank == 0:
        _note_kept_values(config, assignments, flags, reporter)
    if run.folds_csv_path.is_file():
        return resume_cross_validation(run, config, reporter)
    with signals.allow_interrupts(), open_rendezvous(config.trainer, reporter) as rendezvous:
        if rendezvous is not None and rendezvous.launch.rank > 0:
            return join_run(rendezvous, start)
        return resume_run(run, config, reporter, rendezvous, start)


def plan_resume(
    path: Path,
    *,
    assignments: Mapping[str, Any] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    with_layers: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Return the plan of ``resume`` and show it, as ``plan_fit``; nothing is written."""
    run = run_folder.open_existing(path)
    reporter = reporter or Reporter()
    config = build_resume_config(run, assignments=assignments, flags=flags)
    _note_kept_values(config, assignments, flags, reporter)
    if run.folds_csv_path.is_file():
        _check_layers(with_layers=with_layers)
        return plan_resumed_folds(run, config, reporter)
    training, plan = prepare_resume(run, config, reporter)
    return _add_layers(plan, training, reporter) if with_layers else plan


def _note_kept_values(
    config: Config,
    assignments: Mapping[str, Any] | None,
    flags: Mapping[str, tuple[str, Any]] | None,
    reporter: Reporter,
) -> None:
    """Show which values of a resumed run "auto" does not choose anew."""
    if (kept := describe_kept_values(config, assignments, flags)) is not None:
        reporter.note(kept)


def _check_layers(*, with_layers: bool) -> None:
    """Check that no layers are requested of a cross-validation.

    Raises:
        ConfigError: They are.
    """
    if with_layers:
        raise ConfigError(
            "--layers cannot apply to a cross-validation, whose folds all have the same layers. "
            "Plan a single run of the same network: leave out cross_validation.num_folds and "
            "--resume."
        )


def _add_layers(plan: dict[str, Any], training: Training, reporter: Reporter) -> dict[str, Any]:
    """Return the plan with the costs of the layers, which are shown."""
    layers = describe_layers(training)
    reporter.show_layers(layers)
    return {**plan, "layers": layers}


def join(path: Path) -> None:
    """Take part in a run that another process of this node has started."""
    config = read_stored_config(run_folder.open_existing(path))
    with signals.allow_interrupts(), open_rendezvous(config.trainer, Reporter()) as rendezvous:
        assert rendezvous is not None, "only started by the local launcher"
        join_run(rendezvous, 0.0)

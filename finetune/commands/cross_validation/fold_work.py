"""Work that is left in a cross-validation, new or resumed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.commands.cross_validation.fold_plan import prepare_cross_validation
from finetune.commands.cross_validation.fold_runs import CrossValidation, open_cross_validation
from finetune.commands.cross_validation.refit import check_refit, get_refit_run
from finetune.commands.fit.resume import build_resume_config, collect_overrides, find_existing_run
from finetune.commands.fit.run_progress import describe_resume_point, is_complete
from finetune.commands.report.run_session import SessionRecorder
from finetune.commands.stored_run import check_files_exist, read_stored_config
from finetune.config.load import diff_configs, dump_config, replace_values
from finetune.config.resolved import ResolvedConfig
from finetune.config.schema import Config
from finetune.errors import ConfigError
from finetune.system import run_folder
from finetune.system.files import write_text
from finetune.system.hardware import resolve_accelerator
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter


@dataclass(frozen=True, slots=True)
class FoldWork:
    """Work that is left in a cross-validation.

    Attributes:
        cross_validation: Images, folds and run folder.
        plan: Plan of a new run; empty in a resumed one.
        changes: Dotted keys to values that the folds are resumed with.
        only: The one fold to train, as one of several jobs; None for all, then the model.
    """

    cross_validation: CrossValidation
    plan: Mapping[str, Any]
    changes: Mapping[str, Any]
    only: int | None

    @property
    def is_refitted(self) -> bool:
        """Whether a network is trained on all images after the folds."""
        return self.only is None and self.cross_validation.config.cross_validation.final == "refit"

    @property
    def folds(self) -> list[int]:
        """Folds to train."""
        num_folds = self.cross_validation.num_folds
        return list(range(1, num_folds + 1)) if self.only is None else [self.only]


def start_or_reopen(config: Config, reporter: Reporter) -> FoldWork:
    """Return the work of a new cross-validation, whose folder is created, or of an existing one."""
    existing = find_existing_run(config)
    if existing is not None:
        overrides = collect_overrides(existing, config)
        return reopen(existing, build_resume_config(existing, assignments=overrides))
    start = time.monotonic()
    cross_validation, plan, texts = prepare_cross_validation(config, reporter)
    check_refit(cross_validation.config)
    run_folder.create(cross_validation.run.path, **texts)
    recorder = SessionRecorder(cross_validation.run, reporter, started=start)
    device = resolve_accelerator(cross_validation.config.trainer.accelerator)
    reasons = {line["key"]: line["reason"] for line in plan["recipe"]}
    recorder.describe(device=device, num_processes=1, facts={"reasons": reasons})
    recorder.save()
    return FoldWork(cross_validation, plan, {}, config.cross_validation.fold)


def reopen(run: RunFolder, config: Config, *, writes: bool = True) -> FoldWork:
    """Return the work that is left in a run folder, with the changes of its config.

    Raises:
        ConfigError: A change cannot apply to a fold that has begun; nothing is written then.
    """
    only = config.cross_validation.fold
    config = replace_values(config, {"cross_validation.fold": None})
    changes = diff_configs(read_stored_config(run), config)
    changed = {
        key: after
        for key, (_, after) in changes.items()
        if after != "auto" and not key.startswith("cross_validation.") and "." in key
    }
    check_refit(config)
    cross_validation = open_cross_validation(run, config)
    check_files_exist(cross_validation.manifest, cross_validation.manifest.samples)
    _check_folds(cross_validation, changed)
    if changes and writes:
        write_text(run.config_path, dump_config(config))
    return FoldWork(cross_validation, {}, changed, only)


def _check_folds(cross_validation: CrossValidation, changes: Mapping[str, Any]) -> None:
    """Check that each fold that has begun can be resumed with the changes."""
    for fold in range(1, cross_validation.num_folds + 1):
        if run_folder.is_run(cross_validation.get_fold_run(fold).path):
            try:
                cross_validation.build_fold_resume_config(fold, dict(changes))
            except ConfigError as error:
                raise ConfigError(f"Fold {fold}: {error}") from error


def find_pending_folds(work: FoldWork) -> list[int]:
    """Return the folds that are not complete."""
    return [fold for fold in work.folds if not work.cross_validation.is_fold_complete(fold)]


def describe_pending(work: FoldWork, pending: Sequence[int]) -> str:
    """Return a sentence on what is complete and what is left to do, the refit included."""
    num_folds = work.cross_validation.num_folds
    complete = [fold for fold in work.folds if fold not in pending]
    parts = []
    if complete:
        is_all = len(complete) == num_folds
        verb = "is" if len(complete) == 1 else "are"
        parts.append(f"{'all folds' if is_all else _list_folds(complete)} {verb} complete")
    if pending:
        parts.append(f"{_list_folds(pending)} to be trained")
    if work.is_refitted:
        is_done = not pending and _is_refit_complete(work.cross_validation)
        parts.append(f"the network of all images {'is complete' if is_done else 'to be trained'}")
    return f"Cross-validation with {num_folds} folds: {'; '.join(parts)}."


def _is_refit_complete(cross_validation: CrossValidation) -> bool:
    """Return whether the network of all images has been trained to its end."""
    run = get_refit_run(cross_validation)
    return run_folder.is_run(run.path) and is_complete(run, read_stored_config(run))


def describe_resumed_folds(work: FoldWork, pending: Sequence[int]) -> list[str]:
    """Return a sentence on each pending fold that has begun: where it resumes."""
    runs = {fold: work.cross_validation.get_fold_run(fold) for fold in pending}
    points = {
        # what a resume point depends on is the same in a resumed fold
        fold: describe_resume_point(run, ResolvedConfig.from_config(read_stored_config(run)))
        for fold, run in runs.items()
        if run_folder.is_run(run.path)
    }
    return [f"Fold {fold}: {text[0].lower()}{text[1:]}" for fold, text in points.items()]


def _list_folds(folds: Sequence[int]) -> str:
    """Return the numbers of folds with their noun."""
    return f"{'fold' if len(folds) == 1 else 'folds'} {', '.join(map(str, folds))}"

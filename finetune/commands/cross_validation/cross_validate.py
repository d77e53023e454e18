"""Cross-validation: a run for each fold in turn, then their summary and the model of all."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from finetune.bundle.model_card import read_card_json
from finetune.commands.cross_validation.final_model import write_final_model
from finetune.commands.cross_validation.fold_reporter import FoldReporter
from finetune.commands.cross_validation.fold_runs import (
    CrossValidation,
    lock_creation,
    open_cross_validation,
    prepare_cross_validation,
)
from finetune.commands.cross_validation.out_of_fold import read_out_of_fold, write_findings
from finetune.commands.cross_validation.summary import format_summary, summarise_folds
from finetune.commands.fit.process_group import open_rendezvous
from finetune.commands.fit.resume import (
    build_resume_config,
    collect_overrides,
    find_existing_run,
)
from finetune.commands.fit.single_run import (
    FitResult,
    build_result,
    complete_run,
    join_run,
    lock_run,
    resume_run,
)
from finetune.commands.stored_run import check_files_exist, read_stored_config
from finetune.config.load import diff_configs, dump_config, replace_values
from finetune.config.schema import Config
from finetune.distributed import signals
from finetune.distributed.rendezvous import Rendezvous
from finetune.system import run_folder
from finetune.system.files import remove_stale_temp_files, write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from finetune.units import format_count, format_duration, format_percent


@dataclass(frozen=True, slots=True)
class _Work:
    """What is left to do in a cross-validation.

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
    def folds(self) -> list[int]:
        """Folds to train."""
        num_folds = self.cross_validation.num_folds
        return list(range(1, num_folds + 1)) if self.only is None else [self.only]


def cross_validate(config: Config, reporter: Reporter) -> FitResult:
    """Train the folds of a new cross-validation, or of the one in ``output`` with ``resume: auto``.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop; the run can be resumed.
    """

    def prepare() -> _Work:
        if config.cross_validation.fold is None or config.output is None:
            return _start_or_reopen(config, reporter)
        with lock_creation(Path(config.output).expanduser()):
            return _start_or_reopen(config, reporter)

    return _run(config, prepare, reporter)


def resume_cross_validation(run: RunFolder, config: Config, reporter: Reporter) -> FitResult:
    """Train what is left of a cross-validation.

    Args:
        run: Run folder of the cross-validation.
        config: Its config with changes, as ``build_resume_config`` returns it.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop; the run can be resumed.
    """
    return _run(config, lambda: _reopen(run, config), reporter)


def plan_cross_validation(config: Config, reporter: Reporter) -> dict[str, Any]:
    """Return the plan of a cross-validation and show it; only caches of the audit are written."""
    return prepare_cross_validation(config, reporter)[1]


def plan_resumed_folds(run: RunFolder, config: Config, reporter: Reporter) -> dict[str, Any]:
    """Return what is left of a cross-validation and show it; nothing is written."""
    work = _reopen(run, config, writes=False)
    pending = _find_pending(work)
    reporter.note(_describe_pending(work, pending))
    return {"run_dir": str(run.path), "cross_validation": {"folds": pending}}


def _run(config: Config, prepare: Callable[[], _Work], reporter: Reporter) -> FitResult:
    """Prepare on rank 0, train each fold on all ranks, and finish on rank 0."""
    start = time.monotonic()
    with signals.allow_interrupts():
        with open_rendezvous(config.trainer, reporter) as first:
            if first is not None and first.launch.rank > 0:
                pending, work = first.receive("folds"), None
            else:
                if first is not None:
                    first.wait_for_peers()
                work = prepare()
                pending = _find_pending(work)
                if first is not None:
                    first.broadcast("folds", pending)
        if work is None:
            for fold in pending:
                with _open_round(first, fold, Reporter()) as rendezvous:
                    assert rendezvous is not None, "another rank has a launch"
                    join_run(rendezvous, start)
            return FitResult(Path(), 0.0, {}, {})
        return _train_and_finish(work, pending, first, reporter, start)


def _train_and_finish(
    work: _Work,
    pending: Sequence[int],
    first: Rendezvous | None,
    reporter: Reporter,
    start: float,
) -> FitResult:
    """Train the pending folds on rank 0; with all of them complete, write the model."""
    cross_validation = work.cross_validation
    run = cross_validation.run
    is_all = work.only is None
    # jobs of several folds hold the locks of their own folds
    lock = lock_run(run, cross_validation.config, first) if is_all else nullcontext()
    seen: set[str] = set()
    with lock:
        if is_all:
            remove_stale_temp_files(run.path)
            run_folder.update_latest_link(run)
        if work.changes or not work.plan:
            reporter.note(_describe_pending(work, pending))
        for fold in pending:
            part = FoldReporter(
                reporter,
                f"fold {fold}/{cross_validation.num_folds}",
                seen=seen,
                audit_path=cross_validation.get_fold_run(fold).audit_csv_path,
            )
            with _open_round(first, fold, part) as rendezvous:
                result = _train_fold(work, fold, part, rendezvous)
            reporter.note(_describe_fold(fold, result))
        if not is_all:
            return _build_fold_result(work, start)
        return _finish(work, reporter, start)


def _train_fold(
    work: _Work, fold: int, reporter: Reporter, rendezvous: Rendezvous | None
) -> FitResult:
    """Train a fold on rank 0, from its last checkpoint if there is one."""
    start = time.monotonic()
    cross_validation = work.cross_validation
    run = cross_validation.get_fold_run(fold)
    num_val = int((cross_validation.folds == fold).sum())
    images = format_count(len(cross_validation.folds) - num_val, "training image")
    reporter.note(
        f"Fold {fold} of {cross_validation.num_folds}: {images}, {num_val:,} validation images."
    )
    if run_folder.is_run(run.path):
        config = cross_validation.build_fold_resume_config(fold, dict(work.changes))
        return resume_run(run, config, reporter, rendezvous, start)
    config = cross_validation.build_part_config(run, cross_validation__fold=fold)
    manifest = cross_validation.build_manifest(fold)
    training = cross_validation.create_part(run, config, manifest)
    with lock_run(run, training.config, rendezvous):
        facts = complete_run(run, training, reporter=reporter, rendezvous=rendezvous)
    return build_result(run, start, facts, {})


def _finish(work: _Work, reporter: Reporter, start: float) -> FitResult:
    """Summarise complete folds, and write the predictions, the audit and the model."""
    cross_validation = work.cross_validation
    run = cross_validation.run
    out_of_fold = read_out_of_fold(cross_validation)
    label_errors = out_of_fold.find_label_errors()
    is_listed = write_findings(cross_validation, label_errors)
    write_text(run.out_of_fold_path, out_of_fold.to_csv())
    summary = summarise_folds(cross_validation, out_of_fold, num_label_errors=len(label_errors))
    if label_errors:
        first = label_errors[0]
        where = f"; see {run.audit_csv_path}" if is_listed else ""
        reporter.note(
            f"{format_count(len(label_errors), 'possible label error')} by the folds: "
            f"{first.path} is labelled '{first.label}' (p={first.label_probability:.2f}), "
            f"predicted '{first.predicted_label}' (p={first.predicted_probability:.2f})"
            f"{', and more' if len(label_errors) > 1 else ''}{where}"
        )
    summary["final"] = {"kind": cross_validation.config.cross_validation.final}
    facts = write_final_model(cross_validation, summary, reporter)
    summary["final"] |= {
        "bundle": str(run.bundle_dir.relative_to(run.path)),
        "metrics": {key: value for key, value in facts["metrics"].items() if key != "out_of_fold"},
    }
    write_text(run.cross_validation_path, format_summary(summary))
    result = build_result(run, start, facts, work.plan)
    return replace(result, cross_validation=summary)


def _start_or_reopen(config: Config, reporter: Reporter) -> _Work:
    """Return the work of a new cross-validation, whose folder is created, or of an existing one."""
    existing = find_existing_run(config)
    if existing is not None:
        overrides = collect_overrides(existing, config)
        return _reopen(existing, build_resume_config(existing, assignments=overrides))
    cross_validation, plan, texts = prepare_cross_validation(config, reporter)
    run_folder.create(cross_validation.run.path, **texts)
    return _Work(cross_validation, plan, {}, config.cross_validation.fold)


def _reopen(run: RunFolder, config: Config, *, writes: bool = True) -> _Work:
    """Return the work that is left in a run folder, with the changes of its config."""
    only = config.cross_validation.fold
    config = replace_values(config, {"cross_validation.fold": None})
    changes = diff_configs(read_stored_config(run), config)
    changed = {
        key: after
        for key, (_, after) in changes.items()
        if after != "auto" and not key.startswith("cross_validation.") and "." in key
    }
    cross_validation = open_cross_validation(run, config)
    check_files_exist(cross_validation.manifest, cross_validation.manifest.samples)
    if changes and writes:
        write_text(run.config_path, dump_config(config))
    return _Work(cross_validation, {}, changed, only)


def _find_pending(work: _Work) -> list[int]:
    """Return the folds that are not complete."""
    return [fold for fold in work.folds if not work.cross_validation.is_fold_complete(fold)]


@contextmanager
def _open_round(
    first: Rendezvous | None, fold: int, reporter: Reporter
) -> Iterator[Rendezvous | None]:
    """Yield a rendezvous of the same processes for one fold; None for a single process.

    Args:
        first: Closed rendezvous, whose store is used on.
        fold: Fold, from 1.
        reporter: Receiver of progress, which checks the other processes.
    """
    if first is None:
        yield None
        return
    store = first.store
    with (
        Rendezvous(
            first.launch,
            timeout=first.timeout,
            connect=lambda: PrefixStore(f"fold-{fold}", store),
        ) as rendezvous,
        rendezvous.check_peers_on_advance(reporter),
    ):
        yield rendezvous


def _describe_pending(work: _Work, pending: Sequence[int]) -> str:
    """Return a sentence on what is left to do."""
    num_folds = work.cross_validation.num_folds
    if not pending:
        what = "all folds are" if work.only is None else f"fold {work.only} is"
        return f"Cross-validation with {num_folds} folds: {what} complete."
    names = ", ".join(map(str, pending))
    noun = "fold" if len(pending) == 1 else "folds"
    return f"Cross-validation with {num_folds} folds: {noun} {names} to be trained."


def _describe_fold(fold: int, result: FitResult) -> str:
    """Return the line on a fold that is complete."""
    metrics = result.metrics["val"]
    accuracy, macro_f1 = metrics["accuracy"], metrics["macro_f1"]
    shown = [f"accuracy {format_percent(accuracy)}"] if accuracy is not None else []
    shown += [f"macro F1 {format_percent(macro_f1)}"] if macro_f1 is not None else []
    loss = metrics["loss"]
    shown += [f"log loss {loss:.4f}"] if loss is not None else []
    return f"Fold {fold}: {', '.join(shown)} ({format_duration(result.seconds)})."


def _build_fold_result(work: _Work, start: float) -> FitResult:
    """Return the result of a job that trains one fold, which is complete."""
    assert work.only is not None, "one fold was trained"
    run = work.cross_validation.get_fold_run(work.only)
    return build_result(run, start, read_card_json(run.bundle_dir)["facts"], work.plan)

"""Cross-validation: a run for each fold in turn, then their summary and the model of all."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.commands.cross_validation.final_model import write_final_model
from finetune.commands.cross_validation.fold_plan import prepare_cross_validation
from finetune.commands.cross_validation.fold_reporter import FoldReporter, describe_fold_result
from finetune.commands.cross_validation.fold_runs import CrossValidation, lock_creation
from finetune.commands.cross_validation.fold_work import (
    FoldWork,
    describe_pending,
    describe_resumed_folds,
    find_pending_folds,
    reopen,
    start_or_reopen,
)
from finetune.commands.cross_validation.out_of_fold import (
    describe_label_errors,
    read_out_of_fold,
    write_findings,
)
from finetune.commands.cross_validation.refit import (
    check_refit,
    choose_measured,
    describe_refit,
    get_refit_run,
    prepare_refit,
)
from finetune.commands.cross_validation.rounds import Rounds
from finetune.commands.cross_validation.summary import (
    format_summary,
    summarise_folds,
)
from finetune.commands.diagnosis.card_facts import record_card_facts
from finetune.commands.diagnosis.fit_diagnosis import write_diagnosis
from finetune.commands.early_checks.named_files import check_shared_folder
from finetune.commands.fit.process_group import open_rendezvous
from finetune.commands.fit.resume import build_resume_config, suggest_resume
from finetune.commands.fit.run_progress import is_complete
from finetune.commands.fit.single_run import (
    FitResult,
    build_result,
    complete_run,
    continue_run,
    join_run,
    lock_run,
)
from finetune.commands.measurement.refit_choice import RefitChoice, read_refit_choice
from finetune.commands.report.fit_report import write_run_report
from finetune.commands.stored_run import read_stored_config
from finetune.config.schema import Config
from finetune.distributed import signals
from finetune.distributed.rendezvous import Rendezvous
from finetune.system import run_folder
from finetune.system.files import remove_stale_temp_files, write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from finetune.units import format_count

REFIT = "refit"
"""Name of the run on all images, among those of the folds."""


def cross_validate(config: Config, reporter: Reporter) -> FitResult:
    """Train the folds of a new cross-validation, or of the one in ``output`` with ``resume: auto``.

    Raises:
        FinetuneError: Something that the user can fix.
        KeyboardInterrupt: The process was asked to stop; the run can be resumed.
    """
    check_shared_folder(config)
    fold = config.cross_validation.fold

    def prepare() -> FoldWork:
        if fold is None or config.output is None:
            return start_or_reopen(config, reporter)
        with lock_creation(Path(config.output).expanduser()):
            return start_or_reopen(config, reporter)

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
    return _run(config, lambda: reopen(run, config), reporter)


def plan_cross_validation(config: Config, reporter: Reporter) -> dict[str, Any]:
    """Return the plan of a cross-validation and show it; only caches of the audit are written."""
    cross_validation, plan, _ = prepare_cross_validation(config, reporter)
    check_refit(cross_validation.config)
    return plan


def plan_resumed_folds(run: RunFolder, config: Config, reporter: Reporter) -> dict[str, Any]:
    """Return what is left of a cross-validation and show it; nothing is written."""
    work = reopen(run, config, writes=False)
    pending = find_pending_folds(work)
    reporter.note(f"Resuming {run.path}. {describe_pending(work, pending)}")
    before = read_stored_config(run).cross_validation.final
    final = work.cross_validation.config.cross_validation.final
    if final != before:
        reporter.note(f"cross_validation.final changes from {before} to {final}.")
    for sentence in describe_resumed_folds(work, pending):
        reporter.note(sentence)
    return {
        "run_dir": str(run.path),
        "overrides": dict(work.changes),
        "cross_validation": {
            "num_folds": work.cross_validation.num_folds,
            "folds": pending,
            "complete": [fold for fold in work.folds if fold not in pending],
            "final": final,
        },
    }


def _run(config: Config, prepare: Callable[[], FoldWork], reporter: Reporter) -> FitResult:
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
                pending = find_pending_folds(work)
                if first is not None:
                    first.broadcast("folds", _name_rounds(work, pending))
        if work is None:
            with Rounds(first, pending) as rounds:
                for _ in pending:
                    with rounds.enter_next(Reporter()) as rendezvous:
                        assert rendezvous is not None, "another rank has a launch"
                        join_run(rendezvous, start)
            return FitResult(Path(), 0.0, {}, {})
        run = work.cross_validation.run
        with suggest_resume(run, reporter, fold=work.only):
            return _train_and_finish(work, pending, first, reporter, start)


def _train_and_finish(
    work: FoldWork,
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
    # the other ranks wait in the first round, and during the work after the folds in that of the
    # refit: it is open before
    with Rounds(first, _name_rounds(work, pending)) as rounds, lock:
        if is_all:
            remove_stale_temp_files(run.path)
            run_folder.update_latest_link(run)
        if work.changes or not work.plan:
            reporter.note(describe_pending(work, pending))
        for fold in pending:
            title = f"fold {fold}/{cross_validation.num_folds}"
            path = cross_validation.get_fold_run(fold).audit_csv_path
            part = FoldReporter(reporter, title, seen=seen, audit_path=path)
            with rounds.enter_next(part) as rendezvous:
                result = _train_fold(work, fold, part, rendezvous)
            reporter.note(describe_fold_result(fold, result))
        if not is_all:
            return _build_fold_result(work, start)
        return _finish(work, rounds, reporter, start)


def _name_rounds(work: FoldWork, pending: Sequence[int]) -> list[str]:
    """Return the names of the runs that all processes train, in their order."""
    return [*map(str, pending), *([REFIT] if work.is_refitted else [])]


def _train_fold(
    work: FoldWork, fold: int, reporter: Reporter, rendezvous: Rendezvous | None
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
        return continue_run(run, config, reporter, rendezvous, start)
    config = cross_validation.build_part_config(run, cross_validation__fold=fold)
    manifest = cross_validation.build_manifest(fold)
    training = cross_validation.create_part(run, config, manifest)
    with lock_run(run, training.config, rendezvous):
        facts = complete_run(run, training, reporter=reporter, rendezvous=rendezvous)
    return build_result(run, start, facts, {})


def _finish(work: FoldWork, rounds: Rounds, reporter: Reporter, start: float) -> FitResult:
    """Summarise complete folds, and write the predictions, the audit and the model."""
    cross_validation = work.cross_validation
    run = cross_validation.run
    out_of_fold = read_out_of_fold(cross_validation)
    label_errors = out_of_fold.find_label_errors()
    label_check = out_of_fold.check_labels()
    is_listed = write_findings(cross_validation, label_errors, label_check)
    write_text(run.out_of_fold_path, out_of_fold.to_csv())
    summary = summarise_folds(cross_validation, out_of_fold, num_label_errors=len(label_errors))
    if label_errors:
        listed_in = run if is_listed else None
        is_multi_label = out_of_fold.is_multi_label
        reporter.note(
            describe_label_errors(
                label_errors, label_check, listed_in, is_multi_label=is_multi_label
            )
        )
    summary["final"] = {"kind": cross_validation.config.cross_validation.final}
    refitted = None
    if work.is_refitted:
        part_path = get_refit_run(cross_validation).audit_csv_path
        part = FoldReporter(reporter, REFIT, seen=set(), audit_path=part_path)
        with rounds.enter_next(part) as rendezvous:
            choice = _train_refit(
                cross_validation, summary["folds"], out_of_fold.thresholds, part, rendezvous
            )
        summary["final"] |= {"choice": choice.to_json(), "run_dir": REFIT}
        refitted = load_model(get_refit_run(cross_validation).path)
    facts = write_final_model(
        cross_validation, summary, reporter, thresholds=out_of_fold.thresholds, refitted=refitted
    )
    summary["final"] |= {
        "bundle": str(run.bundle_dir.relative_to(run.path)),
        "metrics": {key: value for key, value in facts["metrics"].items() if key != "out_of_fold"},
    }
    write_text(run.cross_validation_path, format_summary(summary))
    write_diagnosis(run, reporter=reporter)
    record_card_facts(run, reporter=reporter)
    write_run_report(run, cross_validation.config, reporter)
    result = build_result(run, start, facts, work.plan)
    return replace(result, cross_validation=summary)


def _train_refit(
    cross_validation: CrossValidation,
    folds: Sequence[Mapping[str, Any]],
    thresholds: tuple[float, ...] | None,
    reporter: Reporter,
    rendezvous: Rendezvous | None,
) -> RefitChoice:
    """Train one network on all images on rank 0, as the folds chose, and return their choice."""
    run = prepare_refit(cross_validation, folds, thresholds)
    choice = read_refit_choice(run)
    assert choice is not None, "written when the folder was prepared"
    num_images = len(cross_validation.folds)
    reporter.note(describe_refit(choice, choose_measured(folds), num_images))
    config = build_resume_config(run)
    if is_complete(run, config):
        reporter = Reporter()
    continue_run(run, config, reporter, rendezvous, time.monotonic())
    return choice


def _build_fold_result(work: FoldWork, start: float) -> FitResult:
    """Return the result of a job that trains one fold, which is complete."""
    assert work.only is not None, "one fold was trained"
    run = work.cross_validation.get_fold_run(work.only)
    return build_result(run, start, read_card_json(run.bundle_dir)["facts"], work.plan)

"""Loop of a process that runs the trials of a study, one after the other."""

import time
from statistics import median

from finetune.commands.tune.study_folder import StudyFolder
from finetune.commands.tune.trials.trial_queue import ClaimedTrial, TrialQueue
from finetune.commands.tune.trials.trial_row import (
    TrialRow,
    find_best,
    find_same,
    format_trials_csv,
    read_rows,
)
from finetune.commands.tune.trials.trial_run import (
    TrialData,
    TrialOutcome,
    remove_losing_files,
    run_trial,
)
from finetune.system.files import translate_disk_errors, write_text
from finetune.system.run_folder import is_run
from finetune.types import Reporter
from finetune.units import format_count, format_duration


class TrialLog:
    """Lines on the trials of a study that have ended, each shown once, whoever ran it.

    Args:
        queue: Trials of the study.
        monitor: Metric by which they are judged.
        num_trials: Number of trials of the study.
        reporter: Receiver of the lines.
    """

    def __init__(
        self,
        queue: TrialQueue,
        *,
        monitor: str,
        num_trials: int,
        reporter: Reporter,
    ) -> None:
        self.queue = queue
        self.monitor = monitor
        self.num_trials = num_trials
        self.reporter = reporter
        self._shown = {row.number for row in read_rows(queue) if row.state != "running"}

    def show_new(self) -> None:
        """Show the trials that have ended since the last call."""
        rows = read_rows(self.queue)
        best = find_best(rows, maximize=self.queue.maximize)
        for row in rows:
            if row.state == "running" or row.number in self._shown:
                continue
            self._shown.add(row.number)
            is_best = best is not None and row.number == best.number
            self.reporter.note(self._describe(row, is_best=is_best))

    def _describe(self, row: TrialRow, *, is_best: bool) -> str:
        title = f"trial {row.number}/{self.num_trials}"
        epochs = "" if row.epochs is None else f" after epoch {row.epochs} of {row.num_epochs}"
        if row.state == "failed":
            return f"{title}: failed{epochs}: {row.reason}"
        if row.same_as is not None:
            same = next(other for other in read_rows(self.queue) if other.number == row.same_as)
            source = "as default" if same.is_default else f"as trial {same.number}"
            return f"{title}: {self.monitor} {row.value:.4f}, {source}: the same values"
        duration = "" if row.seconds is None else f", {format_duration(row.seconds)}"
        if row.state == "pruned":
            result = f"pruned{epochs}"
        else:
            mark = " (best)" if is_best else ""
            count = format_count(row.epochs or 0, "epoch")
            result = f"{self.monitor} {row.value:.4f}{mark}, {count}"
        default = ", default settings" if row.is_default else ""
        return f"{title}: {result}{duration}{default}"


def run_trials(
    study: StudyFolder,
    queue: TrialQueue,
    shared: TrialData,
    *,
    num_trials: int,
    deadline: float | None,
    log: TrialLog,
    reporter: Reporter,
) -> None:
    """Run trials until the study has its number of them, or its time is over.

    Args:
        study: Folder of the study.
        queue: Its trials.
        shared: Images and settings that all trials share.
        num_trials: Number of trials of the study.
        deadline: Time of ``time.monotonic`` by which the last trial should end; None for no limit.
        log: Lines on the trials that have ended.
        reporter: Receiver of progress, notes and warnings.

    Raises:
        FinetuneError: The default trial fails, or a trial for a reason apart from its values.
        KeyboardInterrupt: Stop requested; the trial can be continued.
    """
    shown: set[str] = set()
    is_first = True
    while _has_time(queue, deadline, reporter, is_first=is_first):
        claimed = queue.claim(num_trials)
        if claimed is None:
            return
        is_first = False
        try:
            _run_claimed(study, queue, claimed, shared, num_trials, reporter, shown)
        except BaseException:
            queue.release(claimed)
            raise
        log.show_new()


def _run_claimed(
    study: StudyFolder,
    queue: TrialQueue,
    claimed: ClaimedTrial,
    shared: TrialData,
    num_trials: int,
    reporter: Reporter,
    shown: set[str],
) -> None:
    run_dir = study.get_trial_dir(claimed.number)
    same = find_same(read_rows(queue), claimed.number, claimed.values)
    if same is not None and not is_run(run_dir):
        outcome = repeat_outcome(same)
    else:
        outcome = run_trial(
            claimed,
            queue,
            shared,
            run_dir,
            title=f"trial {claimed.number}/{num_trials}",
            reporter=reporter,
            shown=shown,
        )
    queue.finish(
        claimed,
        value=outcome.value,
        is_pruned=outcome.is_pruned,
        reason=outcome.reason,
        facts=outcome.facts,
    )
    update_files(study, queue)


def repeat_outcome(same: TrialRow) -> TrialOutcome:
    """Return the outcome of a trial with the values of another one: training would repeat it."""
    facts = {
        "seconds": 0.0,
        "epochs": same.epochs,
        "num_epochs": same.num_epochs,
        "metrics": dict(same.metrics),
        "same_as": same.number,
        "probe_kept": same.probe_kept,
    }
    return TrialOutcome(same.value, facts=facts)


def update_files(study: StudyFolder, queue: TrialQueue) -> None:
    """Keep the weights of the best and of the default trial only, and write ``trials.csv``."""
    with translate_disk_errors(study.path), queue.lock_study():
        rows = read_rows(queue)
        write_text(study.trials_csv_path, format_trials_csv(rows))
        best = find_best(rows, maximize=queue.maximize)
        for row in rows:
            is_kept = row.is_default or (best is not None and row.number == best.number)
            if row.state != "running" and not is_kept:
                remove_losing_files(study.get_trial_dir(row.number))


def _has_time(
    queue: TrialQueue, deadline: float | None, reporter: Reporter, *, is_first: bool
) -> bool:
    """Return whether a trial may begin: the median of the completed ones fits into the time left.

    The first trial of a process always begins, so that a short limit still makes progress.
    """
    if deadline is None or is_first:
        return True
    seconds = [row.seconds for row in read_rows(queue) if row.seconds and row.value is not None]
    left = deadline - time.monotonic()
    if left > (median(seconds) if seconds else 0.0):
        return True
    if left > 0:
        reporter.note(
            f"No further trial: {format_duration(left)} of --timeout are left, and a trial takes "
            f"{format_duration(median(seconds))}."
        )
    else:
        reporter.note("No further trial: the time of --timeout is over.")
    return False

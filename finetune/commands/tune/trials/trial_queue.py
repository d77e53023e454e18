"""Trials of a study in its SQLite database, which several processes share.

Optuna draws the values and keeps the results. A lock on the study makes "count and draw" one step,
and a lock for each trial, which the operating system releases with the process, tells a trial that
is running from one whose process was killed: that one is continued from its last checkpoint, by
whoever looks for work next. Optuna's heartbeats would restart it under another number, and only
after minutes.
"""

import fcntl
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.tune.space.conditional_keys import select_applicable
from finetune.commands.tune.space.search_space import SearchDimension
from finetune.commands.tune.trials.trial_lock import lock_trial
from finetune.distributed import signals
from finetune.errors import RunFolderError
from finetune.system.files import translate_disk_errors

if TYPE_CHECKING:
    import optuna

MAX_ATTEMPTS = 3
"""Times in a row that a trial may be killed without completing an epoch before it has failed."""

NUM_STARTUP_TRIALS = 6
"""Trials, the default among them, before the sampler learns from the others."""

PRUNING_STARTUP_TRIALS = 4
"""Completed trials before trials are pruned."""

PRUNING_WARMUP_TENTHS = 3
"""Tenths of the epochs that every trial trains: the longest warm-up of the learning rate."""

_STUDY_NAME = "tune"
_LOCK_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ClaimedTrial:
    """A trial that this process runs.

    Attributes:
        trial: Optuna's trial.
        values: Value of each searched key.
        is_default: Whether it is the trial of the default settings.
        lock: File whose lock this process holds for as long as it runs the trial.
        seconds_before: Duration of earlier attempts, up to their last epoch if they were killed.
        start: Time of ``time.monotonic`` at which this attempt began.
    """

    trial: "optuna.Trial"
    values: Mapping[str, Any]
    is_default: bool
    lock: TextIOWrapper
    seconds_before: float = 0.0
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Duration of the trial so far, over all of its attempts."""
        return round(self.seconds_before + time.monotonic() - self.start, 3)

    @property
    def number(self) -> int:
        """Number of the trial, from 1; Optuna counts from 0."""
        return int(self.trial.number) + 1


class TrialQueue:
    """Trials of a study, shared by its processes.

    Args:
        folder: Folder of the study.
        space: Dimensions of the search.
        maximize: Whether the metric is better when it is higher.
        seed: Seed of the study; the values of a trial are drawn by it and the trial's number.
    """

    def __init__(
        self, folder: Path, space: Sequence[SearchDimension], *, maximize: bool, seed: int
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder = folder
        self.space = {dimension.key: dimension for dimension in space}
        self.seed = seed
        self.maximize = maximize
        with translate_disk_errors(folder):
            self.storage = optuna.storages.RDBStorage(
                f"sqlite:///{(folder / 'study.db').absolute()}",
                engine_kwargs={"connect_args": {"timeout": _LOCK_TIMEOUT_SECONDS}},
            )
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=_STUDY_NAME,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
                # compares with the median of completed trials at the same tenth of their epochs:
                # successive halving would end most trials of a study of twenty after the first
                # epochs, in which the learning rate is still rising
                pruner=optuna.pruners.MedianPruner(
                    n_startup_trials=PRUNING_STARTUP_TRIALS,
                    n_warmup_steps=PRUNING_WARMUP_TENTHS,
                ),
            )

    def enqueue_default(self, values: Mapping[str, Any]) -> None:
        """Make the default settings the first trial, with its values where the space has them.

        Values outside of the space, or unknown before they are measured, are left to no draw: the
        trial is then one that the sampler does not learn from.

        Args:
            values: Value of each searched key with the default settings.
        """
        applicable = select_applicable({key: values.get(key) for key in self.space})
        is_inside = all(self.space[key].contains(value) for key, value in applicable.items())
        # any value of a key that does not apply
        drawn = {key: dim.test_values[0] for key, dim in self.space.items()} | applicable
        encoded = {key: dim.encode(drawn[key]) for key, dim in self.space.items() if is_inside}
        self.study.enqueue_trial(encoded, user_attrs={"default": True, "inside": is_inside})

    def claim(self, num_trials: int) -> ClaimedTrial | None:
        """Return a trial to run: one whose process was killed, else a new one, else None.

        Args:
            num_trials: Number of trials of the study.
        """
        claimed = None
        try:
            with signals.defer(), self.lock_study():
                claimed = self._claim_abandoned()
                if claimed is None and self.count_started() < num_trials:
                    claimed = self._claim_new()
        except BaseException:
            if claimed is not None:
                self.release(claimed)
            raise
        return claimed

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the keys that apply in a trial, from the drawn ones as stored.

        Raises:
            RunFolderError: A stored value is not in the search space.
        """
        try:
            drawn = {key: self._get_dimension(key).decode(params[key]) for key in params}
        except ValueError as error:
            raise RunFolderError(
                f"{self.folder / 'study.db'} and space.yaml in the same folder are of different "
                f"searches: {error}. Restore the folder as it was, or start a new study."
            ) from error
        return select_applicable(drawn)

    def _get_dimension(self, key: str) -> SearchDimension:
        if key not in self.space:
            raise ValueError(f"{key} is not in the search space")
        return self.space[key]

    def count_started(self) -> int:
        """Return the number of trials that run or have ended."""
        return len(self.get_trials())

    def get_trials(self) -> "list[optuna.trial.FrozenTrial]":
        """Return the trials that run or have ended, by number."""
        from optuna.trial import TrialState

        with translate_disk_errors(self.folder):
            trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state is not TrialState.WAITING]

    def has_running_trials(self) -> bool:
        """Return whether a process runs a trial; one that was stopped is not running."""
        from optuna.trial import TrialState

        for trial in self.get_trials():
            if trial.state is TrialState.RUNNING:
                with self.lock_study():
                    lock = lock_trial(self.folder, trial.number)
                if lock is None:
                    return True
                lock.close()
        return False

    def report(self, claimed: ClaimedTrial, value: float, *, tenths: Sequence[int]) -> bool:
        """Record the metric after an epoch; return whether the trial is to be pruned.

        Trials with different numbers of epochs are compared at equal fractions of them.

        Args:
            claimed: The trial.
            value: Metric of the validation images.
            tenths: Tenths of the epochs, from 1 to 10, that the epoch has completed.
        """
        trial = claimed.trial
        with signals.defer():
            # a killed process tells no more than this
            trial.set_user_attr("seconds", claimed.seconds)
            if not math.isfinite(value) or not tenths:
                return False
            known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
            for tenth in tenths:
                if tenth not in known:  # an epoch that a resumed trial repeats
                    trial.report(value, tenth)
            return bool(trial.should_prune()) and not claimed.is_default

    def finish(
        self,
        claimed: ClaimedTrial,
        *,
        value: float | None = None,
        is_pruned: bool = False,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """End a trial: completed with a value, pruned, or failed for a reason."""
        from optuna.trial import TrialState

        state = TrialState.COMPLETE if value is not None else TrialState.FAIL
        if is_pruned:
            state = TrialState.PRUNED
        with closing(claimed.lock), signals.defer(), self.lock_study():
            for key, fact in {**(facts or {}), **({"reason": reason} if reason else {})}.items():
                claimed.trial.set_user_attr(key, fact)
            self.study.tell(claimed.trial.number, value, state=state)

    def release(self, claimed: ClaimedTrial) -> None:
        """Leave a trial that was stopped on request, for a resumed study to continue."""
        with closing(claimed.lock), suppress(Exception), signals.defer():
            claimed.trial.set_user_attr("attempts", 0)
            claimed.trial.set_user_attr("seconds", claimed.seconds)

    def close(self) -> None:
        """Close the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @contextmanager
    def lock_study(self) -> Iterator[None]:
        """Hold the lock of the study; on file systems without locks nothing is locked."""
        with translate_disk_errors(self.folder):
            lock = (self.folder / ".lock").open("a+")
        with lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _claim_new(self) -> ClaimedTrial:
        import optuna

        trials = self.study.get_trials(deepcopy=False)
        number = sum(trial.state is not optuna.trial.TrialState.WAITING for trial in trials)
        is_default = bool(trials[0].state is optuna.trial.TrialState.WAITING)
        is_drawn = not is_default or trials[0].user_attrs["inside"]
        # a function of the seed and the number, so that a resumed study draws as if uninterrupted
        self.study.sampler = optuna.samplers.TPESampler(
            seed=(self.seed * 100_003 + number) % 2**32,
            n_startup_trials=NUM_STARTUP_TRIALS,
            constant_liar=True,
        )
        distributions = {key: dim.build_distribution() for key, dim in self.space.items()}
        trial = self.study.ask(distributions if is_drawn else None)
        lock = lock_trial(self.folder, trial.number)
        assert lock is not None, "the study is locked, and the trial is new"
        trial.set_user_attr("attempts", 1)
        return self._build_claim(trial, lock)

    def _claim_abandoned(self) -> ClaimedTrial | None:
        import optuna

        for frozen in self.get_trials():
            if frozen.state is not optuna.trial.TrialState.RUNNING:
                continue
            self.decode(frozen.params)  # raises before the trial is locked
            lock = lock_trial(self.folder, frozen.number)
            if lock is None:
                continue
            trial = optuna.Trial(self.study, frozen._trial_id)
            claimed = self._build_claim(trial, lock)
            num_reported = len(frozen.intermediate_values)
            attempts = 1 + frozen.user_attrs.get("attempts", 0)
            if num_reported > frozen.user_attrs.get("reported", 0):
                attempts = 1
            if attempts > MAX_ATTEMPTS:
                trial.set_user_attr("reason", f"killed {MAX_ATTEMPTS} times without an epoch")
                self.study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
                lock.close()
                continue
            trial.set_user_attr("attempts", attempts)
            trial.set_user_attr("reported", num_reported)
            return claimed
        return None

    def _build_claim(self, trial: "optuna.Trial", lock: TextIOWrapper) -> ClaimedTrial:
        values = self.decode(trial.params)
        facts = trial.user_attrs
        return ClaimedTrial(
            trial, values, bool(facts.get("default")), lock, facts.get("seconds", 0.0)
        )

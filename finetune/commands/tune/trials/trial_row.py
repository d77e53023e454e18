"""Trials of a study as rows: of a table, of a CSV file and of JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.commands.tune.trials.trial_queue import TrialQueue
from finetune.units import format_csv

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_STATES = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial of a study.

    Attributes:
        number: Number of the trial, from 1.
        state: "completed", "pruned", "failed" or "running".
        value: Metric of its model on the validation images; None unless it completed.
        epochs: Epochs that it trained.
        num_epochs: Epochs that it was to train.
        seconds: Duration.
        values: Value of each searched key; empty for default settings outside of the space.
        is_default: Whether it is the trial of the default settings.
        metrics: Metrics of its model on the validation images.
        reason: Why it failed; empty if it did not.
        same_as: Number of the trial with the same values whose result it has; None if it trained.
        probe_kept: Whether its model is its linear probe, because no trained weights were better.
    """

    number: int
    state: str
    value: float | None
    epochs: int | None
    num_epochs: int | None
    seconds: float | None
    values: Mapping[str, Any]
    is_default: bool
    metrics: Mapping[str, Any]
    reason: str
    same_as: int | None = None
    probe_kept: bool = False

    @classmethod
    def from_trial(cls, trial: "FrozenTrial", queue: TrialQueue) -> "TrialRow":
        """Return the row of a trial in the database."""
        facts = trial.user_attrs
        return cls(
            number=trial.number + 1,
            state=_STATES[trial.state.name],
            value=trial.value if trial.state.name == "COMPLETE" else None,
            epochs=facts.get("epochs"),
            num_epochs=facts.get("num_epochs"),
            seconds=facts.get("seconds"),
            values=queue.decode(trial.params),
            is_default=bool(facts.get("default")),
            metrics=facts.get("metrics", {}),
            reason=facts.get("reason", ""),
            same_as=facts.get("same_as"),
            probe_kept=bool(facts.get("probe_kept")),
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "number": self.number,
            "state": self.state,
            "value": self.value,
            "epochs": self.epochs,
            "num_epochs": self.num_epochs,
            "seconds": self.seconds,
            "default": self.is_default,
            "values": dict(self.values),
            "metrics": dict(self.metrics),
            "reason": self.reason,
            "same_as": self.same_as,
            "probe_kept": self.probe_kept,
        }


def find_best(trials: Sequence[TrialRow], *, maximize: bool) -> TrialRow | None:
    """Return the best completed trial, the first of equal ones; None if none has completed."""
    completed = [trial for trial in trials if trial.value is not None]
    sign = -1 if maximize else 1
    return min(
        completed, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None
    )


def read_rows(queue: TrialQueue) -> tuple[TrialRow, ...]:
    """Return the trials of a study, by number."""
    return tuple(TrialRow.from_trial(trial, queue) for trial in queue.get_trials())


def find_same(
    trials: Sequence[TrialRow], number: int, values: Mapping[str, Any]
) -> TrialRow | None:
    """Return an earlier trial that completed with the same values; None if there is none.

    Args:
        trials: Trials of the study.
        number: Number of the trial that is about to run.
        values: Its value of each searched key; empty for default settings outside of the space.
    """
    return next(
        (
            row
            for row in trials
            if row.number < number
            and row.value is not None
            and row.same_as is None
            and values
            and row.values == values
        ),
        None,
    )


def format_trials_csv(trials: Sequence[TrialRow]) -> str:
    """Return the trials as CSV, one line each, with the searched keys as columns."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    columns = ["number", "state", "value", "epochs", "num_epochs", "seconds"]
    columns += ["default", "probe_kept"]
    rows = []
    for trial in trials:
        tree = trial.to_json()
        rows.append(
            [
                *(tree[name] for name in columns),
                *(trial.values.get(key) for key in keys),
                *(trial.metrics.get(name) for name in metrics),
                trial.reason,
            ]
        )
    return format_csv([*columns, *keys, *(f"val/{name}" for name in metrics), "reason"], rows)

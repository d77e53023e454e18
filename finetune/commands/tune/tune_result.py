"""Result of a study: its trials, what the best one gained, and the files that hold both."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.commands.tune.best_config import format_best_config
from finetune.commands.tune.gain import TuneGain
from finetune.commands.tune.study_folder import StudyFolder, StudySettings
from finetune.commands.tune.trials.trial_queue import TrialQueue
from finetune.system.files import write_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MIN_TRIALS_FOR_IMPORTANCE = 10
"""Completed trials from which the importance of the settings is estimated."""

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

    @classmethod
    def from_trial(cls, trial: "FrozenTrial", queue: TrialQueue) -> "TrialRow":
        """Return the row of a trial in the database."""
        facts = trial.user_attrs
        space = queue.space
        return cls(
            number=trial.number + 1,
            state=_STATES[trial.state.name],
            value=trial.value if trial.state.name == "COMPLETE" else None,
            epochs=facts.get("epochs"),
            num_epochs=facts.get("num_epochs"),
            seconds=facts.get("seconds"),
            values={key: space[key].decode(stored) for key, stored in trial.params.items()},
            is_default=bool(facts.get("default")),
            metrics=facts.get("metrics", {}),
            reason=facts.get("reason", ""),
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
        }


@dataclass(frozen=True, slots=True)
class TuneResult:
    """Trials of a study, and the gain of the best one.

    Attributes:
        study_dir: Folder of the study.
        settings: Settings of the study.
        trials: Its trials, by number.
        hold_out: Clause on the images on which the gain is reported.
        gain: Comparison of the best trial with the default settings; None if the default is the
            best, or other processes still run trials.
        is_finished: Whether no trial is running, so that the gain is final.
        importance: Fraction of the variance of the metric that each searched key explains.
        seconds: Wall time of this call.
    """

    study_dir: Path
    settings: StudySettings
    trials: tuple[TrialRow, ...]
    hold_out: str
    gain: TuneGain | None
    is_finished: bool
    importance: Mapping[str, float]
    seconds: float

    @property
    def best(self) -> TrialRow | None:
        """The best completed trial, the first of equal ones; None if none has completed."""
        return find_best(self.trials, maximize=self.settings.maximize)

    @property
    def next_command(self) -> list[str]:
        """Command line that trains with what the search has found; empty if it found nothing."""
        if self.best is None or self.best.is_default:
            return []
        config = StudyFolder(self.study_dir).best_config_path
        return ["finetune", "fit", "--config", str(config)]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        best = self.best
        return {
            "study_dir": str(self.study_dir),
            "monitor": self.settings.monitor,
            "num_trials": self.settings.num_trials,
            "is_finished": self.is_finished,
            "hold_out": self.hold_out,
            "best": None if best is None else best.to_json(),
            "gain": None if self.gain is None else self.gain.to_json(),
            "importance": dict(self.importance),
            "trials": [trial.to_json() for trial in self.trials],
            "defaults": dict(self.settings.defaults),
            "next_command": self.next_command,
            "seconds": round(self.seconds, 3),
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


def write_result(study: StudyFolder, result: TuneResult) -> None:
    """Write ``trials.csv``, ``best.yaml`` and ``tune.json``.

    Raises:
        StorageError: The disk is full or fails.
    """
    write_text(study.trials_csv_path, format_trials_csv(result.trials))
    best = result.best
    if best is not None:
        text = format_best_config(
            {} if best.is_default else best.values,
            number=best.number,
            overrides={**result.settings.overrides, "data.path": result.settings.data},
            defaults=result.settings.defaults,
            heading=_build_heading(result, best),
        )
        write_text(study.best_config_path, text)
    tree = json.dumps(result.to_json(), indent=2, ensure_ascii=False)
    write_text(study.result_path, tree + "\n")


def format_trials_csv(trials: Sequence[TrialRow]) -> str:
    """Return the trials as CSV, one line each, with the searched keys as columns."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    columns = ["number", "state", "value", "epochs", "num_epochs", "seconds", "default"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *keys, *(f"val/{name}" for name in metrics), "reason"])
    for trial in trials:
        tree = trial.to_json()
        writer.writerow(
            [
                *(tree[name] for name in columns),
                *(trial.values.get(key) for key in keys),
                *(trial.metrics.get(name) for name in metrics),
                trial.reason,
            ]
        )
    return text.getvalue()


def estimate_importance(queue: TrialQueue) -> dict[str, float]:
    """Return the fraction of the metric's variance that each searched key explains, by fANOVA.

    Empty with few completed trials, or if the metric does not vary.
    """
    import optuna

    with_values = [
        trial
        for trial in queue.get_trials()
        if trial.state is optuna.trial.TrialState.COMPLETE and trial.params
    ]
    if len(with_values) < MIN_TRIALS_FOR_IMPORTANCE or len(queue.space) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=queue.seed)
    try:
        return optuna.importance.get_param_importances(queue.study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # no variance
        return {}


def _build_heading(result: TuneResult, best: TrialRow) -> list[str]:
    """Return the comment at the top of ``best.yaml``."""
    number, settings = best.number, result.settings
    lines = [
        f"Best of {len(result.trials)} trials of finetune tune: trial {number}, "
        f"val/{settings.monitor} {best.value:.4f}."
    ]
    if best.is_default:
        lines.append("No trial was better than the default settings.")
    if result.gain is not None:
        diff = result.gain.held_out.differences
        loss, accuracy = diff["loss"], diff["accuracy"]
        lines += [
            f"Gain over the default settings on {result.gain.held_out.num_images} held-out images "
            f"(95% interval):",
            f"accuracy {100 * accuracy.difference:+.1f} points ({100 * accuracy.low:+.1f} to "
            f"{100 * accuracy.high:+.1f}), log loss {loss.difference:+.4f} ({loss.low:+.4f} to "
            f"{loss.high:+.4f}).",
        ]
    fraction = settings.test_fraction
    if settings.hold_out == "drawn" and settings.overrides.get("data.test_fraction") is not None:
        lines += [
            f"The trials left out {fraction:.0%} of the images for it, and so does fit: "
            f"data.test_fraction",
            "was given. Remove the line to train with all images.",
        ]
    elif settings.hold_out == "drawn":
        lines += [
            f"The trials left out {fraction:.0%} of the images for it; fit uses them.",
            f"To repeat the trial exactly, add data.test_fraction={fraction:g}.",
        ]
    if settings.hold_out == "half":
        lines += [
            "The trials were validated on the other half of the validation split; fit chooses its",
            "epoch on all of it.",
        ]
    return [*lines, "Train with it: finetune fit --config best.yaml"]

"""Result of a study: its trials, what the best one gained, and the files that hold both."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.tune.best_config import format_best_config
from finetune.commands.tune.gain import TuneGain, summarize_gain
from finetune.commands.tune.study_folder import StudyFolder, StudySettings
from finetune.commands.tune.trials.trial_queue import TrialQueue
from finetune.commands.tune.trials.trial_row import TrialRow, find_best, format_trials_csv
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION
from finetune.report.number_formats import format_metric_in_sentence
from finetune.system.files import write_text
from finetune.units import format_count

MIN_TRIALS_FOR_IMPORTANCE = 10
"""Completed trials from which the importance of the settings is estimated."""


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
    def is_gain(self) -> bool:
        """Whether to take the best trial: the held-out images do not tell against it."""
        if self.best is None or self.best.is_default:
            return False
        return self.gain is None or self.gain.verdict == "better"

    @property
    def next_command(self) -> list[str]:
        """Command line that trains with what the search recommends; empty if it cannot tell yet.

        That is the config of the best trial if it gained beyond chance, or if its gain could not be
        measured; else the default settings, with the images that were set aside.
        """
        ended = [row for row in self.trials if not row.is_default and row.state != "running"]
        if not self.is_finished or self.best is None or not ended:
            return []
        study = StudyFolder(self.study_dir)
        if self.is_gain:
            return ["finetune", "fit", "--config", str(study.best_config_path)]
        command = ["finetune", "fit", "--config", str(study.base_config_path)]
        return [*command, "data.test_fraction=0"] if self.is_hold_out_released else command

    @property
    def is_hold_out_released(self) -> bool:
        """Whether the hold-out was drawn for the search alone, so that ``fit`` may train on it."""
        is_given = "data.test_fraction" in self.settings.overrides
        return self.settings.hold_out == "drawn" and not is_given

    @property
    def summary(self) -> str:
        """Sentences on what the search gained, or why that is not known."""
        return " ".join(filter(None, (self._describe_gain(), self._describe_kept_probes())))

    def _describe_gain(self) -> str:
        if self.gain is not None:
            return summarize_gain(self.gain)
        if not self.is_finished:
            return (
                "Other processes still run trials of this study; the last one to end reports the "
                "gain."
            )
        if self.best is None:
            return "No trial has completed. Continue the study with --resume."
        if not self.best.is_default:
            return (
                "The gain cannot be measured: every held-out image has a duplicate in training or "
                "validation, or no label, or the trial with the default settings has not completed."
            )
        states = {row.state for row in self.trials if not row.is_default} - {"running"}
        if not states:
            return (
                "Only the trial with the default settings has ended, so there is nothing to "
                "compare with it yet. Continue the study with --resume, and more time."
            )
        if states == {"failed"}:
            return (
                "All other trials have failed, so the search tells nothing about the default "
                "settings. Search other values."
            )
        return "No trial was better than the default settings: the search gained nothing."

    def _describe_kept_probes(self) -> str:
        """Return what it means that trials kept their linear probe; empty if none of note did."""
        completed = [row for row in self.trials if row.value is not None]
        if len(completed) > 1 and all(row.probe_kept for row in completed):
            return (
                f"All {len(completed)} completed trials kept their linear probe: no trained "
                f"weights were better on the validation images, so what was searched of "
                f"fine-tuning changed nothing that was compared."
            )
        if self.best is not None and self.best.probe_kept:
            return (
                f"Trial {self.best.number}, the best, kept its linear probe: none of its trained "
                f"weights were better on the validation images."
            )
        return ""

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
            "summary": self.summary,
            "importance": dict(self.importance),
            "trials": [trial.to_json() for trial in self.trials],
            "defaults": dict(self.settings.defaults),
            "next_command": self.next_command,
            "seconds": round(self.seconds, 3),
        }


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
        f"Best of {format_count(len(result.trials), 'trial')} of finetune tune: trial {number}, "
        f"val/{settings.monitor} {best.value:.4f}.",
        *textwrap.wrap(result.summary, 98),
    ]
    if result.gain is not None:
        diff = result.gain.held_out.differences
        name = "accuracy" if "accuracy" in diff else MEAN_AVERAGE_PRECISION
        loss, rate = diff["loss"], diff[name]
        lines += [
            f"Gain over the default settings on {result.gain.held_out.num_images} held-out images "
            f"(95% interval):",
            f"{format_metric_in_sentence(name)} {100 * rate.difference:+.1f} points "
            f"({100 * rate.low:+.1f} to {100 * rate.high:+.1f}), log loss "
            f"{loss.difference:+.4f} ({loss.low:+.4f} to {loss.high:+.4f}).",
        ]
    fraction = settings.test_fraction
    if settings.hold_out == "drawn" and not result.is_hold_out_released:
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
    if not result.is_gain:
        return [*lines, "To train with it all the same: finetune fit --config best.yaml"]
    return [*lines, "Train with it: finetune fit --config best.yaml"]

"""Tests of ``finetune.commands.tune.tune_result``: the verdict and what follows from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.tune.gain import TuneGain, describe_differences, summarize_gain
from finetune.commands.tune.study_folder import StudyFolder, StudySettings
from finetune.commands.tune.trials.trial_row import TrialRow
from finetune.commands.tune.tune_result import TuneResult, write_result
from finetune.evaluation.paired_comparison import PairedComparison, PairedDifference

BETTER, WORSE, CHANCE = (0.01, 0.03), (-0.03, -0.01), (-0.01, 0.02)


def build_gain(monitor: str, **ends: tuple[float, float]) -> TuneGain:
    """Return a gain from the ends of the intervals; those of a gain are positive."""
    differences = {}
    for name in ("accuracy", "macro_f1", "loss"):
        low, high = ends.get(name, CHANCE)
        if name == "loss":
            low, high = -high, -low
        middle = (low + high) / 2
        differences[name] = PairedDifference(name, 0.5, 0.5 + middle, middle, low, high)
    comparison = PairedComparison(40, 1, 2, 1.0, differences)
    return TuneGain(comparison, comparison, 0, monitor)


def build_row(number: int, state: str, value: float | None) -> TrialRow:
    """Return a trial; the first has the default settings."""
    values = {} if number == 1 else {"optim.lr": 0.1}
    return TrialRow(number, state, value, 2, 2, 1.0, values, number == 1, {}, "")


def build_result(folder: Path, gain: TuneGain | None, **changes: Any) -> TuneResult:
    """Return the result of a study of two trials, the second the better one."""
    settings = StudySettings(
        num_trials=2, seed=0, monitor="calibrated_loss", judged_by="loss", hold_out="drawn",
        test_fraction=0.2, data="/photos", overrides=changes.pop("overrides", {}),
        defaults={"optim.lr": None},
    )  # fmt: skip
    trials = (build_row(1, "completed", 0.5), build_row(2, "completed", 0.4))
    given = {"trials": trials, "is_finished": True, **changes}
    return TuneResult(
        study_dir=folder, settings=settings, hold_out="8 images", gain=gain, importance={},
        seconds=1.0, **given,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("monitor", "ends", "verdict"),
    [
        ("calibrated_loss", {"loss": BETTER}, "better"),
        ("calibrated_loss", {"accuracy": BETTER, "macro_f1": BETTER}, "no difference"),
        ("loss", {"loss": WORSE, "accuracy": BETTER}, "worse"),
        ("accuracy", {"loss": BETTER}, "no difference"),
        ("accuracy", {"accuracy": BETTER}, "better"),
        ("balanced_accuracy", {"macro_f1": BETTER}, "better"),
    ],
)
def test_verdict_is_that_of_the_metric_that_chose(
    monitor: str, ends: dict[str, tuple[float, float]], verdict: str, tmp_path: Path
) -> None:
    gain = build_gain(monitor, **ends)
    result = build_result(tmp_path, gain)
    assert gain.verdict.startswith(verdict)
    rows = describe_differences(gain.held_out.to_json(), decisive=gain.metric)
    assert sum(row[-1] != "" for row in rows) == 1
    base = ["finetune", "fit", "--config", str(tmp_path / "base.yaml"), "data.test_fraction=0"]
    best = ["finetune", "fit", "--config", str(tmp_path / "best.yaml")]
    assert result.next_command == (best if verdict == "better" else base)
    write_result(StudyFolder(tmp_path), result)
    heading = (tmp_path / "best.yaml").read_text().replace("\n#", "")
    assert result.summary in heading
    assert ("all the same" in heading) == (verdict != "better")


@pytest.mark.parametrize(
    ("kept", "start", "end"),
    [
        ((True, True), "All 2 completed trials kept their linear probe:", "that was compared."),
        ((False, True), "Trial 2, the best, kept its linear probe:", "validation images."),
        ((True, False), "", ""),
    ],
)
def test_summary_says_that_trials_kept_their_probe(
    kept: tuple[bool, bool], start: str, end: str, tmp_path: Path
) -> None:
    rows = tuple(
        replace(build_row(number, "completed", 1 / number), probe_kept=is_kept)
        for number, is_kept in enumerate(kept, 1)
    )
    gain = build_gain("calibrated_loss")
    summary = build_result(tmp_path, gain, trials=rows).summary
    first = summarize_gain(gain)
    assert summary.startswith(first)
    rest = summary.removeprefix(first).strip()
    assert rest.startswith(start)
    assert rest.endswith(end)
    assert bool(rest) == bool(start)


def test_summary_of_a_gain_names_what_is_worse(tmp_path: Path) -> None:
    result = build_result(tmp_path, build_gain("loss", loss=BETTER, accuracy=WORSE))
    assert "gained beyond chance in log loss" in result.summary
    assert "But it is worse in accuracy" in result.summary


@pytest.mark.parametrize(
    ("monitor", "is_calibrated", "part"),
    [
        ("calibrated_loss", True, ""),
        ("calibrated_loss", False, "Without calibration"),
        ("loss", False, ""),
        ("balanced_accuracy", True, "chosen by balanced_accuracy, to which macro F1"),
    ],
)
def test_summary_says_where_another_metric_chose(
    monitor: str, is_calibrated: bool, part: str
) -> None:
    gain = replace(build_gain(monitor), is_calibrated=is_calibrated)
    last = summarize_gain(gain).partition("held-out images by ")[2].partition(". ")[2]
    assert (part in last) if part else not last


def test_next_command_keeps_a_hold_out_that_the_user_gave(tmp_path: Path) -> None:
    gain = build_gain("loss")
    result = build_result(tmp_path, gain, overrides={"data.test_fraction": 0.2})
    assert result.next_command[-1] == str(tmp_path / "base.yaml")


@pytest.mark.parametrize(
    ("states", "part", "num_words"),
    [
        ([], "Only the trial with the default settings", 0),
        (["running"], "Only the trial with the default settings", 0),
        (["failed", "failed"], "All other trials have failed", 5),
        (["failed", "pruned"], "No trial was better", 5),
    ],
)
def test_summary_without_another_completed_trial(
    states: list[str], part: str, num_words: int, tmp_path: Path
) -> None:
    rows = [build_row(number, state, None) for number, state in enumerate(states, start=2)]
    result = build_result(tmp_path, None, trials=(build_row(1, "completed", 0.5), *rows))
    assert part in result.summary
    assert len(result.next_command) == num_words

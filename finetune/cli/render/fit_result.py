"""Result of a run, or of a cross-validation, on the console."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.cli.render.evaluation_table import format_metric
from finetune.cli.render.findings.diagnosis_lines import build_diagnosis_lines
from finetune.exporters.timm_format import explain_refusal
from finetune.report.number_formats import format_metric_in_sentence
from finetune.system.run_folder import RunFolder
from finetune.units import format_count, format_duration

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

_MIN_EARLIER_SECONDS = 1.0
"""Seconds of earlier processes from which they are shown."""

OUT_OF_FOLD = "out_of_fold"
"""Name of the images that folds hold out, in place of a split."""

_EXPECTED = ("accuracy", "mean_average_precision")
"""Metric that says what to expect of the model of a cross-validation; one class, or labels."""


def show_fit(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    """Show the metrics of a run, its folder, and what may be done with it.

    Args:
        reporter: Console.
        tree: Result as ``FitResult.to_json`` returns it.
    """
    if tree["cross_validation"] is not None:
        _show_cross_validation(reporter, tree)
    else:
        _show_splits(reporter, tree, "Best model")
        if tree["calibration"] is not None:
            reporter.show_calibration(tree["calibration"])
    if tree["diagnosis"] is not None:
        for line in build_diagnosis_lines(tree["diagnosis"]):
            reporter.note(line)
    run_dir = tree["run_dir"]
    run = RunFolder(Path(run_dir))
    reporter.note(f"Run folder: {run_dir} ({_describe_time(run, tree['seconds'])})")
    if run.report_path.is_file():
        reporter.note(f"Report: {run.report_path}")
    whole = run.cross_validation_run.path
    is_part = whole != Path(run_dir)
    if is_part:
        reporter.note(
            "This is a part of a cross-validation. Resuming that trains what is left, and writes "
            "its model."
        )
    has_split = set(tree["metrics"]) != {OUT_OF_FOLD}
    commands = [
        *([["finetune", "fit", "--resume", str(whole)]] if is_part else []),
        ["finetune", "evaluate", run_dir, *([] if has_split else ["OTHER_PHOTOS"])],
        ["finetune", "predict", run_dir, "NEW_PHOTOS", "--output", "predictions.csv"],
    ]
    model = tree["plan"].get("model", {})
    final = (tree["cross_validation"] or {}).get("final") or {}
    # an ensemble is no timm folder, and may have any members
    if model and (
        final.get("kind") == "ensemble"
        or explain_refusal(model["backbone"], model.get("head")) is None
    ):
        commands.append(["finetune", "export", run_dir, "--output", "model/"])
    reporter.print_commands("Next:", commands)


def _describe_time(run: RunFolder, seconds: float) -> str:
    """Return the time of this call, and that of all processes of a run that was resumed.

    Args:
        run: Run folder.
        seconds: Wall time of this call.
    """
    from finetune.commands.report.run_session import read_sessions

    sessions = read_sessions(run)
    total = sum(session.get("seconds", 0.0) for session in sessions)
    if total <= seconds + _MIN_EARLIER_SECONDS:
        return format_duration(seconds)
    when = "when it was trained" if len(sessions) == 1 else f"in {len(sessions)} sessions"
    return f"{format_duration(seconds)} now, {format_duration(total)} {when}"


def _show_splits(
    reporter: "ConsoleReporter", tree: Mapping[str, Any], model: str, *, skip: str = ""
) -> None:
    """Show the evaluation of each split, and the classes of the last one."""
    splits = [split for split in tree["metrics"] if not split.endswith("_without_leaks")]
    for split, metrics in tree["metrics"].items():
        if split == skip:
            continue
        title = f"{model} on {split.replace('_', ' ')}:"
        details = tree["evaluations"].get(split)
        if details is None:  # a complete run of an earlier release
            values = ", ".join(f"{key} {format_metric(key, metrics[key])}" for key in metrics)
            reporter.note(f"{title} {values}")
            continue
        reporter.note(title)
        evaluation = {"split": None, "tta": False, "metrics": metrics, **details}
        reporter.show_evaluation(evaluation, show_classes=split == splits[-1])


def _show_cross_validation(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    """Show metrics with intervals over the folds, all held-out images, and the model's own test."""
    summary = tree["cross_validation"]
    reporter.note(
        f"Cross-validation with {summary['num_folds']} folds, "
        f"{format_count(summary['num_images'], 'image')}:"
    )
    reporter.print_rows(
        ("metric", "mean", "std", "95% interval", "folds"), _build_metric_rows(summary["metrics"])
    )
    if summary["test_metrics"]:
        reporter.note("The networks of the folds on test:")
        rows = _build_metric_rows(summary["test_metrics"])
        reporter.print_rows(
            ("metric", "mean", "std", "folds"), [[*row[:3], row[4]] for row in rows]
        )
    reporter.note("Each image by the fold that holds it out:")
    details = tree["evaluations"][OUT_OF_FOLD]
    evaluation = {"split": None, "tta": False, "metrics": tree["metrics"][OUT_OF_FOLD], **details}
    reporter.show_evaluation(evaluation, show_classes=True)
    _show_splits(reporter, tree, "Model", skip=OUT_OF_FOLD)
    reporter.note(_describe_model(summary))


def _build_metric_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return a row of text for each metric."""
    rows = []
    for name, entry in metrics.items():
        values = [value for value in entry["values"] if value is not None]
        rows.append(
            [
                name.replace("_", " "),
                format_metric(name, entry["mean"]),
                format_metric(name, entry["std"]),
                _format_interval(name, entry["interval"]),
                f"{format_metric(name, min(values))} to {format_metric(name, max(values))}",
            ]
        )
    return rows


def _format_interval(name: str, interval: Sequence[float] | None) -> str:
    """Return an interval of a metric; undefined where all folds have the same value."""
    if interval is None:
        return format_metric(name, None)
    low, high = (format_metric(name, value) for value in interval)
    return f"{low} to {high}"


def _describe_model(summary: Mapping[str, Any]) -> str:
    """Return the sentence on the model that the folds lead to, and what to expect of it."""
    num_folds, kind = summary["num_folds"], summary["final"]["kind"]
    name = (
        f"the mean of the probabilities of the {num_folds} networks"
        if kind == "ensemble"
        else "one network, trained on all images"
    )
    metrics = summary["metrics"]
    metric = next((one for one in _EXPECTED if one in metrics), None)
    if metric is None:
        return f"Model: {name}."
    entry = metrics[metric]
    interval = _format_interval(metric, entry["interval"])
    expected = (
        f"expected {format_metric_in_sentence(metric)} {format_metric(metric, entry['mean'])} "
        f"({interval}) from {num_folds} folds"
    )
    if metric != "accuracy":  # no mean over images: with few of a label, that of a fold is too high
        pooled = format_metric(metric, summary[OUT_OF_FOLD]["metrics"].get(metric))
        expected += f", {pooled} of all held-out images together"
    is_tested = any(not split.startswith(OUT_OF_FOLD) for split in summary["final"]["metrics"])
    measured = "" if is_tested else "; not measured on this model itself"
    return f"Model: {name}; {expected}{measured}."

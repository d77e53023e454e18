"""Section with the curves of several runs in the same charts."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.report.charts.group_colors import choose_group_colors
from finetune.report.charts.line_chart import Line, LineChart
from finetune.report.comparison.runs_section import label_runs
from finetune.report.number_formats import format_metric_in_sentence, is_loss
from finetune.report.run_facts import RunFacts


@dataclass(frozen=True, slots=True)
class OverlaySection:
    """Charts with a line for each run."""

    charts: tuple[LineChart, ...]


def build_overlay(runs: Sequence[RunFacts]) -> OverlaySection | None:
    """Return the validation curves of the runs; None where fewer than two have any."""
    monitor = runs[0].monitor
    metric = monitor if not is_loss(monitor) else "accuracy"
    charts = [
        _build_chart(runs, f"{split}/{name}", f"{words} {format_metric_in_sentence(name)}", kind)
        for name, kind in (("loss", "number"), (metric, "percent"))
        for split, words in (("val", "Validation"), ("train_eval", "Training"))
    ]
    known = tuple(chart for chart in charts if chart is not None)
    return OverlaySection(known) if known else None


def _build_chart(runs: Sequence[RunFacts], column: str, title: str, kind: str) -> LineChart | None:
    epochs = sorted({row["epoch"] for run in runs for row in run.rows if column in row})
    colors = choose_group_colors(len(runs))
    lines = []
    for label, color, run in zip(label_runs(runs), colors, runs, strict=True):
        values = {row["epoch"]: row.get(column) for row in run.rows}
        if any(value is not None for value in values.values()):
            lines.append(Line(label, tuple(values.get(epoch) for epoch in epochs), color))
    if len(lines) < 2:
        return None
    name = "chart-" + column.replace("/", "-").replace("_", "-")
    return LineChart(
        name,
        title,
        tuple(epochs),
        tuple(lines),
        caption="Epoch 0 is the linear probe." if epochs[0] == 0 else "",
        kind=kind,
    )

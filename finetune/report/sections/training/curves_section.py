"""Section on the curves: losses, metrics, learning rates and what happens to each layer group."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.evaluation.measured_precision import describe_measurement
from finetune.report.charts.group_colors import choose_group_colors
from finetune.report.charts.line_chart import Band, Line, LineChart, collect_column
from finetune.report.kept_weights import find_best_epoch, get_checkpoint_monitor
from finetune.report.number_formats import (
    format_metric,
    format_metric_in_sentence,
    format_metric_name,
    is_loss,
)
from finetune.report.phases import find_phases, list_groups
from finetune.report.run_facts import Row, RunFacts

_GROUP_CHARTS = (
    ("lr", "Learning rate by layer group", "At the end of each epoch."),
    (
        "grad_norm",
        "Gradient norm by layer group",
        "Mean over the steps of an epoch, before clipping.",
    ),
    (
        "weight_change",
        "Relative weight change by layer group",
        "Norm of the change over an epoch, relative to the norm of the weights.",
    ),
)

TRAIN_LOSS = "training loss, augmented"
"""Name of ``train/loss``, beside the log loss of training images as they are."""


@dataclass(frozen=True, slots=True)
class CurvesSection:
    """Curves of a run.

    Attributes:
        charts: Charts in their order.
        note: What cannot be compared in them; may be empty.
        columns: Header of the table of values.
        table: Rows of text, one for each epoch.
    """

    charts: tuple[LineChart, ...]
    note: str
    columns: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


def build_curves(facts: RunFacts) -> CurvesSection | None:
    """Return the curves of a run, or those of its folds; None without an epoch."""
    if facts.fold_rows and not facts.rows:
        return _build_fold_curves(facts)
    epochs = [row for row in facts.rows if row["epoch"] > 0]
    if not epochs:
        return None
    charts = [_build_loss_chart(facts, epochs), _build_metric_chart(facts, epochs)]
    charts += [_build_group_chart(facts, epochs, *one) for one in _GROUP_CHARTS]
    has_train_eval = any("train_eval/loss" in row for row in epochs)
    note = "" if has_train_eval else (
        "The training loss is of augmented images, with label smoothing and dropout where they "
        "are on: it cannot be compared with the validation loss."
    )  # fmt: skip
    note = f"{note} {describe_measurement(facts.config.get('trainer.precision'))}".strip()
    names = ["train/loss", "train_eval/loss", "val/loss", f"val/{_choose_metric(facts)}"]
    names = [name for name in names if any(name in row for row in facts.rows)]
    return CurvesSection(
        tuple(chart for chart in charts if chart is not None),
        note,
        ("epoch", *(_name_column(name) for name in names), "seconds"),
        tuple(_format_row(row, names) for row in facts.rows),
    )


def _choose_metric(facts: RunFacts) -> str:
    """Return the metric of the second chart: the monitored one, or the first that is no loss."""
    if not is_loss(facts.monitor):
        return facts.monitor
    return "mean_average_precision" if facts.is_multi_label else "accuracy"


def _build_loss_chart(facts: RunFacts, epochs: Sequence[Row]) -> LineChart | None:
    probe = _find_probe_value(facts, "val/loss")
    lines = [
        Line("training", collect_column(epochs, "train_eval/loss"), "--series-1"),
        Line("validation", collect_column(epochs, "val/loss"), "--series-2"),
    ]
    if get_checkpoint_monitor(facts) == "calibrated_loss":
        values = collect_column(epochs, "val/calibrated_loss")
        lines.append(Line("validation, calibrated", values, "--series-4"))
    lines.append(
        Line(TRAIN_LOSS, collect_column(epochs, "train/loss"), "--series-7", is_faint=True)
    )
    return _build_chart(facts, epochs, "loss", "Log loss", lines, probe=probe)


def _build_metric_chart(facts: RunFacts, epochs: Sequence[Row]) -> LineChart | None:
    metric = _choose_metric(facts)
    lines = [
        Line("training", collect_column(epochs, f"train_eval/{metric}"), "--series-1"),
        Line("validation", collect_column(epochs, f"val/{metric}"), "--series-2"),
    ]
    return _build_chart(
        facts,
        epochs,
        "metric",
        format_metric_name(metric),
        lines,
        probe=_find_probe_value(facts, f"val/{metric}"),
        kind="percent",
    )


def _build_group_chart(
    facts: RunFacts, epochs: Sequence[Row], prefix: str, title: str, caption: str
) -> LineChart | None:
    # the same order and colors in all charts
    groups = tuple(dict.fromkeys((*list_groups(epochs, "lr"), *list_groups(epochs, prefix))))
    colors = choose_group_colors(len(groups))
    lines = [
        Line(group, collect_column(epochs, f"{prefix}/{group}"), color)
        for group, color in zip(groups, colors, strict=True)
    ]
    return _build_chart(
        facts, epochs, prefix.replace("_", "-"), title, lines, kind="log", caption=caption
    )


def _build_chart(
    facts: RunFacts,
    epochs: Sequence[Row],
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    probe: float | None = None,
    kind: str = "number",
    caption: str = "",
) -> LineChart | None:
    """Return a chart of the lines that have values; None without any."""
    known = [line for line in lines if any(value is not None for value in line.values)]
    if kind == "log":
        known = [line for line in known if any(value and value > 0 for value in line.values)]
    if not known:
        return None
    if probe is not None:
        baseline = (probe,) * len(epochs)
        known.append(Line("linear probe, validation", baseline, "--series-3", dash="5 4"))
    best = find_best_epoch(facts.rows, get_checkpoint_monitor(facts))
    is_shown = best is not None and best > 0
    num_groups = len(list_groups(facts.rows, "lr"))
    phases = find_phases(facts.rows)
    bands = [
        Band(phase.first_epoch - 0.5, phase.last_epoch + 0.5, phase.name_briefly(num_groups))
        for phase in phases
    ]
    return LineChart(
        f"chart-{name}",
        title,
        tuple(float(row["epoch"]) for row in epochs),
        tuple(known),
        caption=caption,
        bands=tuple(bands),
        mark=float(best) if is_shown and best is not None else None,
        mark_label=f"best epoch ({best})" if is_shown else "",
        kind=kind,
    )


def _build_fold_curves(facts: RunFacts) -> CurvesSection:
    """Return the validation loss and the monitored metric of each fold."""
    x = tuple(sorted({row["epoch"] for rows in facts.fold_rows.values() for row in rows}))
    colors = choose_group_colors(len(facts.fold_rows))
    metric = _choose_metric(facts)
    charts = []
    for name, title, kind in (
        ("loss", "Validation loss of each fold", "number"),
        (metric, f"{format_metric_name(metric)} of each fold", "percent"),
    ):
        lines = []
        for (fold, rows), color in zip(sorted(facts.fold_rows.items()), colors, strict=True):
            values = {row["epoch"]: row.get(f"val/{name}") for row in rows}
            lines.append(Line(f"fold {fold}", tuple(values.get(e) for e in x), color))
        caption = "Epoch 0 is the linear probe." if x[0] == 0 else ""
        charts.append(
            LineChart(f"chart-folds-{name}", title, x, tuple(lines), caption=caption, kind=kind)
        )
    return CurvesSection(tuple(charts), "", (), ())


def _find_probe_value(facts: RunFacts, column: str) -> float | None:
    return next((row.get(column) for row in facts.rows if row["epoch"] == 0), None)


def _name_column(name: str) -> str:
    if name == "train/loss":
        return TRAIN_LOSS
    split, _, metric = name.partition("/")
    names = {"train_eval": "training", "val": "validation"}
    return f"{names[split]} {format_metric_in_sentence(metric)}"


def _format_row(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    values = (
        format_metric(row[name], name.partition("/")[2]) if name in row else "" for name in names
    )
    epoch = int(row["epoch"])
    seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
    return ("0 (linear probe)" if epoch == 0 else str(epoch), *values, seconds)

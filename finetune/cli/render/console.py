"""What a person sees: notes, the plan, progress and tables, 80 columns wide or less."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finetune.cli.render.evaluation_table import (
    build_class_table,
    build_overall_rows,
    build_remarks,
)
from finetune.cli.render.plan_table import build_plan_rows, describe_probe_result, format_count
from finetune.types import Reporter


class ConsoleReporter(Reporter):
    """Shows on a console what a command reports.

    Args:
        json_output: Keep standard output for one JSON object; everything else goes to standard error.
        rank: Which of several processes this is; warnings and errors begin with it.
    """

    def __init__(self, *, json_output: bool = False, rank: int | None = None) -> None:
        self.json_output = json_output
        self._rank_prefix = "" if rank is None else escape(f"[rank {rank}] ")
        self.err_console = Console(stderr=True, highlight=False)
        self.console = self.err_console if json_output else Console(highlight=False)
        self._progress: Progress | None = None
        self._epoch_columns: Sequence[str] = ()

    def note(self, message: str) -> None:
        """Print a line."""
        self.console.print(escape(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a line that stands out, on standard error."""
        self.err_console.print(f"{self._rank_prefix}[yellow]warning:[/] {escape(message)}")

    def error(self, message: str) -> None:
        """Print what went wrong, on standard error."""
        self.err_console.print(f"{self._rank_prefix}[bold red]error:[/] {escape(message)}")

    def start(self, task: str, total: int) -> None:
        """Show a bar on a terminal; nothing elsewhere."""
        self.finish()
        if not self.err_console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.err_console,
            transient=True,
        )
        self._progress.start()
        self._progress.add_task(task, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], steps)

    def finish(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Say what the head of the frozen backbone came to, and from how many answers."""
        self.finish()
        for line in describe_probe_result(result):
            self.note(line)

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Print a row of the table of epochs, and its head before the first."""
        self.finish()
        columns = [
            ("epoch", "{:>5}", "epoch"),
            ("train/loss", "{:>10.4f}", "train loss"),
            ("val/loss", "{:>8.4f}", "val loss"),
            ("val/accuracy", "{:>8.4f}", "accuracy"),
            ("val/balanced_accuracy", "{:>8.4f}", "balanced"),
            ("val/macro_f1", "{:>8.4f}", "macro F1"),
            ("seconds", "{:>7.1f}", "seconds"),
        ]
        if not self._epoch_columns:
            self._epoch_columns = [title for _, _, title in columns]
            widths = [len(form.format(0)) for _, form, _ in columns]
            head = zip(self._epoch_columns, widths, strict=True)
            self.console.print(
                "  ".join(f"{title:>{width}}" for title, width in head), style="bold"
            )
        cells = (_format_cell(row[key], form) for key, form, _ in columns)
        self.console.print("  ".join(cells), soft_wrap=True)

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Print what is about to happen."""
        self._epoch_columns = ()
        self.print_pairs(build_plan_rows(plan))
        self._show_recipe(plan["recipe"])
        if not (plan["probe"] and plan["probe"]["probe_only"]):
            self._show_phases(plan["phases"])

    def print_pairs(self, rows: Mapping[str, str]) -> None:
        """Print names and values, long values wrapped under themselves."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, escape(value))
        self.console.print(table)

    def print_commands(self, title: str, lines: Sequence[Sequence[str]]) -> None:
        """Print command lines to copy: quoted, and never broken."""
        for number, words in enumerate(lines):
            head = title if number == 0 else " " * len(title)
            text = escape(shlex.join(words))
            self.console.print(f"[bold]{head}[/]  {text}", soft_wrap=True)

    def show_evaluation(self, result: Mapping[str, Any], *, show_classes: bool = True) -> None:
        """Print overall metrics, the table of classes unless that is not wanted, and remarks."""
        self.print_pairs(build_overall_rows(result))
        if show_classes:
            self.console.print(build_class_table(result))
        for line in build_remarks(result, show_classes=show_classes):
            self.note(line)

    def _show_recipe(self, recipe: Sequence[Mapping[str, Any]]) -> None:
        """Print what was chosen, with the reason for each."""
        table = Table(box=None, padding=(0, 1), header_style="bold")
        table.add_column("chosen", no_wrap=True)
        table.add_column("value", no_wrap=True)
        table.add_column("because", overflow="fold")
        for choice in recipe:
            table.add_row(choice["key"], _format_value(choice["value"]), escape(choice["reason"]))
        if recipe:
            self.console.print(table)

    def show_calibration(self, result: Mapping[str, Any]) -> None:
        """Say what temperature was taken, and what it is worth on images that it did not see."""
        before, after = result["before"], result["after"]
        gain = ", ".join(
            f"{name} {before[key]:.4f} -> {after[key]:.4f}"
            for name, key in (("log loss", "loss"), ("calibration error", "calibration_error"))
        )
        taken = result["temperature"] == result["fitted"]
        kept = "" if taken else f", as {result['fitted']:.3g} does not help"
        self.note(
            f"temperature {result['temperature']:.3g}{kept}; {result['num_images']} validation "
            f"images, each left out of its fit: {gain}"
        )

    def _show_phases(self, phases: Sequence[Mapping[str, Any]]) -> None:
        table = Table(box=None, padding=(0, 1), header_style="bold")
        table.add_column("epochs", no_wrap=True)
        table.add_column("what trains", overflow="fold", max_width=30)
        table.add_column("parameters", justify="right", no_wrap=True)
        table.add_column("learning rate", no_wrap=True)
        table.add_column("BatchNorm", no_wrap=True)
        for phase in phases:
            first, last, groups = phase["first_epoch"], phase["last_epoch"], phase["groups"]
            names = (
                ", ".join(groups)
                if len(groups) <= 2
                else f"{groups[0]} … {groups[-1]} ({len(groups)} groups)"
            )
            rates = [f"{rate:.2g}" for rate in phase["lr"].values()]
            table.add_row(
                f"{first}" if first == last else f"{first}-{last}",
                escape(names),
                format_count(phase["parameters"]),
                rates[0] if rates[0] == rates[-1] else f"{rates[0]} … {rates[-1]}",
                phase["batch_norm"],
            )
        self.console.print(table)


def _format_cell(value: float, format_spec: str) -> str:
    """Return a number in its column; one that is too large for it in few digits."""
    width = len(format_spec.format(0))
    text = format_spec.format(value)
    return text if len(text) <= width else f"{value:>{width}.1e}"


def _format_value(value: Any) -> str:
    """Return a value of the config as one would type it."""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

"""Console reporter: notes, plan, progress bar and tables, at most 80 columns wide."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finetune.cli.render.epoch_table import format_epoch_row
from finetune.cli.render.evaluation_table import (
    build_class_table,
    build_overall_rows,
    build_remarks,
)
from finetune.cli.render.messages.message_lines import wrap_message
from finetune.cli.render.networks.layer_table import build_layer_table, describe_layers
from finetune.cli.render.plan_table import build_plan_rows, describe_probe_result
from finetune.system import output_streams
from finetune.types import Reporter
from finetune.units import format_count, format_millions, format_percent, format_scientific


class ConsoleReporter(Reporter):
    """Reporter that prints to the console.

    Args:
        json_output: Whether standard output is reserved for one JSON object; everything else then
            goes to standard error.
        ends_with_reader: Whether the command is in vain, and ends, when the reader of its output
            has closed the pipe.
        rank: Rank of this process, the prefix of warnings and errors; None for a single process.
    """

    def __init__(
        self, *, json_output: bool = False, ends_with_reader: bool = False, rank: int | None = None
    ) -> None:
        self.json_output = json_output
        self._ends_with_reader = ends_with_reader
        self._rank_prefix = "" if rank is None else f"[rank {rank}] "
        self.err_console = Console(stderr=True, highlight=False)
        self.console = self.err_console if json_output else Console(highlight=False)
        self._progress: Progress | None = None
        self._epoch_header: list[str] = []

    def note(self, message: str) -> None:
        """Print what a command does and finds; such lines have no prefix.

        They are wrapped where the number of columns is known; files and pipes have whole lines.
        """
        if self.console.is_terminal or os.environ.get("COLUMNS"):
            message = "\n".join(wrap_message(message, self.console.width))
        self.console.print(escape(message), soft_wrap=True)
        failure = output_streams.get_failure(1) if self._ends_with_reader else None
        if failure is not None and output_streams.is_closed_pipe(failure):
            raise typer.Exit

    def warn(self, message: str) -> None:
        """Print a message with the prefix ``warning:`` to standard error."""
        self._print_error("warning:", "yellow", message)

    def error(self, message: str) -> None:
        """Print a message with the prefix ``error:`` to standard error."""
        self._print_error("error:", "bold red", message)

    def _print_error(self, title: str, style: str, message: str) -> None:
        start = len(self._rank_prefix) + len(title) + 1
        lines = wrap_message(message, self.err_console.width, start=start)
        text = escape("\n".join(lines))
        prefix = f"{escape(self._rank_prefix)}[{style}]{title}[/]"
        self.err_console.print(f"{prefix} {text}", soft_wrap=True)

    def start(self, task: str, total: int) -> None:
        """Show a progress bar if standard error is a terminal; of 0 steps, the end is unknown."""
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
        self._progress.add_task(task, total=total or None)

    def advance(self, steps: int = 1) -> None:
        """Advance the progress bar."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], steps)

    def finish(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def show_probe(self, result: Mapping[str, Any]) -> None:
        """Print the result of the linear probe."""
        self.finish()
        for line in describe_probe_result(result):
            self.note(line)

    def show_epoch(self, row: Mapping[str, Any]) -> None:
        """Print a row of the epoch table, and its header before the first row of these columns."""
        self.finish()
        header, cells = format_epoch_row(row)
        if header != self._epoch_header:
            self._epoch_header = header
            for line in header:
                self.console.print(line, style="bold", soft_wrap=True)
        self.console.print(cells, soft_wrap=True)

    def show_plan(self, plan: Mapping[str, Any]) -> None:
        """Print a plan: its rows, the automatic settings and the training phases."""
        self._epoch_header = []
        self.print_pairs(build_plan_rows(plan))
        self._show_recipe(plan["recipe"])
        if not (plan["probe"] and plan["probe"]["probe_only"]):
            self._show_phases(plan["phases"])

    def show_layers(self, layers: Mapping[str, Any]) -> None:
        """Print the table of layers, and where most of their costs lie."""
        self.console.print()
        self.console.print(build_layer_table(layers))
        for line in describe_layers(layers):
            self.console.print(line, markup=False)

    def print_pairs(self, rows: Mapping[str, str]) -> None:
        """Print a table of names and values; long values are wrapped within their column."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, escape(value))
        self.console.print(table)

    def print_rows(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with a header; columns after the first are aligned to the right."""
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for number, title in enumerate(header):
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    def print_commands(self, title: str, lines: Sequence[Sequence[str]]) -> None:
        """Print command lines to copy: shell-quoted and never wrapped."""
        for number, args in enumerate(lines):
            prefix = title if number == 0 else " " * len(title)
            self.console.print(f"[bold]{prefix}[/]  {escape(shlex.join(args))}", soft_wrap=True)

    def show_evaluation(self, result: Mapping[str, Any], *, show_classes: bool = True) -> None:
        """Print the overall metrics, the class table if requested, and remarks."""
        self.print_pairs(build_overall_rows(result))
        if show_classes:
            self.console.print(build_class_table(result))
        for line in build_remarks(result, show_classes=show_classes):
            self.note(line)

    def _show_recipe(self, recipe: Sequence[Mapping[str, Any]]) -> None:
        """Print the automatic settings with their values and reasons."""
        table = Table(box=None, padding=(0, 1), header_style="bold")
        table.add_column("auto setting", no_wrap=True)
        table.add_column("value", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for choice in recipe:
            table.add_row(choice["key"], _format_value(choice["value"]), escape(choice["reason"]))
        if recipe:
            self.console.print(table)

    def show_calibration(self, result: Mapping[str, Any]) -> None:
        """Print the temperature and its cross-fitted effect, or why the fitted one is not used."""
        before, after = result["before"], result["after"]
        fitted = format_scientific(result["fitted_temperature"], digits=3)
        images = format_count(result["num_images"], "validation image")
        losses = [f"{metrics['loss']:.4f}" for metrics in (before, after)]
        errors = [format_percent(metrics["calibration_error"]) for metrics in (before, after)]
        if result["temperature"] == result["fitted_temperature"]:
            self.note(
                f"Temperature {fitted}; cross-fitted on {images}: log loss {' -> '.join(losses)}, "
                f"calibration error {' -> '.join(errors)}"
            )
            return
        self.note(
            f"The fitted temperature {fitted} is not used, as it does not lower the log loss: "
            f"cross-fitted on {images}, the log loss is {losses[0]} without it and {losses[1]} "
            f"with it, the calibration error {errors[0]} without it and {errors[1]} with it"
        )

    def _show_phases(self, phases: Sequence[Mapping[str, Any]]) -> None:
        table = Table(box=None, padding=(0, 1), header_style="bold")
        table.add_column("epochs", no_wrap=True)
        table.add_column("trainable layers", overflow="fold", max_width=30)
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
            rates = [format_scientific(lr) for lr in (phase["lr"] or {}).values()] or ["measured"]
            table.add_row(
                f"{first}" if first == last else f"{first}-{last}",
                escape(names),
                format_millions(phase["num_parameters"]),
                rates[0] if rates[0] == rates[-1] else f"{rates[0]} … {rates[-1]}",
                phase["batch_norm"],
            )
        self.console.print(table)


def _format_value(value: Any) -> str:
    """Return a config value as it is typed on the command line."""
    if isinstance(value, float):
        return format_scientific(value, digits=6)
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

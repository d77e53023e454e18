"""Result of ``fit --check`` as text: what was tried, what was reached, what hinders the run."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.cli.render.findings.diagnosis_lines import wrap_finding
from finetune.units import format_count, format_duration, format_scientific

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter

_WIDTH = 80


def show_check(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    """Print the result of a check.

    Args:
        reporter: Console.
        tree: Result of ``check_learning`` as JSON values.
    """
    for line in build_check_lines(tree):
        reporter.note(line)


def build_check_lines(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines of a check, at most 80 characters wide but for an option."""
    lines = [*_wrap(_describe_settings(tree)), *_wrap(_describe_differences(tree)), ""]
    lines += _build_table(tree["attempts"])
    verdict = "passed" if tree["is_passed"] else "not passed"
    lines.append(f"Check {verdict} in {format_duration(tree['seconds'])}:")
    for finding in tree["findings"]:
        lines += wrap_finding(finding)
    return lines


def _describe_settings(tree: Mapping[str, Any]) -> str:
    settings = tree["settings"]
    images = format_count(settings["num_images"], "training image")
    start = " after a head that is fitted to them" if settings["has_probe"] else ""
    return (
        f"{images} at {settings['image_size']} px, {settings['backbone']}, "
        f"{settings['loss']}, {settings['optimizer']}, unfreeze {settings['unfreeze']}{start}; "
        f"at most {format_duration(tree['time_limit_seconds'])}."
    )


def _describe_differences(tree: Mapping[str, Any]) -> str:
    return (
        f"Without {', '.join(tree['switched_off'])}: nothing may keep the network from learning "
        f"these images by heart. Batches have 8 images."
    )


def _build_table(attempts: Mapping[str, Any]) -> list[str]:
    """Return a row for each attempt, with a header; none without attempts."""
    named = [("settings of the run", attempts["run"]), ("all layers", attempts["unfrozen"])]
    named += [("another rate", one) for one in attempts["other_rates"]]
    rows = [_build_row(name, trace) for name, trace in named if trace is not None]
    if not rows:
        return []
    header = ("", "rate", "depth", "steps", "loss", "wrong", "time")
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    return [*lines, ""]


def _build_row(name: str, trace: Mapping[str, Any]) -> Sequence[str]:
    rate = "-" if trace["lr"] is None else format_scientific(trace["lr"])
    return (
        name,
        rate,
        str(trace["depth"]),
        str(trace["num_steps"]),
        f"{trace['start_loss']:.3g} -> {trace['end_loss']:.3g}",
        f"{trace['start_errors']} -> {trace['num_errors']}",
        format_duration(trace["seconds"]),
    )


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)

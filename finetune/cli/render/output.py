"""How a verb answers: tables for a person, or one JSON object on standard output."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from finetune.distributed.launch import detect_rank
from finetune.distributed.signals import StopRequest

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


SIGNAL_EXIT_CODE_BASE = 128
"""What a verb that a signal stops exits with, less the signal's number."""


@contextmanager
def exit_on_stop_request() -> Iterator[None]:
    """Turn a stop request into an exit code; typer would make Ctrl-C of every one.

    Raises:
        typer.Exit: With ``SIGNAL_EXIT_CODE_BASE`` and the signal's number.
    """
    try:
        yield
    except StopRequest as request:
        raise typer.Exit(SIGNAL_EXIT_CODE_BASE + request.signum) from None


def build_console_reporter(*, json_output: bool = False) -> "ConsoleReporter":
    """Return the console; rich is not imported for a mere --help."""
    from finetune.cli.render.console import ConsoleReporter

    return ConsoleReporter(json_output=json_output, rank=detect_rank())


def show_result(
    reporter: "ConsoleReporter",
    tree: dict[str, Any],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Print the tree as JSON where that was asked for, else show it."""
    if reporter.json_output:
        print_json(tree)
    else:
        show(tree)


def print_json(tree: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")

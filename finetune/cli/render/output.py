"""Output of a command: text for a person, or one JSON object on standard output."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from finetune.distributed.launch import detect_rank
from finetune.distributed.signals import StopRequest
from finetune.errors import StorageError
from finetune.system import output_streams, process_clock
from finetune.system.files import describe_disk_error

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


SIGNAL_EXIT_CODE_BASE = 128
"""Exit code of a command that a signal stopped, minus the signal number."""


@contextmanager
def exit_on_stop_request() -> Iterator[None]:
    """Turn a stop request into an exit code; typer would report every signal as Ctrl-C.

    Raises:
        typer.Exit: Stop requested; the exit code is ``SIGNAL_EXIT_CODE_BASE`` plus the signal.
    """
    try:
        yield
    except StopRequest as request:
        raise typer.Exit(SIGNAL_EXIT_CODE_BASE + request.signum) from None


def build_console_reporter(
    *, json_output: bool = False, ends_with_reader: bool = False
) -> "ConsoleReporter":
    """Return the console reporter of this process; imports rich, which ``--help`` does not need."""
    from finetune.cli.render.console import ConsoleReporter

    return ConsoleReporter(
        json_output=json_output, ends_with_reader=ends_with_reader, rank=detect_rank()
    )


def show_result(
    reporter: "ConsoleReporter",
    tree: dict[str, Any],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Print the result as JSON if requested, else call ``show`` with it.

    Its "seconds" become those since the process began: a person waits for the imports, too.
    """
    seconds = process_clock.measure_seconds()
    if seconds is not None and "seconds" in tree:
        tree = {**tree, "seconds": round(seconds, 3)}
    if reporter.json_output:
        print_json(tree)
    else:
        show(tree)


def print_json(tree: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output.

    Raises:
        StorageError: Standard output is a file on a full disk.
    """
    print_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def print_text(text: str) -> None:
    """Print the result of a command as it is; a reader that has closed its pipe is no error.

    Raises:
        StorageError: Standard output is a file on a full disk.
    """
    sys.stdout.write(text)
    failure = output_streams.get_failure(1)
    if failure is not None and not output_streams.is_closed_pipe(failure):
        raise build_output_error(failure)


def build_output_error(failure: OSError) -> StorageError:
    """Return the error of a command whose output was lost."""
    return StorageError(
        f"Cannot write to standard output: {describe_disk_error(failure)}. Free some space there, "
        f"or print somewhere else."
    )

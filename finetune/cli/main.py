"""Entry point of the command line: each error is one message and an exit code, no traceback."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from finetune.cli.app import app
from finetune.cli.options.option_hints import suggest_for_option
from finetune.cli.render.output import (
    SIGNAL_EXIT_CODE_BASE,
    build_console_reporter,
    build_output_error,
)
from finetune.distributed import signals
from finetune.distributed.launch import is_nonzero_rank
from finetune.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    ConfigError,
    FinetuneError,
)
from finetune.system import output_streams


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Command-line arguments; None takes those of the process.
    """
    # torch warns of retried connections, for example; we report them where they matter
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torchmetrics imports it, and without a home folder it warns; we draw nothing with it
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if "" not in sys.path:
        sys.path.append("")  # so that my_package.module:function is found in the working folder
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="finetune", standalone_mode=False)
    except KeyboardInterrupt:
        return _handle_stop_signal(signal.SIGINT)
    except FinetuneError as error:
        if not _is_reported_elsewhere(error):
            _print_error(_extract_message(error))
        return error.exit_code
    except Exception as error:
        return _handle_foreign_error(error, arguments)
    if not isinstance(code, int):
        return 0
    signum = code - SIGNAL_EXIT_CODE_BASE
    return _handle_stop_signal(signum) if signum in signals.STOP_SIGNALS else code


def check_output(code: int) -> int:
    """Return the exit code of a command, another one if its output was lost on a full disk.

    A reader that closes a pipe has seen enough. A run continues without its console, and its log
    has the output.

    Args:
        code: Exit code of the command.
    """
    failure = output_streams.get_failure(1)
    output_streams.get_failure(2)  # writes what is buffered
    if code != 0 or failure is None or output_streams.is_closed_pipe(failure):
        return code
    if output_streams.has_log():
        return code
    error = build_output_error(failure)
    _print_error(str(error))
    return error.exit_code


def _handle_stop_signal(signum: int) -> int:
    """Report the signal that stopped this process, and return the exit code for its launcher."""
    is_reporting = not is_nonzero_rank()  # one process of a run reports it
    if signum == signal.SIGINT:
        if is_reporting:
            build_console_reporter().error("Interrupted by Ctrl-C.")
        return INTERRUPTED_EXIT_CODE
    name = signal.Signals(signum).name
    file = os.environ.get(signals.REQUEUE_FILE_VARIABLE)
    if is_reporting:
        requeue = "" if file is None else f" A restart was requested through {file}."
        build_console_reporter().error(f"Stopped by {name}.{requeue}")
    if file is None:
        return PREEMPTED_EXIT_CODE
    if is_reporting:
        from finetune.system.files import write_text

        try:
            write_text(Path(file), f"{name}\n")
        except FinetuneError as error:
            _print_error(str(error))
            return PREEMPTED_EXIT_CODE
    return 0


def _is_reported_elsewhere(error: FinetuneError) -> bool:
    """Return whether another process of the run reports the same error."""
    # every process finds the same mistake in the command line, before the rendezvous
    is_everywhere = isinstance(error, ConfigError) and not error.is_published
    return is_nonzero_rank() and (is_everywhere or error.is_from_peer)


def _handle_foreign_error(error: Exception, arguments: Sequence[str]) -> int:
    """Report an error of typer, a disk error or a bug of finetune, and return its exit code."""
    if hasattr(error, "format_message"):  # a usage error of typer
        verb = f"{arguments[0]} " if arguments[0] in _list_commands() else ""
        hint = _suggest_for_option(error, arguments[0])
        message = f"{error.format_message().rstrip('.')}.{hint} See: finetune {verb}--help"
        build_console_reporter().error(message)
        return ConfigError.exit_code
    from finetune.system.files import explain_disk_error

    disk_error = explain_disk_error(error, getattr(error, "filename", None) or "a file")
    if disk_error is not None:
        _print_error(str(disk_error))
        return disk_error.exit_code
    from finetune.cli.user_code import explain_user_error

    user_error = explain_user_error(error)
    if user_error is not None:
        _print_error(user_error)
        return 1
    _print_error(
        f"Unexpected {type(error).__name__}: {error}. This is a bug in finetune. Please report it "
        f"with the output of the same command under FINETUNE_DEBUG=1."
    )
    return 1


def _print_error(message: str) -> None:
    if os.environ.get("FINETUNE_DEBUG"):
        import traceback

        traceback.print_exc()
    build_console_reporter().error(message)


def _extract_message(error: FinetuneError) -> str:
    """Return the message without the traceback that a DataLoader worker wraps it in."""
    text = str(error)
    if text.startswith("Caught ") and f"{type(error).__name__}: " in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def _suggest_for_option(error: Exception, command: str) -> str:
    """Return a hint for an unknown option; "" for another error."""
    option = getattr(error, "option_name", None)
    if not isinstance(option, str) or not hasattr(error, "possibilities"):
        return ""  # errors of the values of known options have a name, too
    group = typer.main.get_command(app)
    commands: dict[str, Any] = getattr(group, "commands", {})
    options = {
        name: {option for parameter in one.params for option in parameter.opts}
        for name, one in commands.items()
        if not one.hidden
    }
    return suggest_for_option(option, command, options)


def _list_commands() -> set[str]:
    functions = (command.callback for command in app.registered_commands)
    return {function.__name__ for function in functions if function is not None}
